"""BasicSR's training, made to survive: what `basicsr train` runs.

BasicSR's loop stays as it is. What it builds on its way (data sets, sampler, loaders, model) is
exchanged for or wrapped by this package's, so that any model can be stopped by a signal and resumed
exactly.
"""

import contextlib
import copy
import functools
import logging
import shlex
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import basicsr.data
import basicsr.test
import basicsr.train
import torch
from basicsr.models import sr_model
from basicsr.models.base_model import BaseModel
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import get_dist_info

from esc_arch.errors import UserError
from esc_arch.plugin.agreement import same_everywhere
from esc_arch.plugin.compat.patching import swapped
from esc_arch.plugin.disk_faults import ForgivingLogger, forgiving, plain_errors
from esc_arch.plugin.experiment import ExperimentFolder
from esc_arch.plugin.models.durable import build_durable_model
from esc_arch.plugin.own_options import own_value
from esc_arch.plugin.process_watch import ProcessWatch, is_lost_process, lost_process
from esc_arch.plugin.run_data import RunData
from esc_arch.plugin.stop_signals import StopRequested, StopSignals
from esc_arch.plugin.tracebacks import in_one_line
from esc_arch.whole_files import remove_temporary_files

# The other processes wait while the first one validates or saves: NCCL for ten minutes of its own
# accord. Processes that are gone are the business of ProcessWatch.
WAIT_LIMIT = timedelta(hours=3)


class TrainingRun:
    """One run of BasicSR's training loop: where it is, and whether it is to stop."""

    def __init__(self) -> None:
        self._signals = StopSignals()
        self._failed = False
        self._model: BaseModel | None = None
        self._data = RunData(self._stop_if_asked)
        self._folder = ExperimentFolder()
        self._tb_logger: Any = None
        self._first_iter = self._completed_iter = 0
        self._within_step = self._stepped = self._validation_owed = False
        self._schedulers: list[tuple[dict[str, Any], list[float]]] = []
        self._warmup: Any = None
        self._validated: dict[Any, int] = {}
        self._agreed = False
        self._watch: ProcessWatch | None = None

    def train(self, root_path: str) -> int:
        """Train as the command line in `sys.argv` says.

        Args:
            root_path: Folder that experiments are written below.

        Returns:
            0, or 128 plus the number of the signal that stopped the run.

        Raises:
            UserError: The run cannot go on, for a reason that the user can mend.
        """
        with (
            self._signals.caught(),
            swapped(sr_model, imwrite=forgiving(sr_model.imwrite)),
            # A log file on a full disk would print a traceback a line; the screen has the line.
            swapped(logging, raiseExceptions=False),
            swapped(
                torch.distributed,
                init_process_group=functools.partial(
                    torch.distributed.init_process_group, timeout=WAIT_LIMIT
                ),
            ),
            swapped(
                basicsr.train,
                parse_options=self._keep_options(basicsr.train.parse_options),
                load_resume_state=self._keep_state(basicsr.train.load_resume_state),
                make_exp_dirs=self._keep_old(basicsr.train.make_exp_dirs),
                mkdir_and_rename=functools.partial(
                    self._folder.make_tensorboard, basicsr.train.mkdir_and_rename
                ),
                create_train_val_dataloader=self._data.wrap_create_loaders(
                    basicsr.train.create_train_val_dataloader
                ),
                EnlargedSampler=self._data.make_sampler,
                build_dataset=self._data.wrap_build_dataset(basicsr.train.build_dataset),
                build_dataloader=self._data.wrap_build_dataloader(basicsr.train.build_dataloader),
                build_model=self._build_model,
                init_tb_loggers=self._keep_tb_logger(basicsr.train.init_tb_loggers),
                MessageLogger=_until_the_last_iteration(basicsr.train.MessageLogger),
            ),
        ):
            try:
                status = self._train_or_stop(root_path)
            except Exception as error:
                if get_dist_info()[1] > 1 and is_lost_process(error):
                    raise UserError(lost_process(str(error).split(". ")[0])) from error
                raise in_one_line(error) from error
            finally:
                self._data.close()
                self._folder.release()
            if self._watch is not None:
                self._watch.leave()
            return status

    def _train_or_stop(self, root_path: str) -> int:
        try:
            with plain_errors():
                basicsr.train.train_pipeline(root_path)
            self._save_end()
            if self._model.unsaved is not None:
                raise UserError(
                    f"the training is done, but its end could not be saved: {self._model.unsaved}; "
                    "go on with --auto_resume from the newest checkpoint"
                )
            return 0
        except StopRequested:
            pass
        except Exception as error:
            # The signal may have reached the loading processes too; waiting for their batches
            # then fails, in one of many ways.
            if self._signals.name is None or self._within_step:
                self._save_before(error)
                raise
        return self._stop()

    def _save_before(self, error: Exception) -> None:
        """Keep what has been trained, as far as it is whole, before an error ends the run."""
        if self._completed_iter == self._first_iter:
            if self._data.resume_state is None:
                self._folder.restore()
            return
        _, world_size = get_dist_info()
        if world_size > 1:
            if self._within_step or is_lost_process(error):
                # The others cannot be asked to save with this one.
                return
            self._failed = True
            with contextlib.suppress(StopRequested):
                self._stop_if_asked(everywhere=True)
        if self._stepped:
            # Some of the networks have taken the step, others not.
            return
        for scheduler, (state, _) in zip(self._model.schedulers, self._schedulers, strict=True):
            scheduler.load_state_dict(state)
        for optimizer, (_, lrs) in zip(self._model.optimizers, self._schedulers, strict=False):
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr
        self._model.resume_warmup(self._warmup)
        self._save()
        if world_size > 1:
            torch.distributed.barrier()
        get_root_logger().error(f"The run ends with an error; {self._what_is_saved()}.")

    def _save_end(self) -> None:
        """Keep the state of the last iteration, too, so that the run can be gone on with or asked
        for again: BasicSR's last save has weights only."""
        frequency = self._data.opt["logger"]["save_checkpoint_freq"]
        trained = self._completed_iter > self._first_iter
        if trained and self._completed_iter % frequency and self._model.unsaved is None:
            self._save()
            # Said already; the weights are there.
            self._model.unsaved = None

    def _save(self) -> None:
        self._model.save(self._data.epoch, self._completed_iter)

    def _keep_options(self, parse_options: Callable[..., tuple]) -> Callable[..., tuple]:
        @functools.wraps(parse_options)
        def parse(*args: Any, **kwargs: Any) -> tuple[dict[str, Any], Any]:
            opt, parsed = parse_options(*args, **kwargs)
            if opt.get("val") is not None:
                opt["val"].setdefault("save_img", False)
            opt["logger"].setdefault("use_tb_logger", False)
            self._data.opt, self._opt_file = opt, parsed.opt
            return opt, parsed

        return parse

    def _keep_state(self, load_resume_state: Callable[[dict], dict | None]) -> Callable:
        load_same = same_everywhere(load_resume_state)

        @functools.wraps(load_resume_state)
        def load(opt: dict[str, Any]) -> dict[str, Any] | None:
            state = load_same(opt)
            if state is not None:
                self._folder.lock(opt)
                seed = state.get("seed")
                if opt.get("seed_drawn") and type(seed) is int and 0 <= seed < 2**32:
                    opt["manual_seed"] = seed
            self._data.resume_state = state
            return state

        return load

    def _keep_old(self, make_exp_dirs: Callable[[dict], None]) -> Callable[[dict], None]:
        @functools.wraps(make_exp_dirs)
        def make(opt: dict[str, Any]) -> None:
            self._folder.make(make_exp_dirs, opt, self._opt_file)

        return make

    def _keep_tb_logger(self, init_tb_loggers: Callable[[dict], Any]) -> Callable:
        @functools.wraps(init_tb_loggers)
        def init(opt: dict[str, Any]) -> Any:
            tb_logger = init_tb_loggers(opt)
            self._tb_logger = tb_logger and ForgivingLogger(tb_logger)
            return self._tb_logger

        return init

    def _build_model(self, opt: dict[str, Any]) -> BaseModel:
        if opt["dist"]:
            self._watch = ProcessWatch()
        for folder in ("experiments_root", "models", "training_states"):
            remove_temporary_files(Path(opt["path"][folder]))
        model = build_durable_model(opt)
        asked = opt["train"].get("accumulate_steps")
        steps = own_value("train:accumulate_steps", asked, type(model), 1)
        if steps > 1 and not getattr(model, "accumulates", False):
            get_root_logger().warning(
                f"train: accumulate_steps: {steps}: {opt['model_type']} takes all images of an "
                "iteration at once; ESCModel takes them in parts."
            )
        for optimizer in model.optimizers:
            optimizer.register_step_post_hook(self._note_step)

        validation = model.validation
        resume_training = model.resume_training
        update_learning_rate = model.update_learning_rate
        optimize_parameters = model.optimize_parameters

        def resume(state: dict[str, Any]) -> None:
            resume_training(state)
            self._resume(state)
            self._validation_owed = True

        def update(current_iter: int, *args: Any, **kwargs: Any) -> None:
            self._begin_step()
            try:
                update_learning_rate(current_iter, *args, **kwargs)
            except Exception as error:
                raise UserError(
                    f"train: scheduler: has no learning rate for iteration {current_iter} "
                    f"({type(error).__name__}); with CosineAnnealingRestartLR periods must sum up "
                    "to total_iter, and a resumed run keeps those of its state unless path: "
                    "resume_schedule: options"
                ) from error

        def optimize(current_iter: int) -> None:
            optimize_parameters(current_iter)
            self._end_step(current_iter)

        def validate(loader: Any, current_iter: int, *args: Any, **kwargs: Any) -> None:
            # At the end BasicSR validates what it may just have validated.
            if self._validated.get(loader) != current_iter:
                validation(loader, current_iter, *args, **kwargs)
                self._validated[loader] = current_iter

        model.resume_training = resume
        model.update_learning_rate = update
        model.optimize_parameters = optimize
        model.validation = validate
        self._model = model
        return model

    def _resume(self, state: dict[str, Any]) -> None:
        self._first_iter = self._completed_iter = state["iter"]

    def _note_step(self, *_: Any) -> None:
        self._stepped = True

    def _begin_step(self) -> None:
        self._stop_if_asked(everywhere=True)
        if self._validation_owed:
            self._validation_owed = False
            self._validate_if_missed()
        self._within_step = True
        self._warmup = self._model.warmup_state()
        self._schedulers = [
            (copy.deepcopy(scheduler.state_dict()), [g["lr"] for g in optimizer.param_groups])
            for scheduler, optimizer in zip(
                self._model.schedulers, self._model.optimizers, strict=False
            )
        ]

    def _validate_if_missed(self) -> None:
        """Catch up on a validation that a kill cut short: BasicSR saves first, then validates."""
        val = self._model.opt.get("val") or {}
        if not val.get("metrics") or self._first_iter % val["val_freq"] != 0:
            return
        for loader in self._data.val_loaders:
            if not self._model.was_validated(loader.dataset.opt["name"], self._first_iter):
                self._model.validation(loader, self._first_iter, self._tb_logger, val["save_img"])

    def _end_step(self, current_iter: int) -> None:
        self._data.count_step()
        self._completed_iter = current_iter
        self._model.place_in_data = (self._data.epoch, self._data.samples_seen)
        self._within_step = self._stepped = False
        # The run has begun: what was there before stays renamed.
        self._folder.keep()

    def _stop_if_asked(self, everywhere: bool = False) -> None:
        """Raise StopRequested if a signal came: to any process, where all of them ask together."""
        if everywhere and get_dist_info()[1] > 1:
            stop = torch.tensor(self._signals.name is not None or self._failed, dtype=torch.float32)
            stop = stop.to(self._model.device)
            torch.distributed.all_reduce(stop, torch.distributed.ReduceOp.MAX)
            self._agreed = bool(stop)
            if self._agreed:
                raise StopRequested
        elif self._signals.name is not None:
            raise StopRequested

    def _stop(self) -> int:
        rank, world_size = get_dist_info()
        if world_size > 1 and not self._agreed:
            # Stopped during validation, which only this process does: the others have gone on to
            # ask whether to stop.
            with contextlib.suppress(StopRequested):
                self._stop_if_asked(everywhere=True)
        name = self._signals.name or "a signal to, or an error in, another process"
        number = getattr(signal, self._signals.name or "SIGTERM")
        if self._completed_iter > self._first_iter:
            self._save()
        elif self._data.resume_state is None:
            self._folder.restore()
        if self._tb_logger:
            self._tb_logger.close()
        if rank == 0:
            print(f"basicsr: {self._farewell(name)}", file=sys.stderr, flush=True)
        if world_size > 1:
            # torchrun and srun may kill the first process, which saves, once another has ended.
            torch.distributed.barrier()
        return 128 + number

    def _farewell(self, name: str) -> str:
        arguments = [argument for argument in sys.argv[1:] if argument != "--auto_resume"]
        command = f"{sys.argv[0]} --auto_resume {shlex.join(arguments)}"
        if self._model is None:
            return f"stopped by {name} before the first iteration; start again with: {command}"
        return f"stopped by {name}, {self._what_is_saved()}; go on with: {command}"

    def _what_is_saved(self) -> str:
        folder = Path(self._model.opt["path"]["training_states"])
        if (folder / f"{self._completed_iter}.state").is_file():
            return f"saved iteration {self._completed_iter}"
        if self._completed_iter == 0:
            return "nothing to save yet"
        return f"iteration {self._completed_iter} could not be saved"


def _until_the_last_iteration(message_logger: Callable[..., Any]) -> Callable[..., Any]:
    """BasicSR's logger, whose time that is left is one iteration short: -1 day at the last one."""

    @functools.wraps(message_logger, updated=())
    def make(*args: Any, **kwargs: Any) -> Any:
        made = message_logger(*args, **kwargs)
        made.max_iters += 1
        return made

    return make


def train(root_path: str) -> int:
    """Run BasicSR's training; see `TrainingRun.train`."""
    return TrainingRun().train(root_path)
