"""Window attention in one pass."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from esc_arch.kernels import choose
from esc_arch.kernels.cpu import library as cpu_kernels
from esc_arch.kernels.cpu import operators
from esc_arch.kernels.operator import operator
from esc_arch.ops.attention import attend_in_windows, naive
from esc_arch.ops.faults import attention_fault, same_shape_fault, shape_fault
from esc_arch.ops.windows import pad_to_multiple

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# What one task packs, in values: a window's keys, all channels of a head.
LARGEST_WINDOW = 2**28


def _window_fault(q: Tensor, heads: int, window_size: int) -> str | None:
    padded = (window_size + 16) * (window_size + 16) * (q.shape[1] // heads + 16)
    if padded <= LARGEST_WINDOW:
        return None
    return f"windows of {window_size} with heads of {q.shape[1] // heads} channels are too large"


def _fault(q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int) -> str | None:
    fault = attention_fault(q, k, v, bias_table, window_size)
    return fault or _window_fault(q, bias_table.shape[0], window_size)


def _takes(x: Tensor, bias_table: Tensor, window_size: int, _: torch.dtype) -> bool:
    return _window_fault(x, bias_table.shape[0], window_size) is None


@choose.register("feature_attention", "cpu", dtypes=DTYPES, takes=_takes)
def _attend(q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int) -> Tensor:
    height, width = q.shape[-2:]
    qkv = q, k, v
    if torch.is_grad_enabled() and any(t.requires_grad for t in (*qkv, bias_table)):
        # Windows are completed by reflection as they are read, but not backwards.
        qkv = (pad_to_multiple(t, window_size) for t in qkv)
    with torch.autocast("cpu", enabled=False):
        dtype = torch.bfloat16 if q.dtype == torch.bfloat16 else torch.float32
        qkv = (t.to(dtype) for t in qkv)
        out, _ = window_attention_forward(*qkv, bias_table.float(), window_size)
        return out.to(q.dtype)[..., :height, :width]


def _formula(q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int) -> Tensor:
    return attend_in_windows(naive, q, k, v, bias_table, window_size)


def _check(q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int) -> None:
    fault = _fault(q, k, v, bias_table, window_size)
    operators.check("esc::window_attention", (q, k, v), fault)
    operators.check("esc::window_attention", (bias_table,), None, (torch.float32,))
    operators.check_devices("esc::window_attention", (q, bias_table))


def _check_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    out: Tensor,
    log_sums: Tensor,
    grad_out: Tensor,
    window_size: int,
) -> None:
    name = "esc::window_attention_backward"
    fault = _fault(q, k, v, bias_table, window_size)
    if fault is None and (q.shape[-2] % window_size or q.shape[-1] % window_size):
        fault = f"gradients want whole windows of {window_size}, not {tuple(q.shape[-2:])}"
    if fault is None:
        heads = bias_table.shape[0]
        count = _windows_of(q, heads, window_size)[1]
        fault = (
            same_shape_fault("out", out, q)
            or same_shape_fault("grad_out", grad_out, q)
            or shape_fault("log_sums", log_sums, (count, heads, window_size**2))
        )
    operators.check(name, (q, k, v, out, grad_out), fault)
    operators.check(name, (bias_table, log_sums), None, (torch.float32,))
    operators.check_devices(name, (q, bias_table))


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


@operator("esc::window_attention", "cpu")
def window_attention_forward(
    q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int
) -> tuple[Tensor, Tensor]:
    """Attend within the windows of feature maps.

    NaN and infinities give what the formula gives, with two exceptions, where a window's side is no
    multiple of 16: in the bias table they reach more queries of their head, never fewer; and on AMX
    scores below -1e30 weigh less than the padding.

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
    _check(q, k, v, bias_table, window_size)
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


@torch.library.register_fake(window_attention_forward)
def _(q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int) -> tuple[Tensor, ...]:
    _check(q, k, v, bias_table, window_size)
    heads = bias_table.shape[0]
    out = torch.empty_like(q, memory_format=torch.channels_last)
    count = _windows_of(q, heads, window_size)[1]
    return out, q.new_empty(count, heads, window_size**2, dtype=torch.float32)


@operator("esc::window_attention_backward", "cpu")
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
    _check_backward(q, k, v, bias_table, out, log_sums, grad_out, window_size)
    bias_table, log_sums = bias_table.contiguous(), log_sums.contiguous()
    heads = bias_table.shape[0]
    windows, _, products = _windows_of(q, heads, window_size)
    function, prepare = _function_for(q, windows, "window_attention_backward")
    inputs = [prepare(t) for t in (q, k, v, out, grad_out)]
    grads = [torch.empty_like(t, memory_format=torch.channels_last) for t in inputs[:3]]
    # The kernel writes zeros past a table's end.
    grad_table = torch.zeros(heads, bias_table.shape[1] + 16)
    *qkv, out, grad_out = (cpu_kernels.CTensor.of(t) for t in inputs)
    function(
        cpu_kernels.threads_for(5 * products),
        windows,
        *qkv,
        bias_table.data_ptr(),
        out,
        log_sums.data_ptr(),
        grad_out,
        *(cpu_kernels.CTensor.of(t) for t in grads),
        grad_table.data_ptr(),
    )
    grads = [grad.to(q.dtype) for grad in grads]
    return *grads, grad_table[:, : bias_table.shape[1]].contiguous()


@torch.library.register_fake(window_attention_backward)
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
    _check_backward(q, k, v, bias_table, out, log_sums, grad_out, window_size)
    grads = (torch.empty_like(q, memory_format=torch.channels_last) for _ in range(3))
    return *grads, torch.empty_like(bias_table)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.window_size = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, out, log_sums = ctx.saved_tensors

    def kernel(grad_out: Tensor, *inputs: Any) -> tuple[Tensor | None, ...]:
        *tensors, window_size = inputs
        saved = *tensors, out, log_sums
        return *window_attention_backward(*saved, grad_out, window_size), None

    return operators.gradients(ctx, _formula, kernel, (*inputs, ctx.window_size), grad_out)


torch.library.register_autograd(window_attention_forward, _backward, setup_context=_save)
