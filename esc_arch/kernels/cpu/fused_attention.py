"""Window attention on the CPU in one pass: the kernels of csrc/, if built."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from esc_arch.kernels.cpu import library as cpu_kernels


def _windows_of(q: Tensor, heads: int, window_size: int) -> tuple[cpu_kernels.CWindows, int, int]:
    """Describe the windows; return their number and the products of queries and keys as well."""
    batch, channels, height, width = q.shape
    count = batch * -(-height // window_size) * -(-width // window_size)
    windows = cpu_kernels.CWindows(batch, heads, channels // heads, height, width, window_size)
    return windows, count, count * channels * window_size**4


def _function_for(
    q: Tensor, windows: cpu_kernels.CWindows, name: str
) -> tuple[Callable[..., None], Callable[[Tensor], Tensor]]:
    """Choose a kernel for inputs like `q`; return what the inputs must become as well."""
    library = cpu_kernels.library()
    if q.dtype == torch.bfloat16 and windows.dim <= 16 and cpu_kernels.has_amx():
        return getattr(library, f"esc_amx_{name}"), cpu_kernels.channels_last
    function = getattr(library, f"esc_{name}")
    return partial(function, cpu_kernels.vector_width()), Tensor.float


@torch.library.custom_op("esc::window_attention", mutates_args=(), device_types="cpu")
def window_attention_forward(
    q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int
) -> tuple[Tensor, Tensor]:
    """Attend within the windows of feature maps.

    Args:
        q: Queries (B, heads * D, H, W), not yet scaled, float32 or bfloat16, any strides. Any H and
            W; windows are completed by reflection at the bottom and the right. Gradients want whole
            windows.
        k: Keys, same shape.
        v: Values, same shape.
        bias_table: (heads, (2w - 1)^2), float32.
        window_size: Side w of a window in pixels.

    Returns:
        The result (B, heads * D, H, W), and log2 of each query's sum of exponentials
        (windows, heads, w * w), which the backward needs.
    """
    heads = bias_table.shape[0]
    windows, count, products = _windows_of(q, heads, window_size)
    log_sums = q.new_empty(count, heads, window_size**2, dtype=torch.float32)
    bias_table = bias_table.contiguous()
    function, prepare = _function_for(q, windows, "window_attention_forward")
    inputs = [prepare(t) for t in (q, k, v)]
    out = torch.empty_like(inputs[0], memory_format=torch.channels_last)
    function(
        cpu_kernels.threads_for(2 * products),
        windows,
        *(cpu_kernels.CTensor.of(t) for t in inputs),
        bias_table.data_ptr(),
        cpu_kernels.CTensor.of(out),
        log_sums.data_ptr(),
    )
    return out.to(q.dtype), log_sums


@window_attention_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int) -> tuple[Tensor, ...]:
    heads = bias_table.shape[0]
    out = torch.empty_like(q, memory_format=torch.channels_last)
    count = _windows_of(q, heads, window_size)[1]
    return out, q.new_empty(count, heads, window_size**2, dtype=torch.float32)


@torch.library.custom_op("esc::window_attention_backward", mutates_args=(), device_types="cpu")
def window_attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    out: Tensor,
    log_sums: Tensor,
    grad_out: Tensor,
    window_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v and the table; shapes as in `window_attention_forward`."""
    if q.shape[-2] % window_size or q.shape[-1] % window_size:
        raise ValueError(
            f"gradients want whole windows of {window_size}, not {tuple(q.shape[-2:])}"
        )
    bias_table, log_sums = bias_table.contiguous(), log_sums.contiguous()
    heads = bias_table.shape[0]
    windows, _, products = _windows_of(q, heads, window_size)
    threads = cpu_kernels.threads_for(5 * products)
    function, prepare = _function_for(q, windows, "window_attention_backward")
    inputs = [prepare(t) for t in (q, k, v, out, grad_out)]
    grads = [torch.empty_like(t, memory_format=torch.channels_last) for t in inputs[:3]]
    # Each thread sums into a table of its own; the kernel writes zeros past a table's end.
    tables = torch.zeros(threads, heads, bias_table.shape[1] + 16)
    *qkv, out, grad_out = (cpu_kernels.CTensor.of(t) for t in inputs)
    function(
        threads,
        windows,
        *qkv,
        bias_table.data_ptr(),
        out,
        log_sums.data_ptr(),
        grad_out,
        *(cpu_kernels.CTensor.of(t) for t in grads),
        tables.data_ptr(),
    )
    grads = [grad.to(q.dtype) for grad in grads]
    return *grads, tables.sum(0)[:, : bias_table.shape[1]].contiguous()


@window_attention_backward.register_fake
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
    grads = (torch.empty_like(q, memory_format=torch.channels_last) for _ in range(3))
    return *grads, torch.empty_like(bias_table)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.window_size = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    grads = window_attention_backward(*ctx.saved_tensors, grad_out, ctx.window_size)
    return *grads, None


window_attention_forward.register_autograd(_backward, setup_context=_save)
