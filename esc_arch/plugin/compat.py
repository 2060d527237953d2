"""BasicSR 1.4.2 on today's libraries and without a GPU: one named patch a defect.

Each patch tells its defect by a feature of what is installed, never by a version, and leaves a
BasicSR without the defect (a fork, a git checkout) as it is. `apply` may be called any number of
times. BasicSR's functions are wrapped; where one must be replaced, its docstring says why.
"""

import contextlib
import copyreg
import functools
import inspect
import logging
import os
import subprocess
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

# Has no handler of its own, so that Python prints each warning as one line on stderr.
_log = logging.getLogger(__name__)

_PATCHED = "_patched_by_esc_arch"


def opencv_without_system_libraries() -> None:
    """BasicSR requires opencv-python, which does not load without the system's libGL and glib.

    Nothing here can mend that, but the message can say what does.

    Raises:
        ImportError: If OpenCV cannot be loaded.
    """
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"OpenCV cannot be loaded ({error}); where the system has no graphics libraries, "
            "'pip install --force-reinstall --no-deps opencv-python-headless' gives one that can"
        ) from error


def options_loaded_safely(options: ModuleType) -> None:
    """BasicSR reads option files with a YAML loader that builds any Python object they name."""
    import yaml

    def wrap(ordered_yaml: Callable) -> Callable:
        def wrapper() -> tuple[type, type]:
            loader, dumper = ordered_yaml()
            if issubclass(loader, yaml.constructor.SafeConstructor) and not issubclass(
                loader, yaml.constructor.FullConstructor
            ):
                return loader, dumper

            class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
                pass

            def ordered(loader: Loader, node: yaml.MappingNode) -> OrderedDict:
                return OrderedDict(loader.construct_pairs(node))

            Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, ordered)
            return Loader, dumper

        return wrapper

    _patch(options, "ordered_yaml", wrap)


def options_without_enough_gpus(options: ModuleType) -> None:
    """`num_gpu: 4` and `prefetch_mode: cuda` end in CUDA errors on a machine without those GPUs.

    With one GPU for `num_gpu: 4`, BasicSR would put four GPUs' batches on the one. Published
    option files have to run everywhere, so such values are lowered, each with a line of warning.
    """

    def wrap(parse_options: Callable) -> Callable:
        def wrapper(*args: Any, **kwargs: Any) -> tuple[dict, Any]:
            # BasicSR's own train.py, run as a script, has a second load_resume_state.
            if hasattr(sys.modules["__main__"], "load_resume_state"):
                resume_state_loading(sys.modules["__main__"])
            opt, parsed = parse_options(*args, **kwargs)
            _fit_to_gpus(opt)
            return opt, parsed

        return wrapper

    _patch(options, "parse_options", wrap)


def _fit_to_gpus(opt: dict) -> None:
    """Lower the options that ask for more GPUs than there are."""
    available = _gpu_count()
    warn = _log.warning if opt["rank"] == 0 else _log.debug
    # In distributed training every process has one GPU, and num_gpu only tells GPU from CPU.
    if opt["num_gpu"] > available and not (opt["dist"] and available):
        device = f"{available} GPU" if available else "the CPU"
        warn("num_gpu: %s, but %d found: using %s", opt["num_gpu"], available, device)
        opt["num_gpu"] = available
    if available:
        return
    for name, dataset in opt["datasets"].items():
        # Pinned memory only serves copies to a GPU.
        dataset["pin_memory"] = False
        if dataset.get("prefetch_mode") == "cuda":
            warn("datasets:%s:prefetch_mode: cuda needs a GPU: loading without it", name)
            dataset["prefetch_mode"] = None


def launchers_without_gpu(dist_util: ModuleType) -> None:
    """`--launcher pytorch` and `slurm` take a rank modulo the number of GPUs: zero without one.

    The CPU's backend, gloo, is used instead of nccl there.
    """

    def wrap(init_dist: Callable) -> Callable:
        def wrapper(backend: str, **kwargs: Any) -> None:
            if _gpu_count():
                init_dist(backend, **kwargs)
                return
            import torch

            def one_device() -> int:
                return 1

            def nothing(device: int) -> None:
                pass

            with _swapped(torch.cuda, device_count=one_device, set_device=nothing):
                init_dist("gloo", **kwargs)

        return wrapper

    for name in ("_init_dist_pytorch", "_init_dist_slurm"):
        if "device_count" in _names_used(getattr(dist_util, name)):
            _patch(dist_util, name, wrap)


def distributed_wrapper_without_gpu(base_model: ModuleType) -> None:
    """`BaseModel.model_to_device` asks for the current GPU to wrap a network for several processes.

    On the CPU, DistributedDataParallel takes no device.
    """
    BaseModel = base_model.BaseModel

    def wrap(model_to_device: Callable) -> Callable:
        def wrapper(self: Any, net: Any) -> Any:
            if self.device.type != "cpu" or not self.opt["dist"]:
                return model_to_device(self, net)
            from torch.nn.parallel import DistributedDataParallel

            find_unused = self.opt.get("find_unused_parameters", False)
            return DistributedDataParallel(net.to(self.device), find_unused_parameters=find_unused)

        return wrapper

    if "current_device" in _names_used(BaseModel.model_to_device):
        _patch(BaseModel, "model_to_device", wrap)


def real_esrgan_models_without_gpu(module: ModuleType) -> None:
    """The Real-ESRGAN models move their degradation modules and their pool with `.cuda()`.

    Without a GPU they belong on the CPU, where the rest of the model is.
    """

    def wrap(method: Callable) -> Callable:
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            with contextlib.nullcontext() if _gpu_count() else _cuda_calls_ignored():
                return method(self, *args, **kwargs)

        return wrapper

    models = [m for m in vars(module).values() if getattr(m, "__module__", "") == module.__name__]
    for model in models:
        for name in ("__init__", "_dequeue_and_enqueue"):
            if name in vars(model) and "cuda" in _names_used(getattr(model, name)):
                _patch(model, name, wrap)


@contextlib.contextmanager
def _cuda_calls_ignored() -> Iterator[None]:
    """Within it, `.cuda()` of tensors and modules returns them as they are."""
    import torch

    def unchanged(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self

    with _swapped(torch.Tensor, cuda=unchanged), _swapped(torch.nn.Module, cuda=unchanged):
        yield


def optimizers_beyond_adam(base_model: ModuleType) -> None:
    """BasicSR 1.4.2 builds Adam only, while published option files ask for AdamW and others.

    Replaced: there is nothing in its `get_optimizer` to build on.
    Upstream: master has grown a list of seven.
    """
    BaseModel = base_model.BaseModel

    def wrap(_: Callable) -> Callable:
        def get_optimizer(self: Any, optim_type: str, params: Any, lr: float, **kwargs: Any) -> Any:
            from esc_arch.plugin.models.optimizers import any_torch_optimizer

            return any_torch_optimizer(optim_type, params, lr, **kwargs)

        return get_optimizer

    if "AdamW" not in _names_used(BaseModel.get_optimizer):
        _patch(BaseModel, "get_optimizer", wrap)


def resume_state_loading(module: ModuleType) -> None:
    """`load_resume_state` needs a GPU, and looks for states below the current folder.

    Replaced: its map_location calls `.cuda()`, which without a GPU fails, and with one puts a
    second copy of the optimizer's state there (optimizers move theirs as they load it). With
    `--auto_resume` it looks into a relative `experiments`, so that BasicSR's train.py started from
    another folder silently begins anew.

    Args:
        module: `basicsr.train`, or `__main__` where BasicSR's train.py runs as a script.
    """
    original = module.load_resume_state
    names = (*_names_used(original), *original.__code__.co_consts)

    def wrap(_: Callable) -> Callable:
        def load_resume_state(opt: dict) -> dict | None:
            from basicsr.utils import check_resume

            from esc_arch.zoo.store import load_state

            if opt["auto_resume"]:
                opt["path"]["resume_state"] = _latest_state(opt)
            path = opt["path"].get("resume_state")
            if not path:
                return None
            state = load_state(path)
            check_resume(opt, state["iter"])
            return state

        return load_resume_state

    if "current_device" in names or "experiments" in names:
        _patch(module, "load_resume_state", wrap)


def _latest_state(opt: dict) -> str | None:
    """The state of the highest iteration that is whole, and its weights too."""
    from esc_arch.zoo.store import newest_whole_state

    ignored = opt["path"].get("ignore_resume_networks") or []
    networks = [
        key.replace("network_", "net_")
        for key in opt
        if key.startswith("network_") and key not in ignored
    ]
    folders = (Path(opt["path"][name]) for name in ("training_states", "models"))
    state, skipped = newest_whole_state(*folders, networks)
    if opt["rank"] == 0:
        for line in skipped:
            _log.warning("%s", line)
        if skipped and state is None:
            _log.warning("no state to resume from is whole: the run begins anew")
    return str(state) if state else None


def datasets_in_spawned_workers(data: ModuleType) -> None:
    """Data-loading workers that are spawned, not forked, import BasicSR without these patches.

    They are with `--launcher` (BasicSR sets it), on macOS and on Windows. A worker unpickles the
    data set, and with it BasicSR, first of all; so the pickle is made to import this package
    before that.
    """

    def wrap(build_dataset: Callable) -> Callable:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            dataset = build_dataset(*args, **kwargs)
            copyreg.pickle(type(dataset), _reduce_after_patches)
            return dataset

        return wrapper

    _patch(data, "build_dataset", wrap)


def _reduce_after_patches(dataset: Any) -> tuple:
    make, arguments, *state = dataset.__reduce_ex__(2)
    return (_call, (make, arguments), *state)


def _call(function: Callable, arguments: tuple) -> Any:
    """Unpickling looks this function up first, and so imports this package first."""
    return function(*arguments)


def lmdb_opened_twice(file_client: ModuleType) -> None:
    """lmdb 3 refuses to open an environment that its process has open already.

    BasicSR opens one a data set, so two data sets on one LMDB (one to train, one to validate)
    fail. They share one environment instead; it is read-only.
    """
    LmdbBackend = file_client.LmdbBackend

    # Values vanish with the last data set that uses them, as lmdb's own record of them does.
    environments: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
    lock = threading.Lock()

    def wrap(init: Callable) -> Callable:
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
            import lmdb

            def open_or_share(path: str, **options: Any) -> Any:
                key = os.path.realpath(path)
                try:
                    environment = lmdb.Environment(path, **options)
                except lmdb.Error:
                    environment = environments.get(key)
                    if environment is None:
                        raise
                if key not in environments:
                    _refuse_truncated_lmdb(environment, path)
                environments[key] = environment
                return environment

            with lock, _swapped(lmdb, open=open_or_share):
                init(self, *args, **kwargs)

        return wrapper

    _patch(LmdbBackend, "__init__", wrap)


def _refuse_truncated_lmdb(environment: Any, path: str) -> None:
    """Reading beyond the end of a mapped file kills the process, with no word about the file."""
    from esc_arch.errors import UserError

    file = f"{path}/data.mdb" if os.path.isdir(path) else path
    pages = environment.info()["last_pgno"] + 1
    expected, size = pages * environment.stat()["psize"], os.stat(file).st_size
    if size >= expected:
        return
    # Pages at the end that were never written may be free, so another process has to try.
    command = [sys.executable, "-c", _READ_WHOLE_LMDB, path]
    if subprocess.run(command, capture_output=True).returncode != 0:
        raise UserError(f"{path}: truncated: {size} of {expected} bytes; make it again")


_READ_WHOLE_LMDB = """
import os, sys, lmdb
path = sys.argv[1]
environment = lmdb.open(path, readonly=True, lock=False, subdir=os.path.isdir(path))
with environment.begin() as view:
    for key, value in view.cursor():
        pass
"""


def jpeg_quality_as_float(degradations: ModuleType) -> None:
    """BasicSR's JPEG degradation passes a NumPy float as quality, which OpenCV refuses today."""
    import cv2
    import numpy as np

    def wrap(add_jpg_compression: Callable) -> Callable:
        def wrapper(img: Any, quality: float = 90) -> Any:
            return add_jpg_compression(img, int(quality))

        return wrapper

    try:
        pixel = np.zeros((1, 1), np.uint8)
        cv2.imencode(".jpg", pixel, [int(cv2.IMWRITE_JPEG_QUALITY), np.float64(90)])
    except (cv2.error, TypeError):
        _patch(degradations, "add_jpg_compression", wrap)


def blur_of_channels_last_images(img_process_util: ModuleType) -> None:
    """`filter2D` views its padded input as contiguous, but DiffJPEG returns channels-last images.

    Padding and interpolating on the CPU keep that layout, so Real-ESRGAN's second blur fails.
    """
    import torch

    def wrap(filter2D: Callable) -> Callable:
        def wrapper(img: Any, kernel: Any) -> Any:
            return filter2D(img.contiguous(), kernel)

        return wrapper

    image = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
    try:
        img_process_util.filter2D(image, torch.zeros(2, 3, 3))
    except RuntimeError:
        _patch(img_process_util, "filter2D", wrap)


def fid_matrix_square_root(fid: ModuleType) -> None:
    """BasicSR's FID calls `scipy.linalg.sqrtm(..., disp=False)`; SciPy 1.18 removes `disp`."""
    from scipy import linalg

    if "disp" in inspect.signature(linalg.sqrtm).parameters or fid.linalg is not linalg:
        return

    def sqrtm(a: Any, disp: bool = True) -> Any:
        root = linalg.sqrtm(a)
        # With disp=False it returned an estimate of the error too, of which FID makes no use.
        return root if disp else (root, None)

    fid.linalg = SimpleNamespace(**{**vars(linalg), "sqrtm": sqrtm})


def wandb_generate_id(logger: ModuleType) -> None:
    """`init_wandb_logger` calls `wandb.util.generate_id`, which wandb has moved."""

    def wrap(init_wandb_logger: Callable) -> Callable:
        def wrapper(opt: dict) -> Any:
            import wandb

            if not hasattr(wandb.util, "generate_id"):
                from wandb.sdk.lib.runid import generate_id

                wandb.util.generate_id = generate_id
            return init_wandb_logger(opt)

        return wrapper

    _patch(logger, "init_wandb_logger", wrap)


def _patch(owner: Any, name: str, wrap: Callable[[Callable], Callable]) -> None:
    """Replace a function of a module, or a method of a class, by a wrapper around it; once.

    BasicSR imports functions by name, so each of its modules that has the function gets the
    wrapper.

    Args:
        owner: The module or class.
        name: The function's name in it.
        wrap: Makes the wrapper from the function.
    """
    original = getattr(owner, name)
    if hasattr(original, _PATCHED):
        return
    wrapper = functools.wraps(original)(wrap(original))
    setattr(wrapper, _PATCHED, True)
    setattr(owner, name, wrapper)
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] in ("basicsr", "__main__"):
            if vars(module).get(name) is original:
                setattr(module, name, wrapper)


def _names_used(function: Callable) -> tuple[str, ...]:
    """Names of the attributes and globals that a function's own code uses."""
    return inspect.unwrap(function).__code__.co_names


@contextlib.contextmanager
def _swapped(owner: Any, **attributes: Any) -> Iterator[None]:
    """Within it, attributes of a module or class have other values."""
    originals = {name: getattr(owner, name) for name in attributes}
    for name, value in attributes.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in originals.items():
            setattr(owner, name, value)


def _gpu_count() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
