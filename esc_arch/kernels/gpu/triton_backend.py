"""Registers the Triton kernels, and falls back where they fail.

Each is tried once on a device, on a small input, and compared with its formula.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from esc_arch.kernels import choose
from esc_arch.kernels.gpu import launches, pixel_layers
from esc_arch.kernels.gpu.launches import DTYPES
from esc_arch.kernels.gpu.window_attention import can_run, triton_window_attention
from esc_arch.ops import attention, convolutions
from esc_arch.ops.autocast import without_autocast

DEVICES = ("cuda", "cpu") if launches.INTERPRETED else ("cuda",)


def attend(q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int) -> Tensor:
    """Compute `ops.feature_attention` by Triton, or by what runs without it."""
    if not works("attention", q):
        return attention.attend_in_windows(attention.flex_or_sdpa, q, k, v, bias_table, window_size)
    with without_autocast(q.device.type):
        return triton_window_attention(q, k, v, bias_table, window_size)[0]


def conv_ffn(x: Tensor, *weights: Tensor) -> Tensor:
    """Compute `ops.conv_ffn` by Triton, or by its formula."""
    kernel: Any = pixel_layers.triton_conv_ffn
    return (kernel if works("conv_ffn", x) else convolutions.conv_ffn_of_weights)(x, *weights)


def conv_attn(x: Tensor, large_kernel: Tensor, conv: Any, aggr: Tensor, bias: Tensor) -> Tensor:
    """Compute `ops.conv_attn`: the large kernel by torch, the rest by Triton, or by its formula."""
    part = x[:, : large_kernel.shape[0]]
    kernels = conv.kernels(part).to(x.dtype)
    convolved = torch.nn.functional.conv2d(
        part, large_kernel, padding=(large_kernel.shape[-1] // 2,) * 2
    )
    kernel: Any = pixel_layers.triton_conv_attn
    run = kernel if works("conv_attn", x) else pixel_layers.conv_attn_formula
    return run(x, convolved, kernels, aggr, bias)


def works(name: str, x: Tensor) -> bool:
    """Tell whether a kernel works where a tensor is. Graphs do not ask."""
    return torch.compiler.is_compiling() or _works(name, x.device)


@functools.cache
def _works(name: str, device: torch.device) -> bool:
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad(), without_autocast(device.type):
            result, formula = _TRIALS[name](
                lambda *shape: torch.rand(*shape, generator=generator).to(device)
            )
        wrong = not torch.allclose(result, formula, atol=0.02, rtol=0.02)
        reason = "its result is wrong" if wrong else None
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # Compilers and drivers fail in too many ways to name.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if reason is not None:
        instead = "Flex runs" if name == "attention" else "torch's own operations run"
        warnings.warn(
            f"the Triton kernel of {name} cannot run here ({reason}); {instead} instead",
            stacklevel=2,
        )
    return reason is None


Random = Callable[..., Tensor]


def _try_attention(random: Random) -> tuple[Tensor, Tensor]:
    q, k, v, table = random(1, 16, 4, 4), random(1, 16, 4, 4), random(1, 16, 4, 4), random(1, 49)
    formula = attention.attend_in_windows(attention.BACKENDS["Naive"], q, k, v, table, 4)
    return triton_window_attention(q, k, v, table, 4)[0], formula


def _try_conv_ffn(random: Random) -> tuple[Tensor, Tensor]:
    x, proj, dwc, aggr = (
        random(*shape) for shape in ((1, 16, 4, 4), (16, 16, 1, 1), (16, 1, 3, 3), (16, 16, 1, 1))
    )
    args = x, proj, random(16), dwc, random(16), aggr, random(16)
    return pixel_layers.triton_conv_ffn(*args), convolutions.conv_ffn_of_weights(*args)


def _try_conv_attn(random: Random) -> tuple[Tensor, Tensor]:
    args = random(1, 16, 4, 4), random(1, 8, 4, 4), random(1, 8, 3, 3), random(16, 16, 1, 1)
    args += (random(16),)
    return pixel_layers.triton_conv_attn(*args), pixel_layers.conv_attn_formula(*args)


_TRIALS: dict[str, Callable[[Random], tuple[Tensor, Tensor]]] = {
    "attention": _try_attention,
    "conv_ffn": _try_conv_ffn,
    "conv_attn": _try_conv_attn,
}

for device in DEVICES:
    choose.register("feature_attention", device, name="Triton", dtypes=DTYPES, takes=can_run)(
        attend
    )
    for operation, kernel, takes in (
        ("conv_ffn", conv_ffn, pixel_layers.conv_ffn_runs),
        ("conv_attn", conv_attn, pixel_layers.conv_attn_runs),
    ):
        choose.register(
            operation, device, name="Triton", dtypes=DTYPES, takes=takes, differentiable=False
        )(kernel)
