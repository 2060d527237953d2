"""Window attention with a relative position bias: one function, several backends.

All backends compute the same function, softmax(q k^T / sqrt(D) + B) v, and share one signature,
`(q, k, v, bias_table, window_size) -> out`. `window_attention` picks among them:

| `attn_type` | what runs                                                   | where          |
|-------------|-------------------------------------------------------------|----------------|
| `Naive`     | the formula as written, all windows' scores at once         | everywhere     |
| `Fused`     | our own kernel, in `esc_arch.kernels.cpu`; inside it is in       | CPU, if built  |
|             | float32, but for bfloat16 on AMX matrix units             |                |
| `Chunked`   | our own: scores a few at a time, recomputed in the backward | everywhere     |
| `SDPA`      | torch's scaled_dot_product_attention, the bias as its mask; |                |
|             | backward as `Chunked`                                       | everywhere     |
| `Flex`      | compiled FlexAttention, the bias gathered inside the kernel | with a compiler |

`Auto`, the default, is `Flex` on CUDA and `Fused` on the CPU, but for float64. It is `SDPA`
elsewhere and where these cannot run; a failure of `Flex` on CUDA is said once.

`FlashBias` has learned factors in place of the table and so a function of its own,
`flashbias_attention`.

No backend stores an index table, and none but `Naive` holds the scores of all windows at once:
where a kernel of torch would (the gradient of a mask), `Chunked`'s backward takes over.
"""

import functools
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from esc_arch.errors import UserError
from esc_arch.kernels.cpu import fused_attention
from esc_arch.kernels.cpu import library as cpu_kernels
from esc_arch.ops.windows import in_windows

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]

# Scores held at once. On the CPU they should stay in a core's cache; a GPU wants large launches.
CPU_CHUNK_ELEMENTS = 2**19
GPU_CHUNK_ELEMENTS = 2**26


def relative_position_bias(bias_table: Tensor, window_size: int) -> Tensor:
    """Spread a table of biases by relative position to every pair of pixels of a window.

    B[h, q, k] = bias_table[h, (kh - qh + w - 1) * (2w - 1) + (kw - qw + w - 1)], a two-level
    Toeplitz matrix: each query's row is a window of the table, which slides with the query.

    Args:
        bias_table: (heads, (2w - 1)^2).
        window_size: Side w of a window in pixels.

    Returns:
        (heads, w * w, w * w), queries by keys, contiguous.
    """
    heads, w = bias_table.shape[0], window_size
    grid = bias_table.view(heads, 2 * w - 1, 2 * w - 1)
    windows = [slice(w - 1 - query, 2 * w - 1 - query) for query in range(w)]
    columns = torch.stack([grid[:, :, window] for window in windows], dim=1)
    return torch.stack([columns[:, :, window] for window in windows], dim=1).view(heads, w * w, -1)


def relative_position_bias_backward(grad: Tensor, window_size: int) -> Tensor:
    """Sum a gradient over the pairs of pixels that share a relative position.

    Args:
        grad: Gradient of `relative_position_bias`'s result, (heads, w * w, w * w).
        window_size: Side w of a window in pixels.

    Returns:
        Gradient of the table, (heads, (2w - 1)^2).
    """
    heads, w = grad.shape[0], window_size
    by_row = grad.new_zeros(heads, 2 * w - 1, w, w)
    grad = grad.view(heads, w, w, w, w).flip(1, 2)
    for row in range(w):
        by_row[:, row : row + w] += grad[:, row].transpose(1, 2)
    table = grad.new_zeros(heads, 2 * w - 1, 2 * w - 1)
    for column in range(w):
        table[:, :, column : column + w] += by_row[:, :, column]
    return table.view(heads, -1)


def naive(q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int) -> Tensor:
    """Reference backend: see `window_attention`."""
    bias = relative_position_bias(bias_table, window_size).to(q.dtype)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias
    return scores.softmax(-1) @ v


def chunked(q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int) -> Tensor:
    """Backend that holds a cacheful of scores at a time: see `window_attention`."""
    return _recomputed_in_backward(_chunked_forward, q, k, v, bias_table, window_size)


def sdpa(q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int) -> Tensor:
    """Backend on torch's scaled_dot_product_attention: see `window_attention`."""
    return _recomputed_in_backward(_sdpa_forward, q, k, v, bias_table, window_size)


def flex(q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int) -> Tensor:
    """Backend on compiled FlexAttention: see `window_attention`."""
    if q.device.type == "cpu":
        # FlexAttention has no backward on the CPU.
        return _recomputed_in_backward(_flex_forward, q, k, v, bias_table, window_size)
    return _flex_forward(q, k, v, bias_table, window_size)


def fused(q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int) -> Tensor:
    """Backend on a CPU kernel of our own: see `window_attention`."""
    if not _fused_can_run(q):
        raise BackendUnavailableError(
            "it needs the CPU, float32 or narrower, and a C++ compiler at installation"
        )
    heads, dim = q.shape[1], q.shape[-1]
    # Every window is a feature map of its own.
    shape = (-1, heads * dim, window_size, window_size)
    maps = (x.transpose(2, 3).reshape(shape) for x in (q, k, v))
    out = _fused_on_features(*maps, bias_table, window_size)
    return out.view(-1, heads, dim, window_size**2).transpose(2, 3)


BACKENDS: dict[str, Kernel] = {
    "Naive": naive,
    "Fused": fused,
    "Chunked": chunked,
    "SDPA": sdpa,
    "Flex": flex,
}
ATTN_TYPES = ("Auto", *BACKENDS, "FlashBias")


def canonical_attn_type(attn_type: str) -> str:
    """Return the usual spelling of an `attn_type`.

    Args:
        attn_type: One of `ATTN_TYPES` in upper or lower case.

    Returns:
        The entry of `ATTN_TYPES`.

    Raises:
        UserError: There is no such backend.
    """
    spelling = {name.lower(): name for name in ATTN_TYPES}
    if not isinstance(attn_type, str) or attn_type.lower() not in spelling:
        raise UserError(f"attn_type is {attn_type!r}; it must be one of {', '.join(ATTN_TYPES)}")
    return spelling[attn_type.lower()]


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    window_size: int,
    attn_type: str = "Auto",
) -> Tensor:
    """Self-attention within windows, with a learned bias by relative position.

    Args:
        q: Queries (windows, heads, w * w, D), not yet scaled.
        k: Keys, same shape.
        v: Values, same shape.
        bias_table: (heads, (2w - 1)^2).
        window_size: Side w of a window in pixels.
        attn_type: `Auto` or a key of `BACKENDS`. `Auto` takes the fastest exact backend for the
            device, by the rule above.

    Returns:
        (windows, heads, w * w, D). Gradients reach q, k, v and the table with every backend.

    Raises:
        UserError: The backend asked for by name cannot run here.
    """
    name = _fastest(q) if attn_type == "Auto" else attn_type
    try:
        return BACKENDS[name](q, k, v, bias_table, window_size)
    except BackendUnavailableError as error:
        if attn_type != "Auto":
            raise UserError(f"attn_type {name!r} cannot run here: {error}; use 'Auto'") from error
        _say_once(f"attn_type 'Auto': {name} cannot run here ({error}); SDPA runs instead")
        return sdpa(q, k, v, bias_table, window_size)


def wants_whole_windows(x: Tensor, attn_type: str) -> bool:
    """Tell whether `feature_attention` will want the sides of features like these padded.

    Only our own kernel does not, which completes windows by reflection as it reads them; but its
    backward does.
    """
    return not _runs_fused(x, attn_type) or torch.is_grad_enabled()


def feature_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    window_size: int,
    attn_type: str = "Auto",
) -> Tensor:
    """Compute `window_attention` on feature maps, which are cut into windows.

    Args:
        q: Queries (B, C, H, W), heads, then channels of a head, not yet scaled. H and W are
            multiples of w if `wants_whole_windows` says so, else any.
        k: Keys, same shape.
        v: Values, same shape.
        bias_table: (heads, (2w - 1)^2).
        window_size: Side w of a window in pixels.
        attn_type: See `window_attention`.

    Returns:
        (B, C, H, W).

    Raises:
        UserError: The backend asked for by name cannot run here.
    """
    if _runs_fused(q, attn_type):
        return _fused_on_features(q, k, v, bias_table, window_size)

    def attend(*windows: Tensor) -> Tensor:
        return window_attention(*windows, bias_table, window_size, attn_type)

    return in_windows(attend, q, k, v, window_size=window_size, num_heads=bias_table.shape[0])


def flashbias_attention(q: Tensor, k: Tensor, v: Tensor, bias_q: Tensor, bias_k: Tensor) -> Tensor:
    """Self-attention within windows with a bias of low rank, on a plain flash kernel.

    [q / sqrt(D), bias_q] . [k, bias_k] is the biased score, so that attention without a mask over
    these longer vectors computes softmax(q k^T / sqrt(D) + bias_q bias_k^T) v.

    Args:
        q: Queries (windows, heads, N, D), not yet scaled.
        k: Keys, same shape.
        v: Values, same shape.
        bias_q: Factor of the queries (heads, N, R).
        bias_k: Factor of the keys (heads, N, R).

    Returns:
        (windows, heads, N, D).
    """
    windows, _, _, head_dim = q.shape
    bias_q = bias_q.to(q.dtype).expand(windows, -1, -1, -1)
    bias_k = bias_k.to(q.dtype).expand(windows, -1, -1, -1)
    q = torch.cat([q * head_dim**-0.5, bias_q], dim=-1)
    k = torch.cat([k, bias_k], dim=-1)
    # Flash kernels want values as wide as keys.
    v = F.pad(v, (0, q.shape[-1] - head_dim))
    flash = _flash_attn_package()
    if flash is not None and q.is_cuda and q.dtype in (torch.float16, torch.bfloat16):
        out = flash(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), softmax_scale=1.0)
        out = out.transpose(1, 2)
    else:
        out = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    return out[..., :head_dim]


def _fastest(q: Tensor) -> str:
    if q.is_cuda:
        return "Flex"
    return "Fused" if _fused_can_run(q) else "SDPA"


def _fused_on_features(
    q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int
) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        dtype = torch.bfloat16 if q.dtype == torch.bfloat16 else torch.float32
        qkv = (t.to(dtype) for t in (q, k, v))
        out, _ = fused_attention.window_attention_forward(*qkv, bias_table.float(), window_size)
        return out.to(q.dtype)


def _runs_fused(q: Tensor, attn_type: str) -> bool:
    name = _fastest(q) if attn_type == "Auto" else attn_type
    return name == "Fused" and _fused_can_run(q)


def _fused_can_run(q: Tensor) -> bool:
    return q.device.type == "cpu" and q.dtype != torch.float64 and cpu_kernels.is_usable()


class BackendUnavailableError(RuntimeError):
    """A backend lacks something that this machine or this build of torch does not have."""


@functools.cache
def _say_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)


@functools.cache
def _flash_attn_package() -> Callable[..., Tensor] | None:
    try:
        from flash_attn import flash_attn_func
    except ImportError:
        return None
    return flash_attn_func


class _RecomputedInBackward(torch.autograd.Function):
    """Attention by any kernel; the backward recomputes the scores a chunk at a time.

    It keeps nothing but the inputs, and never holds more scores than a chunk has.
    """

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
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grad_out.device.type, enabled=False):
            grads = _chunked_backward(*ctx.saved_tensors, ctx.window_size, grad_out)
        return None, *grads, None


def _recomputed_in_backward(
    kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int
) -> Tensor:
    with torch.autocast(q.device.type, enabled=False):
        if not torch.is_grad_enabled():
            return kernel(q, k, v, bias_table, window_size)
        return _RecomputedInBackward.apply(kernel, q, k, v, bias_table, window_size)


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


def _chunked_forward(
    q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int
) -> Tensor:
    heads = q.shape[1]
    bias = relative_position_bias(bias_table, window_size).to(q.dtype)
    k_t = (k * k.shape[-1] ** -0.5).flatten(0, 1).transpose(-2, -1)
    q, v = q.flatten(0, 1), v.flatten(0, 1)
    out = torch.empty_like(v)
    for windows, queries in _chunks(q, heads):
        weights = _scores_softmax(q[windows, queries], k_t[windows], bias[:, queries])
        out[windows, queries] = torch.bmm(weights, v[windows])
    return out.unflatten(0, (-1, heads))


def _chunked_backward(
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


def _sdpa_forward(q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int) -> Tensor:
    bias = relative_position_bias(bias_table, window_size).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.unsqueeze(0))


def _flex_forward(q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int) -> Tensor:
    w = window_size

    def add_bias(score: Tensor, _: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        row = key // w - query // w + w - 1
        column = key % w - query % w + w - 1
        return score + bias_table[head, row * (2 * w - 1) + column]

    if q.device.type == "cpu":
        # It refuses tensors that require gradients, even where none are recorded.
        q, k, v, bias_table = (t.detach() for t in (q, k, v, bias_table))
    try:
        return _compiled_flex_attention()(q, k, v, score_mod=add_bias)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # Compilers fail in too many ways to name.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BackendUnavailableError(reason) from error


@functools.cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    import torch._dynamo.config as dynamo
    from torch.nn.attention.flex_attention import flex_attention

    # Past the limit, 8 by default, torch.compile goes on uncompiled, with all scores in memory.
    # One process may well need more variants: by window, dtype, grad mode and fixed or free sizes.
    # Past this one it fails, since the graph must be whole.
    limit = "recompile_limit" if hasattr(dynamo, "recompile_limit") else "cache_size_limit"
    compiled = torch.compile(flex_attention, fullgraph=True)

    def call(*args: Tensor, **kwargs: Kernel) -> Tensor:
        with dynamo.patch({limit: 256}):
            return compiled(*args, **kwargs)

    return call
