"""ConvAttn after its large kernel on a GPU: Triton kernels as operators of torch.library."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from esc_arch.kernels.cpu import operators
from esc_arch.kernels.gpu import launches
from esc_arch.kernels.gpu.layouts import channels_last, pixel_rows
from esc_arch.kernels.operator import operator
from esc_arch.ops import convolutions
from esc_arch.ops.faults import conv_attn_layers_fault, conv_fault, same_shape_fault


def conv_attn_runs(x: Tensor, *_: Any) -> bool:
    """Tell whether the kernels take a ConvAttn."""
    batch, channels, height, width = x.shape
    # Images are along the second side of the grid.
    fits = channels * height * width <= launches.LARGEST_IMAGE and batch <= launches.LARGEST_SIDE
    return fits and channels <= launches.LARGEST_CHANNELS


def conv_attn_formula(
    x: Tensor, convolved: Tensor, kernels: Tensor, aggr: Tensor, aggr_bias: Tensor
) -> Tensor:
    """What `triton_conv_attn` computes, in torch's operations."""
    pdim = convolved.shape[1]
    own = convolutions.separable_dynamic_conv.__wrapped__(x[:, :pdim], kernels)
    return F.conv2d(torch.cat([convolved + own, x[:, pdim:]], dim=1), aggr, aggr_bias)


def _fault(
    x: Tensor, convolved: Tensor, kernels: Tensor, aggr: Tensor, aggr_bias: Tensor
) -> str | None:
    if convolved.ndim != 4 or x.ndim != 4 or convolved[:, :0].shape != x[:, :0].shape:
        fault: str | None = f"convolved has shape {tuple(convolved.shape)}; it must be that of x "
        fault += f"{tuple(x.shape)}, with fewer channels"
    else:
        large_kernel = x.new_empty(convolved.shape[1], convolved.shape[1], 1, 1)
        fault = conv_attn_layers_fault(x, large_kernel, None, aggr, aggr_bias)
        fault = fault or conv_fault(convolved, large_kernel, kernels)
    if fault is None and not conv_attn_runs(x):
        fault = f"x has shape {tuple(x.shape)}; there may be {launches.LARGEST_CHANNELS} channels "
        fault += f"and 2^31 values of an image, and {launches.LARGEST_SIDE} images"
    return fault


def _check(x: Tensor, *others: Tensor) -> None:
    fault = _fault(x, *others)
    operators.check("esc::triton_conv_attn", (x, *others), fault, launches.DTYPES)


def _check_backward(grad_out: Tensor, x: Tensor, *others: Tensor) -> None:
    fault = _fault(x, *others) or same_shape_fault("grad_out", grad_out, x)
    tensors = grad_out, x, *others
    operators.check("esc::triton_conv_attn_backward", tensors, fault, launches.DTYPES)


@operator("esc::triton_conv_attn", "cuda", "cpu", see_through=launches.SEEN_THROUGH)
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

    _check(x, convolved, kernels, aggr, aggr_bias)
    x, convolved = channels_last(x), channels_last(convolved)
    tile, constants = _launch_of(x, convolved)
    out = torch.empty_like(x, memory_format=torch.channels_last)
    weights = (weight.contiguous() for weight in (kernels, aggr, aggr_bias))
    args = x, convolved, *weights, out, *x.shape[2:]
    launches.launch(conv_attn_kernel, tile.grid(x), constants, *args)
    return out


def _launch_of(
    x: Tensor, convolved: Tensor, gradients: bool = False
) -> tuple[launches.Tile, dict[str, Any]]:
    tile = launches.tile_for(x.dtype, gradients)
    sizes = x.shape[1], 0, convolved.shape[1], 3
    return tile, launches.tile_constants(tile, x.dtype, *sizes)


@torch.library.register_fake(triton_conv_attn)
def _(x: Tensor, convolved: Tensor, *others: Tensor) -> Tensor:
    _check(x, convolved, *others)
    return torch.empty_like(x, memory_format=torch.channels_last)


@operator(
    "esc::triton_conv_attn_backward", "cuda", "cpu", see_through=launches.GRADIENTS_SEEN_THROUGH
)
def triton_conv_attn_backward(
    grad_out: Tensor,
    x: Tensor,
    convolved: Tensor,
    kernels: Tensor,
    aggr: Tensor,
    aggr_bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of `triton_conv_attn`'s arguments, shapes as there."""
    from esc_arch.kernels.gpu.pixel_gradients import conv_attn_gradient_kernel

    _check_backward(grad_out, x, convolved, kernels, aggr, aggr_bias)
    x, convolved, grad_out = (channels_last(each) for each in (x, convolved, grad_out))
    tile, constants = _launch_of(x, convolved, gradients=True)
    tiles, batch = tile.grid(x)
    pdim = convolved.shape[1]
    grad_x, grad_convolved, mixed = (
        torch.empty_like(each, memory_format=torch.channels_last)
        for each in (x, convolved, convolved)
    )
    parts = x.new_empty((batch, tiles, pdim, 9), dtype=torch.float32)
    args = x, convolved, kernels.contiguous(), aggr.contiguous(), grad_out
    results = grad_x, grad_convolved, mixed, parts
    launches.launch(
        conv_attn_gradient_kernel, (tiles, batch), constants, *args, *results, *x.shape[2:]
    )
    grad_kernels = parts.sum(1).view(kernels.shape).to(kernels.dtype)
    rows = pixel_rows(grad_out)
    given = pixel_rows(mixed), pixel_rows(x)[:, pdim:]
    grad_aggr = torch.cat([rows.mT @ each for each in given], dim=1).view(aggr.shape)
    grad_bias = rows.sum(0, dtype=torch.float32).to(aggr_bias.dtype)
    return grad_x, grad_convolved, grad_kernels, grad_aggr, grad_bias


@torch.library.register_fake(triton_conv_attn_backward)
def _(
    grad_out: Tensor, x: Tensor, convolved: Tensor, *weights: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _check_backward(grad_out, x, convolved, *weights)
    features = (
        torch.empty_like(each, memory_format=torch.channels_last) for each in (x, convolved)
    )
    return *features, *(
        torch.empty_like(weight, memory_format=torch.contiguous_format) for weight in weights
    )


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    return operators.gradients(
        ctx, conv_attn_formula, triton_conv_attn_backward, ctx.saved_tensors, grad_out
    )


torch.library.register_autograd(triton_conv_attn, _backward, setup_context=_save)
