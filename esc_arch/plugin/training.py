"""BasicSR's training and testing, made to survive: what `basicsr train` and `basicsr test` run.

BasicSR's loop stays as it is. What it builds on its way (data sets, sampler, loaders, model) is
exchanged for or wrapped by this package's, so that any model can be stopped by a signal and resumed
exactly.
"""

import contextlib
import copy
import errno
import functools
import logging
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import basicsr.test
import basicsr.train
import torch
from basicsr.models import sr_model
from basicsr.models.base_model import BaseModel
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import get_dist_info
from basicsr.utils.registry import MODEL_REGISTRY
from torch.utils.data import DataLoader, Dataset

from esc_arch.errors import UserError
from esc_arch.plugin.data.exact_order import GuardedDataset, ResumableSampler
from esc_arch.plugin.models.checkpointing import Checkpointing
from esc_arch.plugin.models.finite_steps import FiniteOptimizers
from esc_arch.plugin.preflight.reading import choose_datasets
from esc_arch.plugin.process_watch import ProcessWatch, is_lost_process, lost_process
from esc_arch.zoo.store import remove_temporary_files

# SLURM sends SIGUSR1 ahead of preemption where it is asked to; Windows has none.
STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")

# The other processes wait while the first one validates or saves: NCCL for ten minutes of its own
# accord. Processes that are gone are the business of ProcessWatch.
WAIT_LIMIT = timedelta(hours=3)


# What the user can mend where files are written.
CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS}


class StopRequested(BaseException):  # noqa: N818
    """A signal asked the run to stop; no Exception, so that nothing on the way out catches it."""


class TrainingRun:
    """One run of BasicSR's training loop: where it is, and whether it is to stop.

    Attributes:
        stopped_by: Name of the signal that asked for a stop, or None.
    """

    def __init__(self) -> None:
        self.stopped_by: str | None = None
        self._model: BaseModel | None = None
        self._sampler: ResumableSampler | None = None
        self._loader: DataLoader | None = None
        self._val_loaders: list[DataLoader] = []
        self._tb_logger: Any = None
        self._first_iter = self._completed_iter = 0
        self._within_step = self._validation_owed = False
        self._epoch, self._samples_seen = 0, 0
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
            self._signals(),
            _exchanged(sr_model, imwrite=_forgiving(sr_model.imwrite)),
            # A log file on a full disk would print a traceback a line; the screen has the line.
            _exchanged(logging, raiseExceptions=False),
            _exchanged(
                torch.distributed,
                init_process_group=functools.partial(
                    torch.distributed.init_process_group, timeout=WAIT_LIMIT
                ),
            ),
            _exchanged(
                basicsr.train,
                load_resume_state=_same_everywhere(basicsr.train.load_resume_state),
                EnlargedSampler=self._make_sampler,
                build_dataset=self._wrap_dataset(basicsr.train.build_dataset),
                build_dataloader=self._wrap_loader(basicsr.train.build_dataloader),
                build_model=self._build_model,
                init_tb_loggers=self._keep_tb_logger(basicsr.train.init_tb_loggers),
            ),
        ):
            try:
                status = self._train_or_stop(root_path)
            except Exception as error:
                if get_dist_info()[1] > 1 and is_lost_process(error):
                    raise UserError(lost_process(str(error).split(". ")[0])) from error
                raise
            if self._watch is not None:
                self._watch.leave()
            return status

    def _train_or_stop(self, root_path: str) -> int:
        try:
            with _plain_errors():
                basicsr.train.train_pipeline(root_path)
            if self._model.unsaved is not None:
                raise UserError(
                    f"the training is done, but its end could not be saved: {self._model.unsaved}; "
                    "make room and go on with --auto_resume from the newest checkpoint"
                )
            return 0
        except StopRequested:
            pass
        except Exception:
            # The signal may have reached the loading processes too; waiting for their batches
            # then fails, in one of many ways.
            if self.stopped_by is None or self._within_step:
                raise
        return self._stop()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        numbers = [getattr(signal, name) for name in STOP_SIGNALS if hasattr(signal, name)]
        previous = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stopped_by is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stopped_by = signal.Signals(number).name
        # From here on the end of a loading process is no error to interrupt a step with.
        if hasattr(signal, "SIGCHLD"):
            # Python complains if its own handler gives way to the default one meanwhile.
            signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def _make_sampler(self, *args: Any, **kwargs: Any) -> ResumableSampler:
        self._sampler = ResumableSampler(*args, **kwargs)
        return self._sampler

    def _wrap_dataset(self, build_dataset: Callable[[dict], Dataset]) -> Callable:
        @functools.wraps(build_dataset)
        def build(dataset_opt: dict[str, Any]) -> GuardedDataset:
            training = dataset_opt.get("phase") == "train"
            # The seed of the run is only told to the loader, see _wrap_loader.
            return GuardedDataset(
                build_dataset(dataset_opt),
                dataset_opt,
                before_read=None if training else self._stop_if_asked,
            )

        return build

    def _wrap_loader(self, build_dataloader: Callable[..., DataLoader]) -> Callable:
        @functools.wraps(build_dataloader)
        def build(dataset: Any, dataset_opt: dict, *args: Any, **kwargs: Any) -> DataLoader:
            loader = build_dataloader(dataset, dataset_opt, *args, **kwargs)
            seed = kwargs.get("seed") or 0
            dataset.seed = seed
            # Otherwise each start of a loader would draw from the generator of the training.
            loader.generator = torch.Generator().manual_seed(seed)
            if dataset_opt.get("phase") == "train":
                self._loader = loader
            else:
                self._val_loaders.append(loader)
            return loader

        return build

    def _keep_tb_logger(self, init_tb_loggers: Callable[[dict], Any]) -> Callable:
        @functools.wraps(init_tb_loggers)
        def init(opt: dict[str, Any]) -> Any:
            tb_logger = init_tb_loggers(opt)
            self._tb_logger = tb_logger and _ForgivingLogger(tb_logger)
            return self._tb_logger

        return init

    def _build_model(self, opt: dict[str, Any]) -> BaseModel:
        opt = copy.deepcopy(opt)
        if opt["dist"]:
            self._watch = ProcessWatch()
        for folder in ("models", "training_states"):
            remove_temporary_files(Path(opt["path"][folder]))
        model = durable(MODEL_REGISTRY.get(opt["model_type"]))(opt)
        get_root_logger().info(f"Model [{type(model).__name__}] is created.")

        resume_training = model.resume_training
        update_learning_rate = model.update_learning_rate
        optimize_parameters = model.optimize_parameters

        def resume(state: dict[str, Any]) -> None:
            resume_training(state)
            self._resume(state)
            self._validation_owed = True

        def update(current_iter: int, *args: Any, **kwargs: Any) -> None:
            self._begin_step()
            update_learning_rate(current_iter, *args, **kwargs)

        def optimize(current_iter: int) -> None:
            optimize_parameters(current_iter)
            self._end_step(current_iter)

        model.resume_training = resume
        model.update_learning_rate = update
        model.optimize_parameters = optimize
        self._model = model
        return model

    def _resume(self, state: dict[str, Any]) -> None:
        self._first_iter = self._completed_iter = state["iter"]
        if self._model.place_in_data is not None:
            self._epoch, self._samples_seen = self._model.place_in_data
        else:
            # Of BasicSR itself: told from the iteration, if nothing has changed since.
            self._epoch = state["epoch"]
            batches = len(self._sampler) // self._loader.batch_size
            within = min(max(state["iter"] - self._epoch * batches, 0), batches)
            self._samples_seen = within * self._batch
        self._sampler.resume(self._epoch, self._samples_seen)

    @property
    def _batch(self) -> int:
        """Samples that all processes together take in one step."""
        return self._loader.batch_size * self._sampler.num_replicas

    def _begin_step(self) -> None:
        self._stop_if_asked(everywhere=True)
        if self._validation_owed:
            self._validation_owed = False
            self._validate_if_missed()
        self._within_step = True

    def _validate_if_missed(self) -> None:
        """Catch up on a validation that a kill cut short: BasicSR saves first, then validates."""
        val = self._model.opt.get("val") or {}
        if not val.get("metrics") or self._first_iter % val["val_freq"] != 0:
            return
        for loader in self._val_loaders:
            if not self._model.was_validated(loader.dataset.opt["name"], self._first_iter):
                self._model.validation(loader, self._first_iter, self._tb_logger, val["save_img"])

    def _end_step(self, current_iter: int) -> None:
        if self._sampler.epoch != self._epoch:
            self._epoch, self._samples_seen = self._sampler.epoch, 0
        self._samples_seen += self._batch
        self._completed_iter = current_iter
        self._model.place_in_data = (self._epoch, self._samples_seen)
        self._within_step = False

    def _stop_if_asked(self, everywhere: bool = False) -> None:
        """Raise StopRequested if a signal came: to any process, where all of them ask together."""
        if everywhere and get_dist_info()[1] > 1:
            stop = torch.tensor(self.stopped_by is not None, dtype=torch.float32)
            stop = stop.to(self._model.device)
            torch.distributed.all_reduce(stop, torch.distributed.ReduceOp.MAX)
            self._agreed = bool(stop)
            if self._agreed:
                raise StopRequested
        elif self.stopped_by is not None:
            raise StopRequested

    def _stop(self) -> int:
        rank, world_size = get_dist_info()
        if world_size > 1 and not self._agreed:
            # Stopped during validation, which only this process does: the others have gone on to
            # ask whether to stop.
            with contextlib.suppress(StopRequested):
                self._stop_if_asked(everywhere=True)
        name = self.stopped_by or "a signal to another process"
        number = getattr(signal, self.stopped_by or "SIGTERM")
        if self._completed_iter > self._first_iter:
            self._model.save(self._epoch, self._completed_iter)
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
        folder = Path(self._model.opt["path"]["training_states"])
        if (folder / f"{self._completed_iter}.state").is_file():
            saved = f"saved iteration {self._completed_iter}"
        elif self._completed_iter == 0:
            saved = "nothing to save yet"
        else:
            saved = f"iteration {self._completed_iter} could not be saved"
        return f"stopped by {name}, {saved}; go on with: {command}"


def _same_everywhere(load_resume_state: Callable[[dict], dict | None]) -> Callable:
    """Refuse to resume where the processes do not find the same state."""

    @functools.wraps(load_resume_state)
    def load(opt: dict[str, Any]) -> dict[str, Any] | None:
        state = load_resume_state(opt)
        rank, world_size = get_dist_info()
        if world_size > 1:
            iterations = [None] * world_size
            torch.distributed.all_gather_object(iterations, state["iter"] if state else 0)
            if len(set(iterations)) > 1:
                raise UserError(
                    f"rank {rank} would go on from iteration {iterations[rank]}, others from "
                    f"{', '.join(str(i) for i in sorted(set(iterations) - {iterations[rank]}))}: "
                    "all machines must see the same experiments folder; start the command in one "
                    "that they share, or copy the experiment to each"
                )
        return state

    return load


def train(root_path: str) -> int:
    """Run BasicSR's training; see `TrainingRun.train`."""
    return TrainingRun().train(root_path)


def test(root_path: str, datasets: Sequence[str] | None = None) -> int:
    """Run BasicSR's testing, with bad images named.

    Args:
        root_path: Folder that results are written below.
        datasets: Names of the data sets to test on; all of the option file by default.

    Returns:
        0.

    Raises:
        UserError: An image or the checkpoint cannot be read.
    """

    def build(dataset_opt: dict[str, Any]) -> GuardedDataset:
        return GuardedDataset(build_dataset(dataset_opt), dataset_opt)

    def build_model(opt: dict[str, Any]) -> BaseModel:
        opt = copy.deepcopy(opt)
        return durable(MODEL_REGISTRY.get(opt["model_type"]))(opt)

    def parse(*args: Any, **kwargs: Any) -> tuple[dict[str, Any], Any]:
        opt, parsed = parse_options(*args, **kwargs)
        if datasets is not None:
            chosen, _ = choose_datasets(opt["datasets"], datasets)
            opt["datasets"] = {key: opt["datasets"][key] for key in chosen}
        return opt, parsed

    build_dataset, parse_options = basicsr.test.build_dataset, basicsr.test.parse_options
    with (
        _plain_errors(),
        _exchanged(basicsr.test, parse_options=parse, build_dataset=build, build_model=build_model),
    ):
        basicsr.test.test_pipeline(root_path)
    return 0


def durable(model_class: type[BaseModel]) -> type[BaseModel]:
    """The same model with the checkpoints of this package, leaving out steps that are not finite.

    Args:
        model_class: Any of BasicSR's or another plugin's models.

    Returns:
        Itself if it has them already, or a subclass of the same name.
    """
    if issubclass(model_class, Checkpointing):
        return model_class
    return type(model_class.__name__, (Checkpointing, FiniteOptimizers, model_class), {})


class _ForgivingLogger:
    """A TensorBoard writer that falls silent, with a line, where it cannot write.

    Args:
        writer: A SummaryWriter, which raises at each call after its thread has failed.
    """

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._failed = False

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*args: Any, **kwargs: Any) -> None:
            if self._failed:
                return
            try:
                getattr(self._writer, name)(*args, **kwargs)
            except OSError as error:
                self._failed = True
                get_root_logger().error(
                    f"TensorBoard: {error.strerror or error}. Nothing more is written for it until "
                    "the run is resumed; training goes on."
                )

        return call


def _forgiving(imwrite: Callable[..., None]) -> Callable[..., None]:
    """An image of the validation that cannot be written does not end the training."""

    @functools.wraps(imwrite)
    def write(img: Any, file_path: str, *args: Any, **kwargs: Any) -> None:
        try:
            imwrite(img, file_path, *args, **kwargs)
        except OSError as error:
            get_root_logger().error(f"{file_path} not written: {error.strerror or error}")

    return write


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Say in one line that a folder cannot be written to."""
    try:
        yield
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        raise UserError(f"{error.filename or 'the current folder'}: {error.strerror}") from error


@contextlib.contextmanager
def _exchanged(module: ModuleType, **names: Any) -> Iterator[None]:
    """Within it, names of a module mean something else."""
    originals = {name: getattr(module, name) for name in names}
    for name, value in names.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in originals.items():
            setattr(module, name, value)
