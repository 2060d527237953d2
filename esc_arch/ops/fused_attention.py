"""Window attention on the CPU in one pass: the kernel of csrc/window_attention.h, if it was built.

It is compiled when the package is installed, where there is a C++ compiler; without one the package
works the same through torch's own operations, only slower.
"""

import ctypes
import functools
import importlib.util
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# What one call of the kernel should at least have to do, in scores, to be worth a thread.
SCORES_PER_THREAD = 2**16


class _Tensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("strides", ctypes.c_long * 4)]

    @classmethod
    def of(cls, tensor: Tensor) -> "_Tensor":
        return cls(tensor.data_ptr(), (ctypes.c_long * 4)(*tensor.stride()))


@functools.cache
def _library() -> ctypes.CDLL | None:
    found = importlib.util.find_spec("esc_arch.ops._fused_attention")
    if found is None or found.origin is None:
        return None
    library = ctypes.CDLL(found.origin)
    pointer, integer, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_long
    tensor = ctypes.POINTER(_Tensor)
    head = [integer] * 4 + [long] * 2 + [tensor] * 3 + [pointer, tensor, pointer]
    library.esc_window_attention_forward.argtypes = head
    library.esc_window_attention_forward.restype = None
    library.esc_window_attention_backward.argtypes = [*head, *[tensor] * 4, pointer]
    library.esc_window_attention_backward.restype = None
    return library


def is_built() -> bool:
    """Tell whether the kernel was compiled when the package was installed."""
    return _library() is not None


def vector_width() -> int:
    """Return how many floats the vectors have that the kernel uses on this machine."""
    return _library().esc_widest()


def _share_out(tasks: int, pixels: int, work: Callable[[int, int, int], None]) -> None:
    """Call `work(thread, begin, end)` for parts of range(tasks), in as many threads as torch uses.

    The threads live as long as the call, so that nothing is left that a fork would break. ctypes
    gives up the interpreter's lock.
    """
    threads = max(1, min(torch.get_num_threads(), tasks, tasks * pixels**2 // SCORES_PER_THREAD))
    bounds = [tasks * index // threads for index in range(threads + 1)]
    others = [
        threading.Thread(target=work, args=(index, bounds[index], bounds[index + 1]))
        for index in range(1, threads)
    ]
    for thread in others:
        thread.start()
    work(0, bounds[0], bounds[1])
    for thread in others:
        thread.join()


def _empty_windows(like: Tensor) -> Tensor:
    """Make (windows, heads, pixels, D) whose pixels' channels of all heads lie side by side."""
    windows, heads, pixels, dim = like.shape
    return like.new_empty(windows, pixels, heads, dim).transpose(1, 2)


@torch.library.custom_op("esc::window_attention", mutates_args=(), device_types="cpu")
def window_attention_forward(
    q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int
) -> tuple[Tensor, Tensor]:
    """Attend within windows.

    Args:
        q: Queries (windows, heads, w * w, D), not yet scaled, float32, any strides.
        k: Keys, same shape.
        v: Values, same shape.
        bias_table: (heads, (2w - 1)^2), float32.
        window_size: Side w of a window in pixels.

    Returns:
        The result (windows, heads, w * w, D), and log2 of each query's sum of exponentials
        (windows, heads, w * w), which the backward needs.
    """
    library = _library()
    windows, heads, pixels, dim = q.shape
    out = _empty_windows(q)
    log_sums = q.new_empty(windows, heads, pixels)
    bias_table = bias_table.contiguous()
    tensors = [_Tensor.of(t) for t in (q, k, v, out)]

    def work(_: int, begin: int, end: int) -> None:
        library.esc_window_attention_forward(
            vector_width(),
            heads,
            window_size,
            dim,
            begin,
            end,
            *tensors[:3],
            bias_table.data_ptr(),
            tensors[3],
            log_sums.data_ptr(),
        )

    _share_out(windows * heads, pixels, work)
    return out, log_sums


@window_attention_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int) -> tuple[Tensor, ...]:
    return _empty_windows(q), q.new_empty(q.shape[:3])


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
    library = _library()
    windows, heads, pixels, dim = q.shape
    bias_table, log_sums = bias_table.contiguous(), log_sums.contiguous()
    grads = [_empty_windows(q) for _ in range(3)]
    # Each thread sums into a table of its own; the kernel writes zeros past a table's end.
    tables = q.new_zeros(torch.get_num_threads(), heads, bias_table.shape[1] + 16)
    tensors = [_Tensor.of(t) for t in (q, k, v, out, grad_out, *grads)]

    def work(thread: int, begin: int, end: int) -> None:
        library.esc_window_attention_backward(
            vector_width(),
            heads,
            window_size,
            dim,
            begin,
            end,
            *tensors[:3],
            bias_table.data_ptr(),
            tensors[3],
            log_sums.data_ptr(),
            *tensors[4:],
            tables[thread].data_ptr(),
        )

    _share_out(windows * heads, pixels, work)
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
    return *(_empty_windows(q) for _ in range(3)), torch.empty_like(bias_table)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.window_size = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    grads = window_attention_backward(*ctx.saved_tensors, grad_out, ctx.window_size)
    return *grads, None


window_attention_forward.register_autograd(_backward, setup_context=_save)
