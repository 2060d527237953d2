"""Window attention on a GPU: the Triton kernels of this folder as operators of torch.library.

Triton is imported when one of them runs first. They read feature maps as `to_qkv` leaves them,
channels last: nothing is cut into windows, padded or transposed in memory, and windows are
completed by reflection as they are read.
"""

from typing import Any

import torch
from torch import Tensor

from esc_arch.kernels.cpu.operators import gradients
from esc_arch.kernels.gpu.launches import (
    DTYPES,
    GRADIENTS_SEEN_THROUGH,
    LARGEST_SIDE,
    ON_AMD,
    SEEN_THROUGH,
    SMALLEST_BLOCK,
    Launch,
    columns_of_sums,
    columns_of_tile,
    is_known,
    launch,
    launch_for,
    power_of_two,
)
from esc_arch.kernels.gpu.layouts import (
    LOG2_E,
    bias_tiles,
    fold_reflection,
    origins_of,
    sums_of,
    table_gradient,
)
from esc_arch.kernels.operator import operator
from esc_arch.ops.attention import attend_in_windows, naive
from esc_arch.ops.faults import attention_fault

LARGEST_WINDOW = 96
LARGEST_HEAD = 64
# The gradient of the bias is summed for as many heads at a time as fit into this many values.
BIAS_VALUES = 2**26


def can_run(x: Tensor, bias_table: Tensor, window_size: int) -> bool:
    """Tell whether the kernels take windows of features (B, C, H, W) of that size."""
    _, channels, height, width = x.shape
    heads = bias_table.shape[0]
    # Within an image of queries, keys and values, kernels count in 32 bits.
    values = 3 * channels * (height + window_size) * (width + window_size)
    fits = 2 <= window_size <= LARGEST_WINDOW and channels // heads <= LARGEST_HEAD
    biases = heads * 2 * window_size**3
    programs = _windows(x, window_size) * (window_size**2 // SMALLEST_BLOCK + 1) * heads
    return fits and max(values, biases, programs) < 2**31 and heads <= LARGEST_SIDE


def _precision(dtype: torch.dtype) -> str:
    """What products of float32 are computed in: TF32 where the user allows it."""
    allowed = dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 and not ON_AMD
    return "tf32" if allowed else "ieee"


def _arguments(
    q: Tensor, out: Tensor, heads: int, window_size: int, cut: Launch
) -> tuple[list[int], dict[str, Any]]:
    """What all kernels take: sizes and strides, and constants."""
    height, width = q.shape[-2:]
    head_dim = q.shape[1] // heads
    sizes = [height, width]
    for tensor in (q, out):
        sizes += [tensor.stride(0), tensor.stride(2), tensor.stride(3)]
    constants = {
        "HEADS": heads,
        "D": head_dim,
        "D_PADDED": max(16, power_of_two(head_dim)),
        "W": window_size,
        "WHOLE": all(is_known(side % window_size == 0) for side in (height, width)),
        # What completes a side is then less than the image has.
        "ONCE": all(side > -side % window_size for side in (height, width)),
        "ACROSS": columns_of_tile(window_size, cut.block_n),
        "ACROSS_M": columns_of_tile(window_size, cut.block_m),
        "PRECISION": _precision(q.dtype),
        "BLOCK_M": cut.block_m,
        "BLOCK_N": cut.block_n,
        "num_warps": cut.warps,
        "num_stages": cut.stages,
    }
    return sizes, constants


def _alike(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    """Queries, keys and values with the same strides and their channels last."""
    # Those of a view of something larger may lead beyond 32 bits.
    lengths = (size + LARGEST_WINDOW for size in q.shape[2:])
    places = sum(length * stride for length, stride in zip(lengths, q.stride()[2:], strict=True))
    if q.stride(1) == 1 and q.stride() == k.stride() == v.stride() and places < 2**31:
        return [q, k, v]
    return [x.contiguous(memory_format=torch.channels_last) for x in (q, k, v)]


def _windows(q: Tensor, window_size: int) -> int:
    batch, _, height, width = q.shape
    return batch * -(-height // window_size) * -(-width // window_size)


def _check(q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int) -> None:
    fault = attention_fault(q, k, v, bias_table, window_size)
    if fault is None and not can_run(q, bias_table, window_size):
        head_dim = q.shape[1] // bias_table.shape[0]
        fault = (
            f"windows of {window_size} with heads of {head_dim} channels in {tuple(q.shape)}; they "
            f"must be of 2 to {LARGEST_WINDOW} with at most {LARGEST_HEAD}, and an image of less "
            "than 2^31 values of q, k and v, biases and programs"
        )
    if fault is None and (q.dtype not in DTYPES or q.dtype != k.dtype or q.dtype != v.dtype):
        fault = f"dtypes of q, k and v are {q.dtype}, {k.dtype} and {v.dtype}; they must be one of "
        fault += ", ".join(str(dtype) for dtype in DTYPES)
    if fault is None and len({x.device for x in (q, k, v, bias_table)}) > 1:
        fault = "q, k, v and bias_table are on several devices; they must be on one"
    if fault is not None:
        raise ValueError(f"esc::triton_window_attention: {fault}")


@operator("esc::triton_window_attention", "cuda", "cpu", see_through=SEEN_THROUGH)
def triton_window_attention(
    q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int
) -> tuple[Tensor, Tensor]:
    """Attend within the windows of feature maps.

    Args:
        q: Queries (B, heads * D, H, W), not yet scaled, of float32, bfloat16 or float16; D at most
            64. Any H and W; windows are completed by reflection at the bottom and the right.
        k: Keys, same shape.
        v: Values, same shape.
        bias_table: (heads, (2w - 1)^2).
        window_size: Side w of a window in pixels, 2 to 96.

    Returns:
        The result (B, heads * D, H, W), channels last, and of each query the largest score and
        log2 of its sum of exponentials over that (windows, heads, 2, w * w), for the backward.
    """
    from esc_arch.kernels.gpu.attention_forward import window_attention_forward

    _check(q, k, v, bias_table, window_size)
    heads = bias_table.shape[0]
    head_dim = q.shape[1] // heads
    q, k, v = _alike(q, k, v)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device, memory_format=torch.channels_last)
    windows, pixels = _windows(q, window_size), window_size**2
    log_sums = q.new_empty((windows, heads, 2, pixels), dtype=torch.float32)
    cut = launch_for("forward", q.dtype, head_dim, window_size)
    sizes, constants = _arguments(q, out, heads, window_size, cut)
    constants["SUMS"] = columns_of_sums()
    grid = (windows, -(-pixels // cut.block_m), heads)
    tiles, scale = bias_tiles(bias_table, window_size), head_dim**-0.5 * LOG2_E
    args = q, k, v, tiles, out, log_sums, scale, *sizes
    launch(window_attention_forward, grid, constants, *args)
    return out, log_sums


@torch.library.register_fake(triton_window_attention)
def _(q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int) -> tuple[Tensor, ...]:
    _check(q, k, v, bias_table, window_size)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device, memory_format=torch.channels_last)
    sums = (_windows(q, window_size), bias_table.shape[0], 2, window_size**2)
    return out, q.new_empty(sums, dtype=torch.float32)


@operator(
    "esc::triton_window_attention_backward", "cuda", "cpu", see_through=GRADIENTS_SEEN_THROUGH
)
def triton_window_attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    out: Tensor,
    log_sums: Tensor,
    grad_out: Tensor,
    window_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v and the table; shapes as in `triton_window_attention`."""
    from esc_arch.kernels.gpu import attention_backward as backward_kernels
    from esc_arch.kernels.gpu.bias_gradient import bias_pass

    _check(q, k, v, bias_table, window_size)
    batch, channels, height, width = q.shape
    heads, w = bias_table.shape[0], window_size
    head_dim, pixels, windows = channels // heads, w**2, _windows(q, w)
    q, k, v = _alike(q, k, v)
    grad_out = grad_out.to(q.dtype).contiguous(memory_format=torch.channels_last)
    scale = head_dim**-0.5
    sums = sums_of(log_sums, out, grad_out)
    scaled_q = torch.empty_like(grad_out).copy_(q.float() * (scale * LOG2_E))

    grad_q = torch.empty_like(grad_out)
    cut = launch_for("queries", q.dtype, head_dim, w)
    sizes, constants = _arguments(q, grad_out, heads, w, cut)
    tiles = bias_tiles(bias_table, w)
    grid = (windows, -(-pixels // cut.block_m), heads)
    args = q, k, v, tiles, sums, grad_out, grad_q, scale, scale * LOG2_E, *sizes
    launch(backward_kernels.queries_pass, grid, constants, *args)

    whole = (batch, channels, -(-height // w) * w, -(-width // w) * w)
    grad_k, grad_v = (
        torch.empty(whole, dtype=q.dtype, device=q.device, memory_format=torch.channels_last)
        for _ in range(2)
    )
    cut = launch_for("keys", q.dtype, head_dim, w)
    sizes, constants = _arguments(q, grad_out, heads, w, cut)
    sizes += [grad_k.stride(0), grad_k.stride(2), grad_k.stride(3)]
    turned = bias_tiles(bias_table.flip(1), w)
    grid = (windows, -(-pixels // cut.block_m), heads)
    queries, scales = q, (scale, scale * LOG2_E)
    if q.dtype == torch.float32:
        queries, scales = scaled_q, (1 / LOG2_E, 1.0)
    args = queries, k, v, turned, sums, grad_out, grad_k, grad_v, *scales, *sizes
    launch(backward_kernels.keys_pass, grid, constants, *args)
    if not constants["WHOLE"]:
        grad_k, grad_v = (fold_reflection(grad, height, width) for grad in (grad_k, grad_v))

    cut = launch_for("bias", q.dtype, head_dim, w)
    sizes, constants = _arguments(q, grad_out, heads, w, cut)
    constants["ALIGNED"] = all(stride % 16 == 0 for stride in sizes[2:])
    sizes = [*sizes[:2], *sizes[3:5], *sizes[6:]]
    origins, filled = origins_of(q, grad_out, heads, w)
    counts = filled, windows
    at_once = max(1, min(heads, BIAS_VALUES // pixels**2))
    grad_tables = []
    for first in range(0, heads, at_once):
        count = min(at_once, heads - first)
        grad_bias = q.new_empty((count, pixels, pixels), dtype=torch.float32)
        grid = (-(-pixels // cut.block_m), -(-pixels // cut.block_n), count)
        args = scaled_q, k, v, tiles, sums, grad_out, grad_bias, origins, *counts, first, *sizes
        launch(bias_pass, grid, constants, *args)
        grad_tables.append(table_gradient(grad_bias, w))
    grad_table = torch.cat(grad_tables).to(bias_table.dtype)
    return grad_q, grad_k, grad_v, grad_table


@torch.library.register_fake(triton_window_attention_backward)
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    out: Tensor,
    log_sums: Tensor,
    grad_out: Tensor,
    window_size: int,
) -> tuple[Tensor, ...]:
    grads = (
        torch.empty(q.shape, dtype=q.dtype, device=q.device, memory_format=torch.channels_last)
        for _ in range(3)
    )
    return *grads, torch.empty_like(bias_table)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.window_size = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, out, log_sums = ctx.saved_tensors

    def formula(q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int) -> Tensor:
        return attend_in_windows(naive, q, k, v, bias_table, window_size)

    def kernel(grad_out: Tensor, *inputs: Any) -> tuple[Tensor | None, ...]:
        *tensors, window_size = inputs
        grads = triton_window_attention_backward(*tensors, out, log_sums, grad_out, window_size)
        return *grads, None

    return gradients(ctx, formula, kernel, (*inputs, ctx.window_size), grad_out)


torch.library.register_autograd(triton_window_attention, _backward, setup_context=_save)
