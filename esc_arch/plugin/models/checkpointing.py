"""Checkpoints that survive kills and full disks, and from which a run goes on exactly."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only
from torch import nn

from esc_arch.plugin.models.pair_pool import load_pool, remove_older_pools, save_pool
from esc_arch.plugin.random_states import (
    random_states_kept,
    random_states_of_all_processes,
    set_random_states,
)
from esc_arch.zoo.local import resolve
from esc_arch.zoo.params import load_weights, select_params
from esc_arch.zoo.store import load_state, save_state, write_atomically

VALIDATION_FILE = "validation.json"
# Options of BasicSR's schedulers, which keep them under these names.
SCHEDULE = ("milestones", "gamma", "restarts", "restart_weights", "periods", "eta_min")
# How far a scheduler has come: what torch adds to that.
PROGRESS = ("last_epoch", "_step_count", "_last_lr", "base_lrs")


class Checkpointing:
    """Mixin, in front of any of BasicSR's models.

    - Weights and training states are written beside their place and renamed into it. Where they
      cannot be written (a full disk), the run says so and goes on; older files stay.
    - Weights with values that are not finite are never written.
    - Training states also hold the random states of all processes, the gradient scaler and the
      place in the data, and are restored with them, as is the pool of training pairs that the
      Real-ESRGAN models have (of the newest two states only). What validation measured is kept in
      `validation.json` of the experiment, so that the best results outlive a resumption.
    - `path: resume_schedule: options` goes on with the learning rate schedule of the options, not
      with that of the training state, the default (`state`); what is past stays as it was.
    - `logger: keep_checkpoints: N` removes all but the newest N checkpoints and the best, by the
      first metric of the first validation set.
    - Files are loaded without running code from them, .safetensors too.

    Attributes:
        place_in_data: Epoch, and samples of it that all processes together have trained on; the
            command sets it. None where it is not known.
        unsaved: Why the last save failed; None if it did not.
    """

    unsaved: str | None = None

    place_in_data: tuple[int, int] | None = None

    def load_network(
        self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = "params"
    ) -> None:
        """Load weights; `path: pretrain_network_*`, `strict_load_*` and `param_key_*` name them.

        Args:
            net: The network, perhaps wrapped for several devices.
            load_path: The checkpoint, or the name of a published or shipped one.
            strict: Whether names must be the same on both sides.
            param_key: Which weights of the file.

        Raises:
            UserError: The file cannot be loaded, or does not fit the network.
        """
        net = self.get_bare_model(net)
        load_path = str(resolve(load_path))
        weights = select_params(load_state(load_path), load_path, param_key)
        get_root_logger().info(f"Loading {type(net).__name__} from {load_path} [{param_key}].")
        self._print_different_keys_loading(net, weights, strict)
        resized = load_weights(net, weights, load_path, strict)
        if resized:
            get_root_logger().warning(resized)

    def save(self, epoch: int, current_iter: int) -> None:
        """Write weights and training state, as far as they are sound and there is room.

        Args:
            epoch: Current epoch.
            current_iter: Current iteration; -1 at the end, for the weights only.
        """
        logger = get_root_logger()
        broken = self._non_finite_network()
        if broken is not None:
            self.unsaved = f"{broken} has values that are not finite"
            logger.error(f"{self.unsaved}: not saved.")
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
            self.unsaved = error.strerror or str(error)
            what, then = f"Iteration {current_iter}", "; training goes on to the next save"
            if current_iter == -1:
                what, then = "End of the training", ""
            logger.error(
                f"{what} not saved: {self.unsaved}. Older checkpoints are untouched{then}."
            )
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
        }
        save_state(state, Path(self.opt["path"]["training_states"], f"{current_iter}.state"))

    def resume_training(self, resume_state: Mapping[str, Any]) -> None:
        """Go back to a training state; one that BasicSR wrote has less in it and will do too.

        Args:
            resume_state: What was loaded from the .state file.
        """
        asked = self._options_in_use()
        schedules = [scheduler.state_dict() for scheduler in self.schedulers]
        super().resume_training(resume_state)
        if self.opt["path"].get("resume_schedule") == "options":
            for scheduler, schedule in zip(self.schedulers, schedules, strict=True):
                progress = {name: vars(scheduler)[name] for name in PROGRESS}
                scheduler.load_state_dict({**schedule, **progress})
        saved = self._options_in_use()
        changed = [
            f"{name} {saved[name]} (the options say {value})"
            for name, value in asked.items()
            if name in saved and saved[name] != value
        ]
        if changed:
            get_root_logger().warning(
                f"Resuming keeps what the training state says: {', '.join(changed)}. "
                "path: resume_schedule: options takes the schedule of the options; for the rest "
                "start a new run from the weights (path: pretrain_network_g)."
            )
        if resume_state.get("scaler"):
            self.scaler.load_state_dict(resume_state["scaler"])
        if resume_state.get("place_in_data") is not None:
            self.place_in_data = tuple(resume_state["place_in_data"])
        states = Path(self.opt["path"]["training_states"])
        if not load_pool(self, states, resume_state["iter"]):
            get_root_logger().warning(
                "No whole pool of training pairs is there for this iteration: it fills anew."
            )
        self._resume_best_results(resume_state["iter"])
        if not set_random_states(resume_state.get("random", [])):
            get_root_logger().warning(
                "The training state is of another number of processes or of another tool: random "
                "numbers begin anew."
            )

    def _options_in_use(self) -> dict[str, Any]:
        """What optimizers and schedulers are set to, by the option's name."""
        found: dict[str, Any] = {}
        for number, optimizer in enumerate(self.optimizers, start=1):
            prefix = f"optimizer {number}: " if len(self.optimizers) > 1 else ""
            for group in optimizer.param_groups:
                for name in ("initial_lr", "weight_decay", "betas", "momentum"):
                    if name in group:
                        value = group[name]
                        value = list(value) if isinstance(value, tuple) else value
                        found[f"{prefix}{name.removeprefix('initial_')}"] = value
        for number, scheduler in enumerate(self.schedulers, start=1):
            prefix = f"scheduler {number}: " if len(self.schedulers) > 1 else ""
            for name in SCHEDULE:
                if hasattr(scheduler, name):
                    value = getattr(scheduler, name)
                    # BasicSR counts milestones.
                    value = sorted(value.elements()) if isinstance(value, Counter) else value
                    found[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
        return found

    def nondist_validation(
        self, dataloader: Any, current_iter: int | str, tb_logger: Any, save_img: bool
    ) -> None:
        """Validate as BasicSR does, without a trace in the random states, and keep the results."""
        with random_states_kept():
            super().nondist_validation(dataloader, current_iter, tb_logger, save_img)
        if self.opt["is_train"] and self.opt["val"].get("metrics"):
            results = self._measured()
            values = results.setdefault(dataloader.dataset.opt["name"], {})
            for metric, value in self.metric_results.items():
                values.setdefault(metric, {})[str(current_iter)] = float(value)
            self._keep_measured(results)

    def was_validated(self, dataset: str, current_iter: int) -> bool:
        """Whether results of an iteration are kept.

        Args:
            dataset: Name of the validation set.
            current_iter: The iteration.
        """
        values = self._measured().get(dataset, {})
        return bool(values) and all(str(current_iter) in each for each in values.values())

    @property
    def _validation_file(self) -> Path:
        return Path(self.opt["path"]["experiments_root"], VALIDATION_FILE)

    def _measured(self) -> dict[str, dict[str, dict[str, float]]]:
        """Value by data set, metric and iteration."""
        try:
            return json.loads(self._validation_file.read_text())
        except (OSError, ValueError):
            return {}

    @master_only
    def _keep_measured(self, results: Mapping[str, Any]) -> None:
        try:
            write_atomically(self._validation_file, json.dumps(results, indent=1).encode())
        except OSError as error:
            get_root_logger().error(f"{VALIDATION_FILE} not written: {error.strerror or error}.")

    def _resume_best_results(self, current_iter: int) -> None:
        wanted = (self.opt.get("val") or {}).get("metrics") or {}
        results = self._measured()
        for dataset, metrics in results.items():
            self._initialize_best_metric_results(dataset)
            for metric, values in metrics.items():
                for iteration in sorted(map(int, values)):
                    if iteration > current_iter:
                        # Of the part of the run that is now done again.
                        del values[str(iteration)]
                    elif metric in wanted:
                        self._update_best_metric_result(
                            dataset, metric, values[str(iteration)], iteration
                        )
        if results:
            self._keep_measured(results)

    def _non_finite_network(self) -> str | None:
        """Name of a network that holds a value that is not finite."""
        for name, net in vars(self).items():
            if name.startswith("net_") and isinstance(net, nn.Module):
                if not all(bool(value.isfinite().all()) for value in net.state_dict().values()):
                    return name
        return None

    @master_only
    def _prune(self) -> None:
        keep = self.opt["logger"].get("keep_checkpoints")
        if keep is None:
            return
        models, states = Path(self.opt["path"]["models"]), Path(self.opt["path"]["training_states"])
        # States first: a state without its weights is no use, weights without their state are.
        saved: dict[int, list[Path]] = {}
        for path in [*states.glob("*.state"), *models.glob("net_*.pth")]:
            iteration = path.stem.rpartition("_")[2]
            if iteration.isdigit():
                saved.setdefault(int(iteration), []).append(path)
        spared = {*sorted(saved)[-keep:], self._best_iteration(saved)}
        for iteration in saved.keys() - spared:
            for path in saved[iteration]:
                path.unlink(missing_ok=True)

    def _best_iteration(self, saved: Mapping[int, Any]) -> int | None:
        """The best of the saved iterations, among those that validation measured."""
        measured = self._measured()
        if not measured:
            return None
        metric, options = next(iter(self.opt["val"]["metrics"].items()))
        values = next(iter(measured.values())).get(metric, {})
        values = {
            int(iteration): value
            for iteration, value in values.items()
            if int(iteration) in saved and not math.isnan(value)
        }
        best = max if options.get("better", "higher") == "higher" else min
        return best(values, key=values.__getitem__, default=None)
