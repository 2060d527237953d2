"""The ConvFFN on a GPU: Triton kernels, forward and backward, as operators of torch.library."""

from typing import Any

import torch
from torch import Tensor

from esc_arch.kernels.cpu import operators
from esc_arch.kernels.gpu import launches
from esc_arch.kernels.gpu.layouts import channels_last, pixel_rows
from esc_arch.kernels.operator import operator
from esc_arch.ops.convolutions import conv_ffn_of_weights
from esc_arch.ops.faults import conv_ffn_fault, same_shape_fault

LARGEST_KERNEL = 7


def conv_ffn_runs(x: Tensor, proj: Tensor, proj_bias: Tensor, dwc: Tensor, *_: Tensor) -> bool:
    """Tell whether the kernels take a ConvFFN."""
    batch, channels, height, width = x.shape
    # Images are along the second side of the grid.
    fits = height * width * max(channels, proj.shape[0]) <= launches.LARGEST_IMAGE
    fits = fits and batch <= launches.LARGEST_SIDE
    return fits and channels <= launches.LARGEST_CHANNELS and dwc.shape[-1] <= LARGEST_KERNEL


def _fault(x: Tensor, *weights: Tensor) -> str | None:
    fault = conv_ffn_fault(x, *weights)
    if fault is None and not conv_ffn_runs(x, *weights):
        fault = f"x has shape {tuple(x.shape)} and dwc {tuple(weights[2].shape)}; there may be "
        fault += f"{launches.LARGEST_CHANNELS} channels, kernels of {LARGEST_KERNEL}, 2^31 hidden "
        fault += f"values of an image and {launches.LARGEST_SIDE} images"
    return fault


def _check(x: Tensor, *weights: Tensor) -> None:
    fault = _fault(x, *weights)
    operators.check("esc::triton_conv_ffn", (x, *weights), fault, launches.DTYPES)


def _check_backward(grad_out: Tensor, x: Tensor, *weights: Tensor) -> None:
    fault = _fault(x, *weights) or same_shape_fault("grad_out", grad_out, x)
    tensors = grad_out, x, *weights
    operators.check("esc::triton_conv_ffn_backward", tensors, fault, launches.DTYPES)


@operator("esc::triton_conv_ffn", "cuda", "cpu", see_through=launches.SEEN_THROUGH)
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
    from esc_arch.kernels.gpu.pixel_kernels import conv_ffn_kernel

    weights = proj, proj_bias, dwc, dwc_bias, aggr, aggr_bias
    _check(x, *weights)
    x, *weights = channels_last(x), *(weight.contiguous() for weight in weights)
    tile, constants = _launch_of(x, *weights)
    out = torch.empty_like(x, memory_format=torch.channels_last)
    args = _hidden(x, *weights[:2]), *weights[2:], out, *x.shape[2:]
    launches.launch(conv_ffn_kernel, tile.grid(x), constants, *args)
    return out


def _launch_of(
    x: Tensor, *weights: Tensor, gradients: bool = False
) -> tuple[launches.Tile, dict[str, Any]]:
    proj, _, dwc, *_ = weights
    tile = launches.tile_for(x.dtype, gradients)
    sizes = x.shape[1], proj.shape[0], x.shape[1], dwc.shape[-1]
    return tile, launches.tile_constants(tile, x.dtype, *sizes)


def _hidden(x: Tensor, proj: Tensor, proj_bias: Tensor) -> Tensor:
    """The hidden channels (B, H, W, hidden), after their GELU."""
    from esc_arch.kernels.gpu.pixel_kernels import project_kernel

    batch, channels, height, width = x.shape
    hidden, pixels = proj.shape[0], batch * height * width
    tile = launches.tile_for(x.dtype)
    constants = launches.tile_constants(tile, x.dtype, channels, hidden, channels, 1)
    h = x.new_empty(batch, height, width, hidden)
    grid = (-(-pixels // tile.pixels),)
    launches.launch(project_kernel, grid, constants, x, proj, proj_bias, h, pixels)
    return h


@torch.library.register_fake(triton_conv_ffn)
def _(x: Tensor, *weights: Tensor) -> Tensor:
    _check(x, *weights)
    return torch.empty_like(x, memory_format=torch.channels_last)


@operator(
    "esc::triton_conv_ffn_backward", "cuda", "cpu", see_through=launches.GRADIENTS_SEEN_THROUGH
)
def triton_conv_ffn_backward(
    grad_out: Tensor,
    x: Tensor,
    proj: Tensor,
    proj_bias: Tensor,
    dwc: Tensor,
    dwc_bias: Tensor,
    aggr: Tensor,
    aggr_bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of `triton_conv_ffn`'s arguments, shapes as there."""
    from esc_arch.kernels.gpu import pixel_gradients

    _check_backward(grad_out, x, proj, proj_bias, dwc, dwc_bias, aggr, aggr_bias)
    x, grad_out = channels_last(x), channels_last(grad_out)
    weights = proj, proj_bias, dwc, dwc_bias, aggr
    proj, proj_bias, dwc, dwc_bias, aggr = (weight.contiguous() for weight in weights)
    tile, constants = _launch_of(x, proj, proj_bias, dwc, gradients=True)
    tiles, batch = tile.grid(x)
    hidden, sizes = proj.shape[0], x.shape[2:]
    programs = tiles, batch, -(-hidden // tile.channels)

    h = _hidden(x, proj, proj_bias)
    mixed, grad_conv = torch.empty_like(h), torch.empty_like(h)
    taps = dwc[0].numel()
    parts = x.new_empty((batch, tiles, hidden, taps + 1), dtype=torch.float32)
    args = h, dwc, dwc_bias, aggr, grad_out, mixed, grad_conv, parts, *sizes
    launches.launch(pixel_gradients.conv_gradient_kernel, programs, constants, *args)
    grad_dwc, grad_dwc_bias = parts[..., :taps].sum((0, 1)), parts[..., taps].sum((0, 1))
    # Gradients of matrices are sums over all pixels, which are products of matrices.
    grad_rows = pixel_rows(grad_out)
    grad_aggr = grad_rows.mT @ mixed.view(-1, hidden)
    del mixed

    grad_proj = h  # Which is not needed any more.
    parts = x.new_empty((batch, tiles, hidden), dtype=torch.float32)
    weights = proj, proj_bias, dwc, aggr
    results = grad_proj, parts
    args = x, *weights, grad_out, grad_conv, *results, *sizes
    launches.launch(pixel_gradients.proj_gradient_kernel, programs, constants, *args)
    grad_proj = grad_proj.view(-1, hidden)
    grad_x = grad_proj @ proj.flatten(1)
    grads = (
        grad_proj.mT @ pixel_rows(x),
        parts.sum((0, 1)),
        grad_dwc,
        grad_dwc_bias,
        grad_aggr,
        grad_rows.sum(0, dtype=torch.float32),
    )
    wanted = proj, proj_bias, dwc, dwc_bias, aggr, aggr_bias
    return grad_x.view(batch, *sizes, -1).permute(0, 3, 1, 2), *(
        grad.to(weight.dtype).view(weight.shape) for grad, weight in zip(grads, wanted, strict=True)
    )


@torch.library.register_fake(triton_conv_ffn_backward)
def _(grad_out: Tensor, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    _check_backward(grad_out, x, *weights)
    grad_x = torch.empty_like(x, memory_format=torch.channels_last)
    return grad_x, *(torch.empty_like(w, memory_format=torch.contiguous_format) for w in weights)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    return operators.gradients(
        ctx, conv_ffn_of_weights, triton_conv_ffn_backward, ctx.saved_tensors, grad_out
    )


torch.library.register_autograd(triton_conv_ffn, _backward, setup_context=_save)
