"""Window attention that holds a cacheful of scores at a time, and recomputes them backwards."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from esc_arch.ops.autocast import autocast_dtype, without_autocast
from esc_arch.ops.bias import relative_position_bias, relative_position_bias_backward
from esc_arch.ops.derivatives import gradients_of_formula, only_formulas_differentiate

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]

# Scores held at once. On the CPU they should stay in a core's cache; a GPU wants large launches.
CPU_CHUNK_ELEMENTS = 2**19
GPU_CHUNK_ELEMENTS = 2**26


def naive(q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int) -> Tensor:
    """The formula as written, all windows' scores at once: see `attention.window_attention`."""
    bias = relative_position_bias(bias_table, window_size).to(q.dtype)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias
    return scores.softmax(-1) @ v


def chunked(q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int) -> Tensor:
    """Backend that holds a cacheful of scores at a time: see `attention.window_attention`."""
    return recomputed_in_backward(_forward, q, k, v, bias_table, window_size)


def recomputed_in_backward(
    kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int
) -> Tensor:
    """Attend by any kernel; the backward recomputes the scores a chunk at a time.

    It keeps nothing but the inputs, and never holds more scores than a chunk has. Derivatives of
    other kinds are those of the formula.
    """
    if autocast_dtype(q.device.type) is not None:
        with without_autocast(q.device.type):
            return recomputed_in_backward(kernel, q, k, v, bias_table, window_size)
    if only_formulas_differentiate():
        return naive(q, k, v, bias_table, window_size)
    if not torch.is_grad_enabled():
        return kernel(q, k, v, bias_table, window_size)
    return _RecomputedInBackward.apply(kernel, q, k, v, bias_table, window_size)


class _RecomputedInBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        kernel: Kernel,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias_table: Tensor,
        window_size: int,
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, bias_table)
        ctx.window_size = window_size
        return kernel(q, k, v, bias_table, window_size)

    @staticmethod
    def backward(ctx: FunctionCtx, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        with without_autocast(grad_out.device.type):
            inputs = *ctx.saved_tensors, ctx.window_size
            if torch.is_grad_enabled():  # They will be differentiated again.
                needed = ctx.needs_input_grad[1:]
                return None, *gradients_of_formula(naive, inputs, needed, grad_out)
            return None, *_backward(*inputs, grad_out), None


def _chunks(q: Tensor, heads: int) -> list[tuple[slice, slice]]:
    """Cut the scores of (windows * heads, N, N) into slices over windows and over queries."""
    limit = CPU_CHUNK_ELEMENTS if q.device.type == "cpu" else GPU_CHUNK_ELEMENTS
    total, pixels = q.shape[0], q.shape[1]
    windows = max(1, limit // (heads * pixels * pixels))
    queries = pixels if windows > 1 else max(1, min(pixels, limit // (heads * pixels)))
    return [
        (slice(start, start + windows * heads), slice(row, row + queries))
        for start in range(0, total, windows * heads)
        for row in range(0, pixels, queries)
    ]


def _scores_softmax(q: Tensor, k_t: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k_t + bias), for (windows * heads, n, D) and (heads, n, N), in one buffer."""
    heads = bias.shape[0]
    scores = torch.bmm(q, k_t)
    scores.view(-1, heads, *bias.shape[1:]).add_(bias)
    return torch.softmax(scores, -1, out=scores)


def _forward(q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int) -> Tensor:
    heads = q.shape[1]
    bias = relative_position_bias(bias_table, window_size).to(q.dtype)
    k_t = (k * k.shape[-1] ** -0.5).flatten(0, 1).transpose(-2, -1)
    q, v = q.flatten(0, 1), v.flatten(0, 1)
    out = torch.empty_like(v)
    for windows, queries in _chunks(q, heads):
        weights = _scores_softmax(q[windows, queries], k_t[windows], bias[:, queries])
        out[windows, queries] = torch.bmm(weights, v[windows])
    return out.unflatten(0, (-1, heads))


def _backward(
    q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int, grad_out: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    heads, scale = q.shape[1], q.shape[-1] ** -0.5
    bias = relative_position_bias(bias_table, window_size).to(q.dtype)
    k_t = (k * scale).flatten(0, 1).transpose(-2, -1)
    q, k, grad_out = q.flatten(0, 1), k.flatten(0, 1), grad_out.flatten(0, 1)
    v_t = v.flatten(0, 1).transpose(-2, -1)
    # Sums over chunks, in float32 at least whatever the dtype of the inputs. Those of k and v are
    # kept transposed: (D, n) x (n, N) multiplies twice as fast on the CPU as (N, n) x (n, D).
    wide = torch.promote_types(q.dtype, torch.float32)
    grad_q = torch.empty_like(q)
    grad_k_t, grad_v_t = (torch.zeros(v_t.shape, dtype=wide, device=q.device) for _ in range(2))
    grad_bias = torch.zeros_like(bias, dtype=wide)
    for windows, queries in _chunks(q, heads):
        q_chunk, grad_chunk = q[windows, queries], grad_out[windows, queries]
        weights = _scores_softmax(q_chunk, k_t[windows], bias[:, queries])
        grad_v_t[windows] += torch.bmm(grad_chunk.transpose(-2, -1), weights)
        grad_scores = torch.bmm(grad_chunk, v_t[windows])
        torch.ops.aten._softmax_backward_data.out(
            grad_scores, weights, -1, weights.dtype, grad_input=grad_scores
        )
        grad_bias[:, queries] += grad_scores.view(-1, heads, *grad_scores.shape[1:]).sum(0)
        grad_q[windows, queries] = torch.bmm(grad_scores, k[windows])
        grad_k_t[windows] += torch.bmm(q_chunk.transpose(-2, -1), grad_scores)
    grad_table = relative_position_bias_backward(grad_bias, window_size).to(bias_table.dtype)
    shape = (-1, heads)
    return (
        grad_q.mul_(scale).unflatten(0, shape),
        grad_k_t.mul_(scale).to(q.dtype).transpose(-2, -1).unflatten(0, shape),
        grad_v_t.to(q.dtype).transpose(-2, -1).unflatten(0, shape),
        grad_table,
    )
