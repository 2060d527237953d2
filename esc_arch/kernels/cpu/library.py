"""The compiled functions of csrc/, and what their callers share.

They are compiled when the package is installed, where there is a C++ compiler; without one the
package works the same through torch's own operations, only slower.
"""

import ctypes
import functools
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from esc_arch.kernels.cpu import sources

# What a thread should at least have to do, in multiply-adds, to be worth waking.
MULTIPLY_ADDS_PER_THREAD = 2**18
# Where channels are read and written in place they must fill the widest vectors.
MULTIPLE = 16


class CTensor(ctypes.Structure):
    """A tensor of four dimensions."""

    _fields_ = [("data", ctypes.c_void_p), ("strides", ctypes.c_int64 * 4)]

    @classmethod
    def of(cls, tensor: Tensor) -> "CTensor":
        """Describe a tensor, which must outlive this."""
        return cls(tensor.data_ptr(), (ctypes.c_int64 * 4)(*tensor.stride()))


class CTiles(ctypes.Structure):
    """A batch of images, cut into tiles."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("batch", "channels", "height", "width", "tile_height", "tile_width")
    ]

    @classmethod
    def of(cls, images: Tensor, height: int, width: int) -> "CTiles":
        """Cut images (B, C, H, W) into what one task computes at a time."""
        return cls(*images.shape, height, width)


class CWindows(ctypes.Structure):
    """Feature maps (B, heads * D, H, W), cut into windows."""

    _fields_ = [
        (name, ctypes.c_int64) for name in ("batch", "heads", "dim", "height", "width", "size")
    ]


class CConvFfn(ctypes.Structure):
    """Weights of a ConvFFN, see csrc/shapes.h."""

    _fields_ = [
        *[
            (name, ctypes.c_void_p)
            for name in (
                *("proj", "proj_bias", "dwc", "dwc_bias", "aggr", "aggr_bias"),
                *("proj_turned", "dwc_turned", "aggr_turned", "proj_tiles", "aggr_tiles"),
            )
        ],
        ("hidden", ctypes.c_int64),
        ("kernel_size", ctypes.c_int64),
    ]


@functools.cache
def library() -> ctypes.CDLL | None:
    """Load the functions, or return None if they were not built, or from other sources."""
    path = os.environ.get("ESC_CPU_KERNELS") or _installed()
    if path is None:
        return None
    try:
        library = ctypes.CDLL(path)
    except OSError as error:  # Built elsewhere.
        _say_unused(path, str(error))
        return None
    if not _is_made_for_this(library):
        _say_unused(path, "it was compiled from other sources; install the package again")
        return None
    library.esc_use_openmp(_torchs_openmp())
    return library


def _installed() -> str | None:
    found = importlib.util.find_spec("esc_arch.kernels.cpu._cpu_kernels")
    return found.origin if found else None


def _say_unused(path: str, reason: str) -> None:
    warnings.warn(
        f"the CPU kernels {path} are not used, torch's operations run instead: {reason}",
        stacklevel=3,
    )


def _is_made_for_this(library: ctypes.CDLL) -> bool:
    """Tell whether a library has the structures below and was compiled from csrc/ as it is now.

    One that was built in place stays when the sources change.
    """
    try:
        library.esc_sources.restype = ctypes.c_char_p
        library.esc_structures.restype = ctypes.POINTER(ctypes.c_int)
        compiled_from = library.esc_sources().decode()
        sizes = library.esc_structures()[:4]
        _declare(library)
    except AttributeError:  # It lacks a function.
        return False
    expected = [ctypes.sizeof(structure) for structure in (CTensor, CTiles, CWindows, CConvFfn)]
    return sizes == expected and sources.digest() in ("", compiled_from)


def _declare(library: ctypes.CDLL) -> None:
    pointer, count, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    tensor, tiles = ctypes.POINTER(CTensor), ctypes.POINTER(CTiles)
    windows = ctypes.POINTER(CWindows)
    attention = [count, count, windows] + [tensor] * 3 + [pointer, tensor, pointer]
    conv_ffn = [count, count, tiles, tensor, ctypes.POINTER(CConvFfn)]
    convolution = [count, count, size, tiles, tensor]
    for name, arguments in {
        "window_attention_forward": attention,
        "amx_window_attention_forward": attention[1:],
        "window_attention_backward": [*attention, *[tensor] * 4, pointer],
        "amx_window_attention_backward": [*attention[1:], *[tensor] * 4, pointer],
        "convolve": [*convolution, pointer, pointer, tensor],
        "convolve_backward": [*convolution, tensor, pointer, pointer],
        "conv_attn": [*convolution, size, *[pointer] * 4, tensor, tensor],
        "amx_conv_attn": [*convolution[1:], *[pointer] * 3, tensor, tensor],
        "convolve_depthwise": [*convolution, pointer, tensor],
        "convolve_depthwise_backward": [*convolution, tensor, pointer],
        "conv_ffn": [*conv_ffn, tensor],
        "amx_conv_ffn": [*conv_ffn[1:], tensor],
        "conv_ffn_backward": [*conv_ffn, tensor, tensor, pointer],
    }.items():
        function = getattr(library, f"esc_{name}")
        function.argtypes = arguments
        function.restype = ctypes.c_int
        function.errcheck = _check
    library.esc_use_openmp.argtypes = [pointer]
    library.esc_use_openmp.restype = None


def _torchs_openmp() -> ctypes.c_void_p | None:
    """Return the function by which torch's own threads can be had, if it is known by this name.

    They go on spinning for some milliseconds after each operation of torch, and would take that
    time away from others.
    """
    suffix = "dylib" if sys.platform == "darwin" else "so"
    try:
        torchs = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"libtorch_cpu.{suffix}"))
        return ctypes.cast(torchs.GOMP_parallel, ctypes.c_void_p)
    except (OSError, AttributeError):
        return None


def _check(result: int, function: Any, arguments: tuple[Any, ...]) -> None:
    if result:
        raise MemoryError(f"not enough memory for {function.__name__}")


def is_built() -> bool:
    """Tell whether the functions were compiled when the package was installed, and fit it."""
    return library() is not None


def in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function on float32 take bfloat16 as well, which it returns then."""

    @functools.wraps(function)
    def widened(*args: Any) -> Any:
        dtype = args[0].dtype
        if dtype == torch.float32:
            return function(*args)
        out = function(*(x.float() if isinstance(x, Tensor) else x for x in args))
        return out.to(dtype) if isinstance(out, Tensor) else tuple(x.to(dtype) for x in out)

    return widened


@functools.cache
def has_amx() -> bool:
    """Tell whether there are functions in bfloat16 that this machine's matrix units run."""
    return is_built() and bool(library().esc_amx_is_usable())


def note_on_bfloat16(device: torch.device) -> str | None:
    """Return a line to say where bfloat16 is asked for and brings next to nothing, else None.

    Without matrix units the kernels compute in float32, and torch's convolutions gain little: on an
    AMD EPYC (Zen 4) inference took 1.62 s for 1.57 in float32, a training step 0.85 for 0.94.
    """
    if device.type != "cpu" or not is_built() or has_amx():
        return None
    return "bfloat16 is no faster than float32 on this processor, which has no AMX, and less exact"


def operand_tiles(matrices: Tensor) -> Tensor:
    """Pack right operands of products for the functions in bfloat16.

    Args:
        matrices: (..., depth, columns).

    Returns:
        (..., columns / 16, depth / 32, 16, 16, 2) in bfloat16, both rounded up: pairs of rows lie
        together.
    """
    depth, columns = matrices.shape[-2:]
    padded = F.pad(matrices, (0, -columns % 16, 0, -depth % 32))
    tiles = padded.unflatten(-1, (-1, 16)).unflatten(-3, (-1, 16, 2))
    first = tiles.ndim - 5  # (..., depth / 32, 16, 2, columns / 16, 16)
    order = (first + 3, first, first + 1, first + 4, first + 2)
    return tiles.permute(*range(first), *order).to(torch.bfloat16).contiguous()


def vector_width() -> int:
    """Return how many floats the vectors have that the functions use on this machine."""
    return library().esc_widest()


def threads_for(multiply_adds: int) -> int:
    """Return how many threads, of those that torch may use, this much work is worth."""
    return max(1, min(torch.get_num_threads(), multiply_adds // MULTIPLY_ADDS_PER_THREAD))


def channels_last(x: Tensor) -> Tensor:
    """Return `x` with the channels of a pixel side by side; its pixels may lie anywhere."""
    return x if x.stride(1) == 1 else x.contiguous(memory_format=torch.channels_last)
