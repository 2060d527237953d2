"""BasicSR without a GPU."""

import contextlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from esc_arch.plugin.compat.patching import gpu_count, names_used, patch, swapped


def launchers_without_gpu(dist_util: ModuleType) -> None:
    """`--launcher pytorch` and `slurm` take a rank modulo the number of GPUs: zero without one.

    The CPU's backend, gloo, is used instead of nccl there.
    """

    def wrap(init_dist: Callable) -> Callable:
        def wrapper(backend: str, **kwargs: Any) -> None:
            if gpu_count():
                init_dist(backend, **kwargs)
                return
            import torch

            def one_device() -> int:
                return 1

            def nothing(device: int) -> None:
                pass

            with swapped(torch.cuda, device_count=one_device, set_device=nothing):
                init_dist("gloo", **kwargs)

        return wrapper

    for name in ("_init_dist_pytorch", "_init_dist_slurm"):
        if "device_count" in names_used(getattr(dist_util, name)):
            patch(dist_util, name, wrap)


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

    if "current_device" in names_used(BaseModel.model_to_device):
        patch(BaseModel, "model_to_device", wrap)


def real_esrgan_models_without_gpu(module: ModuleType) -> None:
    """The Real-ESRGAN models move their degradation modules and their pool with `.cuda()`.

    Without a GPU they belong on the CPU, where the rest of the model is.
    """

    def wrap(method: Callable) -> Callable:
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            with contextlib.nullcontext() if gpu_count() else _cuda_calls_ignored():
                return method(self, *args, **kwargs)

        return wrapper

    models = [m for m in vars(module).values() if getattr(m, "__module__", "") == module.__name__]
    for model in models:
        for name in ("__init__", "_dequeue_and_enqueue"):
            if name in vars(model) and "cuda" in names_used(getattr(model, name)):
                patch(model, name, wrap)


@contextlib.contextmanager
def _cuda_calls_ignored() -> Iterator[None]:
    """Within it, `.cuda()` of tensors and modules returns them as they are."""
    import torch

    def unchanged(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self

    with swapped(torch.Tensor, cuda=unchanged), swapped(torch.nn.Module, cuda=unchanged):
        yield


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
        patch(img_process_util, "filter2D", wrap)
