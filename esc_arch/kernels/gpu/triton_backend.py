"""Registers the Triton kernels, and falls back where they fail.

Each is tried once on a device, on a small input, and compared with its formula; its gradients
before they are wanted first.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from esc_arch.errors import UserError
from esc_arch.kernels import choose, counts
from esc_arch.kernels.gpu import launches
from esc_arch.kernels.gpu.launches import DTYPES
from esc_arch.kernels.gpu.triton_conv_attn import (
    conv_attn_formula,
    conv_attn_runs,
    triton_conv_attn,
)
from esc_arch.kernels.gpu.triton_conv_ffn import conv_ffn_runs, triton_conv_ffn
from esc_arch.kernels.gpu.window_attention import can_run, triton_window_attention
from esc_arch.ops import attention, convolutions
from esc_arch.ops.autocast import without_autocast

DEVICES = ("cuda", "cpu") if launches.INTERPRETED else ("cuda",)


def attend(q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int) -> Tensor:
    """Compute `ops.feature_attention` by Triton."""
    with without_autocast(q.device.type):
        return triton_window_attention(q, k, v, bias_table, window_size)[0]


def attention_runs(x: Tensor, bias_table: Tensor, window_size: int) -> bool:
    """Tell whether Triton computes attention here; what was registered before it else does."""
    return can_run(x, bias_table, window_size) and works("attention", x, bias_table)


def conv_ffn(x: Tensor, *weights: Tensor) -> Tensor:
    """Compute `ops.conv_ffn` by Triton, or by its formula."""
    kernel: Any = triton_conv_ffn
    run = kernel if works("conv_ffn", x, *weights) else convolutions.conv_ffn_of_weights
    return run(x, *weights)


def conv_attn(x: Tensor, large_kernel: Tensor, conv: Any, aggr: Tensor, bias: Tensor) -> Tensor:
    """Compute `ops.conv_attn`: the large kernel by torch, the rest by Triton, or by its formula."""
    part = x[:, : large_kernel.shape[0]]
    kernels = conv.kernels(part).to(x.dtype)
    convolved = torch.nn.functional.conv2d(
        part, large_kernel, padding=(large_kernel.shape[-1] // 2,) * 2
    )
    kernel: Any = triton_conv_attn
    args = x, convolved, kernels, aggr, bias
    return (kernel if works("conv_attn", *args) else conv_attn_formula)(*args)


def works(name: str, *args: Tensor) -> bool:
    """Tell whether a kernel works where its arguments are. Graphs do not ask."""
    if torch.compiler.is_compiling():
        return True
    gradients = torch.is_grad_enabled() and any(arg.requires_grad for arg in args)
    return _works(name, args[0].device, gradients)


@functools.cache
def _works(name: str, device: torch.device, gradients: bool) -> bool:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        # A trial waits for the GPU, which would end the recording, and then seem to fail.
        raise UserError("a network must be called once before a CUDA graph of it is recorded")
    generator = torch.Generator().manual_seed(0)
    kernel, formula, *shapes = _TRIALS[name]
    inputs = [torch.rand(shape, generator=generator).to(device) for shape in shapes]
    try:
        with torch.set_grad_enabled(gradients), without_autocast(device.type):
            pairs = zip(_run(kernel, inputs), _run(formula, inputs), strict=True)
        wrong = not all(torch.allclose(*pair, atol=0.02, rtol=0.02) for pair in pairs)
        reason = "its result is wrong" if wrong else None
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # Compilers and drivers fail in too many ways to name.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if reason is not None:
        instead = "'Auto' is Flex" if name == "attention" else "torch's own operations run"
        what = f"the Triton kernel of {name}" + (" with its gradients" if gradients else "")
        warnings.warn(f"{what} cannot run here ({reason}); {instead} instead", stacklevel=2)
    return reason is None


def _run(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """A result and, where gradients are recorded, those of all inputs."""
    leaves = [x.clone().requires_grad_(torch.is_grad_enabled()) for x in inputs]
    result = function(*leaves)
    if not result.requires_grad:
        return [result]
    return [result.detach(), *torch.autograd.grad(result.sum(), leaves)]


def _attention_kernel(*args: Tensor) -> Tensor:
    return triton_window_attention(*args, 4)[0]


def _attention_formula(*args: Tensor) -> Tensor:
    return attention.attend_in_windows(attention.BACKENDS["Naive"], *args, 4)


# Of each: the kernel, its formula, and the shapes of what they are given.
_FEATURES = (1, 16, 4, 4)
_TRIALS: dict[str, tuple[Any, ...]] = {
    "attention": (_attention_kernel, _attention_formula, *3 * (_FEATURES,), (1, 49)),
    "conv_ffn": (
        *(triton_conv_ffn, convolutions.conv_ffn_of_weights, _FEATURES),
        *((16, 16, 1, 1), (16,), (16, 1, 3, 3), (16,), (16, 16, 1, 1), (16,)),
    ),
    "conv_attn": (
        *(triton_conv_attn, conv_attn_formula, _FEATURES),
        *((1, 8, 4, 4), (1, 8, 3, 3), (16, 16, 1, 1), (16,)),
    ),
}

for device in DEVICES:
    for operation, kernel, takes in (
        ("feature_attention", attend, attention_runs),
        ("conv_ffn", conv_ffn, conv_ffn_runs),
        ("conv_attn", conv_attn, conv_attn_runs),
    ):
        choose.register(operation, device, name="Triton", dtypes=DTYPES, takes=takes)(kernel)

counts.register(
    {
        "triton_window_attention": counts.window_attention,
        "triton_window_attention_backward": counts.window_attention_backward,
        "triton_conv_ffn": counts.conv_ffn,
        "triton_conv_ffn_backward": counts.conv_ffn_backward,
        "triton_conv_attn": counts.rest_of_conv_attn,
        "triton_conv_attn_backward": counts.rest_of_conv_attn_backward,
    }
)
