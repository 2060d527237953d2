"""Checkpoints that survive kills and full disks, and from which a run goes on exactly."""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only
from torch import nn

from esc_arch.errors import UserError, printable
from esc_arch.plugin.models.pair_pool import load_pool, remove_older_pools, save_pool
from esc_arch.plugin.models.pretrained import LoadingSafely
from esc_arch.plugin.models.resuming import (
    fitting_optimizer_state,
    fitting_scheduler_state,
    load_scaler_state,
    options_in_use,
    shortened,
)
from esc_arch.plugin.models.run_options import (
    changed_options,
    in_one_line,
    measured_otherwise,
    run_options,
)
from esc_arch.plugin.models.training_card import training_card
from esc_arch.plugin.models.validating import Validating
from esc_arch.plugin.models.warmup import ExactWarmup
from esc_arch.plugin.own_options import own_value
from esc_arch.plugin.random_states import random_states_of_all_processes, set_random_states
from esc_arch.zoo.card import KEY
from esc_arch.zoo.store import save_state


class Checkpointing(LoadingSafely, Validating, ExactWarmup):
    """Mixin, in front of any of BasicSR's models.

    - Weights and training states are written beside their place and renamed into it. Where they
      cannot be written (a full disk), the run says so and goes on; older files stay.
    - Weights with values that are not finite are never written.
    - Weights of `net_g` carry their card: network, data, iterations, and what a block `card` of
      the options says (name, author, license, tags, description, dataset, datasetSize).
    - Training states also hold the random states of all processes, the gradient scaler and the
      place in the data, and are restored with them, as is the pool of training pairs that the
      Real-ESRGAN models have (of the newest two states only).
    - `path: resume_schedule: options` goes on with the learning rate that the options' schedule has
      at this iteration, as if it had been there from the start, not with that of the training
      state, the default (`state`).
    - `logger: keep_checkpoints: N` removes all but the newest N checkpoints and the best, by the
      first metric of the first validation set.

    Attributes:
        place_in_data: Epoch, and samples of it that all processes together have trained on; the
            command sets it. None where it is not known.
        unsaved: Why the last save failed; None if it did not.
    """

    unsaved: str | None = None

    place_in_data: tuple[int, int] | None = None

    def __init__(self, opt: dict[str, Any]) -> None:
        # BasicSR takes options out as it builds what they describe.
        self._run_options = run_options(opt) if opt["is_train"] else {}
        keep = (opt.get("logger") or {}).get("keep_checkpoints")
        self._keep = own_value("logger:keep_checkpoints", keep, type(self))
        super().__init__(opt)

    def save(self, epoch: int, current_iter: int) -> None:
        """Write weights and training state, as far as they are sound and there is room.

        Args:
            epoch: Current epoch.
            current_iter: Current iteration; -1 at the end, for the weights only.
        """
        logger = get_root_logger()
        broken = self._non_finite_network()
        if broken is not None:
            self.unsaved = f"{broken} has values that are not finite; try a lower lr or grad_clip"
            logger.error(f"Not saved: {self.unsaved}.")
            return
        states = Path(self.opt["path"]["training_states"])
        try:
            # Each process its own, and first, so that there is no state without its pools.
            if current_iter != -1:
                save_pool(self, states, current_iter)
            pool_saved = True
        except OSError as error:
            logger.error(f"Training pairs not saved: {error.strerror or error}.")
            pool_saved = False
        self._random_states = random_states_of_all_processes()
        try:
            super().save(epoch, current_iter)
        except OSError as error:
            reason = error.strerror or str(error)
            self.unsaved = f"{reason}; make room"
            what = "End of the training" if current_iter == -1 else f"Iteration {current_iter}"
            is_end = current_iter in (-1, self.opt["train"]["total_iter"])
            then = "" if is_end else "; training goes on to the next save"
            logger.error(f"{what} not saved: {reason}. Older checkpoints are untouched{then}.")
            return
        self.unsaved = None
        self._prune()
        if pool_saved:
            remove_older_pools(states)

    @master_only
    def save_network(
        self,
        net: nn.Module | list[nn.Module],
        net_label: str,
        current_iter: int,
        param_key: str | list[str] = "params",
    ) -> None:
        """Write the weights of one network, or of it and its EMA, into one file.

        Args:
            net: Network or networks.
            net_label: Begins the file's name.
            current_iter: Ends it; -1 becomes `latest`.
            param_key: Key or keys, as many as networks.

        Raises:
            OSError: The file cannot be written.
        """
        nets = net if isinstance(net, list) else [net]
        keys = param_key if isinstance(param_key, list) else [param_key]
        state = {
            key: {
                name.removeprefix("module."): value.cpu()
                for name, value in self.get_bare_model(each).state_dict().items()
            }
            for key, each in zip(keys, nets, strict=True)
        }
        if net_label == "net_g":
            done = int(self.opt["train"]["total_iter"]) if current_iter == -1 else current_iter
            state[KEY] = training_card(self.opt, state[keys[-1]], done)
        iteration = "latest" if current_iter == -1 else current_iter
        save_state(state, Path(self.opt["path"]["models"], f"{net_label}_{iteration}.pth"))

    @master_only
    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """Write all that a resumed run needs beside the weights.

        Args:
            epoch: Current epoch.
            current_iter: Current iteration; nothing is written for -1.

        Raises:
            OSError: The file cannot be written.
        """
        if current_iter == -1:
            return
        scaler = getattr(self, "scaler", None)
        state = {
            "epoch": epoch,
            "iter": current_iter,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "random": self._random_states,
            "place_in_data": self.place_in_data,
            "scaler": scaler.state_dict() if scaler is not None else {},
            "warmup": self.warmup_state(),
            "seed": self.opt.get("manual_seed"),
            "options": self._run_options,
        }
        save_state(state, Path(self.opt["path"]["training_states"], f"{current_iter}.state"))

    def resume_training(self, resume_state: Mapping[str, Any]) -> None:
        """Go back to a training state; one that BasicSR wrote has less in it and will do too.

        Args:
            resume_state: What was loaded from the .state file.

        Raises:
            UserError: It does not fit the optimizers and schedulers of the options.
        """
        of_schedules = [path.split(":")[-1] for path in self._run_options if ":scheduler:" in path]
        asked = options_in_use(self.optimizers, self.schedulers, of_schedules)
        try:
            self._go_back_to(resume_state)
        except UserError:
            raise
        except Exception as error:
            # Strange contents can surface as nearly any exception of what takes them.
            raise UserError(
                "the training state cannot be gone on from "
                f"({type(error).__name__}: {printable(error)}); resume from another state"
            ) from error
        saved = options_in_use(self.optimizers, self.schedulers, of_schedules)
        changed = [
            f"{name} {shortened(saved[name])} (the options say {shortened(value)})"
            for name, value in asked.items()
            if name in saved and saved[name] != value
        ]
        if changed:
            get_root_logger().warning(
                f"Resuming keeps what the training state says: {', '.join(changed)}. "
                "path: resume_schedule: options takes the schedule of the options; for the rest "
                "start a new run from the weights (path: pretrain_network_g)."
            )
        self._tell_changes(resume_state)
        self.resume_best_results(resume_state["iter"])

    def _tell_changes(self, state: Mapping[str, Any]) -> None:
        """Say what of the options is other than before, and what that means."""
        changed = changed_options(state.get("options"), self._run_options)
        if not changed:
            return
        logger = get_root_logger()
        logger.warning(
            f"Options that have changed, and hold from iteration {state['iter'] + 1} on: "
            f"{in_one_line(changed)}."
        )
        remeasured = measured_otherwise(changed, state["options"], self._run_options)
        self.set_results_aside(remeasured, state["iter"])
        before, now = state["options"].get("train:warmup_iter"), self.opt["train"]
        was_warming = type(before) is int and state["iter"] < before
        ends = "train:warmup" in changed or now.get("warmup_iter", -1) <= state["iter"] + 1
        if was_warming and ends and self.opt["path"].get("resume_schedule") != "options":
            rate = _rates(self.get_current_learning_rate())
            logger.warning(
                f"The warm-up ends with a learning rate of {rate}, from which the schedule goes "
                "on; path: resume_schedule: options takes that of the options."
            )

    def _go_back_to(self, resume_state: Mapping[str, Any]) -> None:
        state = self._fitting(resume_state)
        super().resume_training(state)
        if resume_state.get("scaler") and getattr(self, "scaler", None) is not None:
            load_scaler_state(self.scaler, resume_state["scaler"])
        if resume_state.get("place_in_data") is not None:
            self.place_in_data = tuple(resume_state["place_in_data"])
        self.resume_warmup(state.get("warmup"))
        states = Path(self.opt["path"]["training_states"])
        if not load_pool(self, states, resume_state["iter"]):
            get_root_logger().warning(
                "No whole pool of training pairs is there for this iteration: it fills anew."
            )
        if not set_random_states(resume_state.get("random", [])):
            get_root_logger().warning(
                "The training state is of another number of processes or of another tool: random "
                "numbers begin anew."
            )

    def _fitting(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The training state as it can be loaded, or a UserError."""
        for name, ours in (("optimizers", self.optimizers), ("schedulers", self.schedulers)):
            if not isinstance(state.get(name), list) or len(state[name]) != len(ours):
                raise UserError(
                    f"the training state does not hold {len(ours)} {name}, as {self.opt['name']} "
                    "needs; resume with the options of its own run"
                )
        fitting = {
            **state,
            "optimizers": [
                fitting_optimizer_state(saved, ours, number)
                for number, (saved, ours) in enumerate(
                    zip(state["optimizers"], self.optimizers, strict=True), start=1
                )
            ],
        }
        if self.opt["path"].get("resume_schedule") == "options":
            return self._rescheduled(fitting)
        schedulers = zip(state["schedulers"], self.schedulers, strict=True)
        return {**fitting, "schedulers": [fitting_scheduler_state(*pair) for pair in schedulers]}

    def _rescheduled(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The training state with the learning rates of the options' schedule."""
        train = self.opt["train"]
        with warnings.catch_warnings():
            # That the optimizer makes no step in between.
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step")
            for iteration in range(1, min(state["iter"], train["total_iter"]) + 1):
                self.update_learning_rate(iteration, warmup_iter=train.get("warmup_iter", -1))
        for saved, ours in zip(state["optimizers"], self.optimizers, strict=True):
            before = [group["lr"] for group in saved["param_groups"]]
            for group, own in zip(saved["param_groups"], ours.param_groups, strict=True):
                group.update(lr=own["lr"], initial_lr=own["initial_lr"])
            after = [group["lr"] for group in saved["param_groups"]]
            get_root_logger().info(
                f"The learning rate goes on as the options' schedule has it: {_rates(after)} "
                f"(saved: {_rates(before)})."
            )
        schedulers = [scheduler.state_dict() for scheduler in self.schedulers]
        return {**state, "schedulers": schedulers, "warmup": self.warmup_state()}

    def _non_finite_network(self) -> str | None:
        """Name of a network that holds a value that is not finite."""
        for name, net in vars(self).items():
            if name.startswith("net_") and isinstance(net, nn.Module):
                if not all(bool(value.isfinite().all()) for value in net.state_dict().values()):
                    return name
        return None

    @master_only
    def _prune(self) -> None:
        if self._keep is None:
            return
        models, states = Path(self.opt["path"]["models"]), Path(self.opt["path"]["training_states"])
        links = [str(folder) for folder in (models, states) if folder.is_symlink()]
        if links:
            get_root_logger().warning(
                f"logger: keep_checkpoints: {links[0]} is a link: nothing behind it is removed."
            )
            return
        # States first: a state without its weights is no use, weights without their state are.
        saved: dict[int, list[Path]] = {}
        for path in [*states.glob("*.state"), *models.glob("net_*.pth")]:
            iteration = path.stem.rpartition("_")[2]
            if iteration.isdigit():
                saved.setdefault(int(iteration), []).append(path)
        spared = {*sorted(saved)[-self._keep :], self.best_iteration(saved)}
        for iteration in saved.keys() - spared:
            for path in saved[iteration]:
                path.unlink(missing_ok=True)


def _rates(rates: Iterable[float]) -> str:
    return ", ".join(dict.fromkeys(f"{rate:.3g}" for rate in rates))
