"""ConvFFN and ConvAttn on a GPU: the Triton kernels of this folder as operators of torch.library.

Forward only: where gradients are wanted, networks call the formulas; gradients of the operators
are the formulas', too.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from esc_arch.kernels.cpu import operators
from esc_arch.kernels.gpu.launches import DTYPES, Tile, tile_constants, tile_for
from esc_arch.kernels.operator import operator
from esc_arch.ops import convolutions
from esc_arch.ops.faults import conv_attn_layers_fault, conv_fault, conv_ffn_fault

LARGEST_CHANNELS = 128
LARGEST_SIDE = 7
# Within an image, kernels count in 32 bits.
LARGEST_IMAGE = 2**31 - 1


def _launch(
    kernel: Any, grid: tuple[int, ...], tile: Tile, constants: dict[str, Any], *args: Any
) -> None:
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    kernel[grid](*args, **constants, num_warps=tile.warps, num_stages=1)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def conv_ffn_runs(x: Tensor, proj: Tensor, proj_bias: Tensor, dwc: Tensor, *_: Tensor) -> bool:
    """Tell whether the kernels take a ConvFFN."""
    fits = x.shape[2] * x.shape[3] * max(x.shape[1], proj.shape[0]) <= LARGEST_IMAGE
    return fits and x.shape[1] <= LARGEST_CHANNELS and dwc.shape[-1] <= LARGEST_SIDE


def conv_attn_runs(x: Tensor, *_: Any) -> bool:
    """Tell whether the kernels take a ConvAttn."""
    return x[0].numel() <= LARGEST_IMAGE and x.shape[1] <= LARGEST_CHANNELS


def _check_conv_ffn(x: Tensor, *weights: Tensor) -> None:
    fault = conv_ffn_fault(x, *weights)
    if fault is None and not conv_ffn_runs(x, *weights):
        fault = f"x has shape {tuple(x.shape)} and dwc {tuple(weights[2].shape)}; there may be "
        fault += f"{LARGEST_CHANNELS} channels, kernels of {LARGEST_SIDE} and 2^31 hidden values"
    operators.check("esc::triton_conv_ffn", (x, *weights), fault, DTYPES)


@operator("esc::triton_conv_ffn", "cuda", "cpu")
def triton_conv_ffn(
    x: Tensor,
    proj: Tensor,
    proj_bias: Tensor,
    dwc: Tensor,
    dwc_bias: Tensor,
    aggr: Tensor,
    aggr_bias: Tensor,
) -> Tensor:
    """Compute `ops.conv_ffn`.

    Args:
        x: Features (B, C, H, W), C at most 128, all of float32, bfloat16 or float16.
        proj: Weights of a 1x1 convolution (hidden, C, 1, 1).
        proj_bias: (hidden,).
        dwc: Weights of a depthwise convolution (hidden, 1, k, k), k odd, at most 7, zero padding.
        dwc_bias: (hidden,).
        aggr: Weights of a 1x1 convolution (C, hidden, 1, 1).
        aggr_bias: (C,).

    Returns:
        (B, C, H, W), channels last.
    """
    from esc_arch.kernels.gpu.pixel_kernels import conv_ffn_kernel, project_kernel

    _check_conv_ffn(x, proj, proj_bias, dwc, dwc_bias, aggr, aggr_bias)
    x = _channels_last(x)
    batch, channels, height, width = x.shape
    hidden, pixels = proj.shape[0], batch * height * width
    tile = tile_for()
    constants = tile_constants(tile, x.dtype, channels, hidden, channels, dwc.shape[-1])
    h = x.new_empty(batch, height, width, hidden)
    args = x, proj.contiguous(), proj_bias.contiguous(), h, pixels
    _launch(project_kernel, (-(-pixels // tile.pixels),), tile, constants, *args)
    out = torch.empty_like(x, memory_format=torch.channels_last)
    weights = (weight.contiguous() for weight in (dwc, dwc_bias, aggr, aggr_bias))
    args = h, *weights, out, height, width
    _launch(conv_ffn_kernel, tile.grid(x), tile, constants, *args)
    return out


@torch.library.register_fake(triton_conv_ffn)
def _(x: Tensor, *weights: Tensor) -> Tensor:
    _check_conv_ffn(x, *weights)
    return torch.empty_like(x, memory_format=torch.channels_last)


def conv_attn_formula(
    x: Tensor, convolved: Tensor, kernels: Tensor, aggr: Tensor, aggr_bias: Tensor
) -> Tensor:
    """What `triton_conv_attn` computes, in torch's operations."""
    pdim = convolved.shape[1]
    own = convolutions.separable_dynamic_conv.__wrapped__(x[:, :pdim], kernels)
    return F.conv2d(torch.cat([convolved + own, x[:, pdim:]], dim=1), aggr, aggr_bias)


def _check_conv_attn(
    x: Tensor, convolved: Tensor, kernels: Tensor, aggr: Tensor, aggr_bias: Tensor
) -> None:
    if convolved.ndim != 4 or x.ndim != 4 or convolved[:, :0].shape != x[:, :0].shape:
        fault: str | None = f"convolved has shape {tuple(convolved.shape)}; it must be that of x "
        fault += f"{tuple(x.shape)}, with fewer channels"
    else:
        large_kernel = x.new_empty(convolved.shape[1], convolved.shape[1], 1, 1)
        fault = conv_attn_layers_fault(x, large_kernel, None, aggr, aggr_bias)
        fault = fault or conv_fault(convolved, large_kernel, kernels)
    if fault is None and not conv_attn_runs(x):
        fault = f"x has shape {tuple(x.shape)}; there may be {LARGEST_CHANNELS} channels and 2^31 "
        fault += "values of an image"
    operators.check(
        "esc::triton_conv_attn", (x, convolved, kernels, aggr, aggr_bias), fault, DTYPES
    )


@operator("esc::triton_conv_attn", "cuda", "cpu")
def triton_conv_attn(
    x: Tensor, convolved: Tensor, kernels: Tensor, aggr: Tensor, aggr_bias: Tensor
) -> Tensor:
    """Compute what follows the large kernel in `ops.conv_attn`.

    Args:
        x: Features (B, C, H, W), C at most 128, all of float32, bfloat16 or float16.
        convolved: The first pdim channels convolved with the large kernel (B, pdim, H, W).
        kernels: Each image's own kernels for these (B, pdim, 3, 3).
        aggr: Weights of the 1x1 convolution (C, C, 1, 1).
        aggr_bias: (C,).

    Returns:
        (B, C, H, W), channels last.
    """
    from esc_arch.kernels.gpu.pixel_kernels import conv_attn_kernel

    _check_conv_attn(x, convolved, kernels, aggr, aggr_bias)
    x, convolved = _channels_last(x), _channels_last(convolved)
    tile = tile_for()
    constants = tile_constants(tile, x.dtype, x.shape[1], 0, convolved.shape[1], 3)
    out = torch.empty_like(x, memory_format=torch.channels_last)
    weights = (weight.contiguous() for weight in (kernels, aggr, aggr_bias))
    args = x, convolved, *weights, out, *x.shape[-2:]
    _launch(conv_attn_kernel, tile.grid(x), tile, constants, *args)
    return out


@torch.library.register_fake(triton_conv_attn)
def _(x: Tensor, convolved: Tensor, *others: Tensor) -> Tensor:
    _check_conv_attn(x, convolved, *others)
    return torch.empty_like(x, memory_format=torch.channels_last)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _conv_ffn_backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    return operators.gradients(
        ctx, convolutions.conv_ffn_of_weights, None, ctx.saved_tensors, grad_out
    )


def _conv_attn_backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    return operators.gradients(ctx, conv_attn_formula, None, ctx.saved_tensors, grad_out)


torch.library.register_autograd(triton_conv_ffn, _conv_ffn_backward, setup_context=_save)
torch.library.register_autograd(triton_conv_attn, _conv_attn_backward, setup_context=_save)
