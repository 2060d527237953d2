"""Registers the Triton kernels, and falls back where they fail their trials."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from esc_arch.kernels import choose, counts
from esc_arch.kernels.gpu import launches
from esc_arch.kernels.gpu.launches import DTYPES
from esc_arch.kernels.gpu.layouts import channels_last
from esc_arch.kernels.gpu.trials import TRIALS, Trial, works
from esc_arch.kernels.gpu.triton_conv_attn import (
    conv_attn_formula,
    conv_attn_runs,
    triton_conv_attn,
)
from esc_arch.kernels.gpu.triton_conv_ffn import conv_ffn_runs, triton_conv_ffn
from esc_arch.kernels.gpu.window_attention import BIAS_VALUES, can_run, triton_window_attention
from esc_arch.ops import attention, convolutions
from esc_arch.ops.autocast import without_autocast

# Height and width of features that kernels of layers are tried on: parts of two tiles.
TRIED = 5, 18
DEVICES = ("cuda", "cpu") if launches.INTERPRETED else ("cuda",)


def attend(q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int) -> Tensor:
    """Compute `ops.feature_attention` by Triton."""
    with without_autocast(q.device.type):
        return triton_window_attention(q, k, v, bias_table, window_size)[0]


def attention_runs(x: Tensor, bias_table: Tensor, window_size: int, dtype: torch.dtype) -> bool:
    """Tell whether Triton computes attention here; what was registered before it else does."""
    if not can_run(x, bias_table, window_size):
        return False
    # A kernel is compiled for images that fill their windows, and for those that do not, where a
    # question would give a graph for each.
    filled = not torch.compiler.is_compiling() and all(s % window_size == 0 for s in x.shape[2:])
    # The formula needs the biases of all pairs of pixels: of large windows, not of all heads.
    heads, biases = bias_table.shape
    tried = max(1, min(heads, BIAS_VALUES // window_size**4))
    channels = 3 * tried * (x.shape[1] // heads)
    shapes = (1, channels, window_size, window_size + (not filled)), (tried, biases)
    gradients = torch.is_grad_enabled()
    return works("attention", x.device, dtype, gradients, *shapes, window_size=window_size)


def conv_ffn(x: Tensor, *weights: Tensor) -> Tensor:
    """Compute `ops.conv_ffn` by Triton, or by its formula."""
    kernel: Any = triton_conv_ffn
    shapes = (1, x.shape[1], *TRIED), *(weight.shape for weight in weights)
    right = _layer_works("conv_ffn", (x, *weights), *shapes)
    return (kernel if right else convolutions.conv_ffn_of_weights)(x, *weights)


def conv_attn(x: Tensor, large_kernel: Tensor, conv: Any, aggr: Tensor, bias: Tensor) -> Tensor:
    """Compute `ops.conv_attn`: the large kernel by torch, the rest by Triton, or by its formula."""
    part = x[:, : large_kernel.shape[0]]
    kernels = conv.kernels(part).to(x.dtype)
    convolved = torch.nn.functional.conv2d(
        part, large_kernel, padding=(large_kernel.shape[-1] // 2,) * 2
    )
    kernel: Any = triton_conv_attn
    args = x, convolved, kernels, aggr, bias
    shapes = *((1, each.shape[1], *TRIED) for each in (x, convolved)), (1, *kernels.shape[1:])
    right = _layer_works("conv_attn", args, *shapes, aggr.shape, bias.shape)
    return (kernel if right else conv_attn_formula)(*args)


def _layer_works(name: str, args: Sequence[Tensor], *shapes: Sequence[int]) -> bool:
    gradients = torch.is_grad_enabled() and any(arg.requires_grad for arg in args)
    return works(name, args[0].device, args[0].dtype, gradients, *shapes)


def attention_trial(qkv: Tensor, bias_table: Tensor, window_size: int) -> Tensor:
    """What is tried of attention: queries, keys and values lie as `to_qkv` leaves them."""
    q, k, v = channels_last(qkv).chunk(3, dim=1)
    return triton_window_attention(q, k, v, bias_table, window_size)[0]


def attention_formula(qkv: Tensor, bias_table: Tensor, window_size: int) -> Tensor:
    """What it must compute."""
    args = *qkv.chunk(3, dim=1), bias_table, window_size
    return attention.attend_in_windows(attention.BACKENDS["Chunked"], *args)


TRIALS["attention"] = Trial(attention_trial, attention_formula, "'Auto' is Flex")
TRIALS["conv_ffn"] = Trial(triton_conv_ffn, convolutions.conv_ffn_of_weights)
TRIALS["conv_attn"] = Trial(triton_conv_attn, conv_attn_formula)

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
