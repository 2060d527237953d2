"""BasicSR on newer versions of the libraries that it stands on."""

import functools
import inspect
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import wrapt

from esc_arch.errors import printable
from esc_arch.plugin.compat.patching import names_used, patch
from esc_arch.zoo.content import require_regular_file


def optimizers_beyond_adam(base_model: ModuleType) -> None:
    """BasicSR 1.4.2 builds Adam only, while published option files ask for AdamW and others.

    Replaced: there is nothing in its `get_optimizer` to build on.
    Upstream: master has grown a list of seven.
    """
    BaseModel = base_model.BaseModel

    def wrap(_: Callable) -> Callable:
        def get_optimizer(self: Any, optim_type: str, params: Any, lr: float, **kwargs: Any) -> Any:
            from esc_arch.plugin.models.optimizers import any_optimizer

            return any_optimizer(optim_type, params, lr, **kwargs)

        return get_optimizer

    if "AdamW" not in names_used(BaseModel.get_optimizer):
        patch(BaseModel, "get_optimizer", wrap)


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
        patch(degradations, "add_jpg_compression", wrap)


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

    patch(logger, "init_wandb_logger", wrap)


def files_loaded_without_code(module: ModuleType) -> None:
    """BasicSR's `torch.load` runs whatever code a file holds, below PyTorch 2.6.

    Its networks load files so too (SpyNet, VGG, FID's Inception, ...), and wait for ever where one
    is a pipe. As with newer PyTorch, tensors and plain containers are loaded, unless the call says
    otherwise, and of regular files alone. `load_url`, by which Inception is downloaded, still runs
    code by default.
    """
    import torch

    load_url = getattr(module, "load_url", None)
    if load_url is torch.hub.load_state_dict_from_url:
        module.load_url = functools.partial(load_url, weights_only=True)
    if getattr(module, "torch", None) is torch:
        module.torch = _SafelyLoadingTorch(torch)


class _SafelyLoadingTorch(wrapt.ObjectProxy):
    """The module torch, but for what `load` takes."""

    def load(self, f: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(f, str | os.PathLike) and os.path.exists(f):
            require_regular_file(Path(f))
        kwargs.setdefault("weights_only", True)
        try:
            return self.__wrapped__.load(f, *args, **kwargs)
        except pickle.UnpicklingError as error:
            # PyTorch's own message advises to load it all the same.
            code = re.search(r"GLOBAL (\S+)", str(error))
            what = f"asks for {printable(code[1])}" if code else "is damaged, or no such file"
            raise pickle.UnpicklingError(
                f"{printable(f)}: {what}; only tensors and plain containers are loaded"
            ) from error
