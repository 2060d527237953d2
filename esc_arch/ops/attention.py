"""Window attention with a relative position bias: one function, several backends.

All backends compute the same function, softmax(q k^T / sqrt(D) + B) v, and share one signature,
`(q, k, v, bias_table, window_size) -> out`:

| `attn_type` | what runs                                                   | where          |
|-------------|-------------------------------------------------------------|----------------|
| `Naive`     | the formula as written, all windows' scores at once         | everywhere     |
| `Fused`     | our own kernel, in `esc_arch.kernels.cpu`; inside it is in  | CPU, if built  |
|             | float32, but for bfloat16 on AMX matrix units               |                |
| `Triton`  | our own kernel for GPUs, in `esc_arch.kernels.gpu`          | CUDA, Triton   |
| `Chunked`   | our own: scores a few at a time, recomputed in the backward | everywhere     |
| `SDPA`      | torch's scaled_dot_product_attention, the bias as its mask; |                |
|             | backward as `Chunked`                                       | everywhere     |
| `Flex`      | compiled FlexAttention, the bias gathered inside the kernel | with a compiler |

`Auto`, the default, is what `esc_arch.kernels.choose` decides: `Triton` on CUDA, or `Flex` where
that fails and for float64; `Fused` on the CPU, but for float64; `SDPA` elsewhere and where these
cannot run.

`FlashBias` has learned factors in place of the table and so a function of its own,
`flashbias_attention`.

No backend stores an index table, and none but `Naive` holds the scores of all windows at once:
where a kernel of torch would (the gradient of a mask), `Chunked`'s backward takes over.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from esc_arch.errors import UserError
from esc_arch.ops.bias import relative_position_bias
from esc_arch.ops.chunked import Kernel, chunked, naive, recomputed_in_backward
from esc_arch.ops.faults import attention_fault, refuse_fault, table_fault
from esc_arch.ops.flex import BackendUnavailableError, flex
from esc_arch.ops.fusible import fusible
from esc_arch.ops.windows import from_maps, in_windows, pad_to_multiple, to_maps


def sdpa(q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int) -> Tensor:
    """Backend on torch's scaled_dot_product_attention: see `window_attention`."""
    return recomputed_in_backward(_sdpa_forward, q, k, v, bias_table, window_size)


def by_kernel(
    name: str, q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int
) -> Tensor:
    """Backend on a kernel of our own: see `window_attention`."""
    maps = (to_maps(x, window_size) for x in (q, k, v))
    out = feature_attention(*maps, bias_table, window_size, name)
    return from_maps(out, window_size, q.shape[1])


Layer = Callable[[Tensor], Tensor]

# What can be asked for by name. Kernels of `esc_arch.kernels` are reached through
# `feature_attention`; the others are torch's operations.
BACKENDS: dict[str, Kernel] = {
    "Naive": naive,
    "Fused": functools.partial(by_kernel, "Fused"),
    "Triton": functools.partial(by_kernel, "Triton"),
    "Chunked": chunked,
    "SDPA": sdpa,
    "Flex": flex,
}
KERNELS = ("Fused", "Triton")
# What Flex failed at: each try is a compilation.
_flex_fails: set[tuple] = set()
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
        attn_type: `Auto` or a key of `BACKENDS`.

    Returns:
        (windows, heads, w * w, D). Gradients reach q, k, v and the table with every backend.

    Raises:
        UserError: The backend asked for by name cannot run here.
        ValueError: Shapes do not fit.
    """
    if q.ndim != 4 or q.shape[2] != window_size**2 or k.shape != q.shape or v.shape != q.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(
            f"q, k and v are {shapes}; they must be alike, (windows, heads, {window_size**2}, D)"
        )
    if attn_type in BACKENDS and attn_type not in KERNELS:
        refuse_fault(table_fault, bias_table, q.shape[1], window_size)
        return _by_torch(attn_type)(q, k, v, bias_table, window_size)
    maps = (to_maps(x, window_size) for x in (q, k, v))
    out = feature_attention(*maps, bias_table, window_size, attn_type)
    return from_maps(out, window_size, q.shape[1])


@fusible
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
        q: Queries (B, C, H, W), heads, then channels of a head, not yet scaled. Any H and W;
            windows are completed by reflection at the bottom and the right.
        k: Keys, same shape.
        v: Values, same shape.
        bias_table: (heads, (2w - 1)^2).
        window_size: Side w of a window in pixels.
        attn_type: See `window_attention`.

    Returns:
        (B, C, H, W).

    Raises:
        UserError: The backend asked for by name cannot run here.
        ValueError: Shapes do not fit.
    """
    refuse_fault(attention_fault, q, k, v, bias_table, window_size)
    # A kernel asked for by name that no trace or export can hold is handed back to torch.
    attend = sdpa if attn_type == "Auto" or attn_type in KERNELS else _by_torch(attn_type)
    return attend_in_windows(attend, q, k, v, bias_table, window_size)


@fusible
def self_attention(
    x: Tensor, to_qkv: Layer, bias_table: Tensor, window_size: int, attn_type: str = "Auto"
) -> Tensor:
    """Attend from features to features of the same window, with a bias by relative position.

    Args:
        x: Features (B, C, H, W), any H and W; padded to whole windows by reflection.
        to_qkv: Makes queries, keys and values of them, (B, 3 * C, H, W), pixel by pixel.
        bias_table: (heads, (2w - 1)^2).
        window_size: Side w of a window in pixels.
        attn_type: See `window_attention`.

    Returns:
        (B, C, H, W).

    Raises:
        UserError: The backend asked for by name cannot run here.
        ValueError: Shapes do not fit.
    """
    height, width = x.shape[-2:]
    q, k, v = to_qkv(pad_to_multiple(x, window_size)).chunk(3, dim=1)
    out = feature_attention(q, k, v, bias_table, window_size, attn_type)
    return out[..., :height, :width]


def attend_in_windows(
    attend: Kernel, q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int
) -> Tensor:
    """Compute `feature_attention` by a backend that takes whole windows; arguments as there."""

    height, width = q.shape[-2:]
    q, k, v = (pad_to_multiple(x, window_size) for x in (q, k, v))

    def biased(*windows: Tensor) -> Tensor:
        return attend(*windows, bias_table, window_size)

    out = in_windows(biased, q, k, v, window_size=window_size, num_heads=bias_table.shape[0])
    return out[..., :height, :width]


def _by_torch(attn_type: str) -> Kernel:
    def attend(*args: Any) -> Tensor:
        try:
            return BACKENDS[attn_type](*args)
        except BackendUnavailableError as error:
            raise UserError(
                f"attn_type {attn_type!r} cannot run here: {error}; use 'Auto'"
            ) from error

    return attend


def flex_or_sdpa(q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int) -> Tensor:
    """Attend by `flex`, or, where it fails, by `sdpa`, which is said once."""
    if torch.compiler.is_compiling():
        return flex(q, k, v, bias_table, window_size)
    how = q.device, q.dtype, q.shape[-1], window_size, torch.is_grad_enabled()
    if how not in _flex_fails:
        try:
            return flex(q, k, v, bias_table, window_size)
        except BackendUnavailableError as error:
            _flex_fails.add(how)
            _say_once(f"attn_type 'Auto': Flex cannot run here ({error}); SDPA runs instead")
    return sdpa(q, k, v, bias_table, window_size)


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
        out = _in_known_layout(F.scaled_dot_product_attention(q, k, v, scale=1.0))
    return out[..., :head_dim]


@fusible
def flashbias_self_attention(
    x: Tensor, to_qkv: Layer, bias_q: Tensor, bias_k: Tensor, window_size: int
) -> Tensor:
    """Compute `flashbias_attention` on feature maps, which are cut into windows.

    Args:
        x: Features (B, C, H, W); padded to whole windows by reflection.
        to_qkv: Makes queries, keys and values of them, (B, 3 * C, H, W).
        bias_q: Factor of the queries (heads, w * w, R).
        bias_k: Factor of the keys (heads, w * w, R).
        window_size: Side w of a window in pixels.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: Shapes do not fit.
    """
    if bias_q.shape[1] != window_size**2:
        raise ValueError(
            f"the bias's factors have {bias_q.shape[1]} rows; "
            f"windows of {window_size} need {window_size**2}"
        )
    height, width = x.shape[-2:]
    q, k, v = to_qkv(pad_to_multiple(x, window_size)).chunk(3, dim=1)

    def attend(*windows: Tensor) -> Tensor:
        return flashbias_attention(*windows, bias_q, bias_k)

    out = in_windows(attend, q, k, v, window_size=window_size, num_heads=bias_q.shape[0])
    return out[..., :height, :width]


def _sdpa_forward(q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int) -> Tensor:
    bias = relative_position_bias(bias_table, window_size).to(q.dtype)
    return _in_known_layout(F.scaled_dot_product_attention(q, k, v, attn_mask=bias.unsqueeze(0)))


def _in_known_layout(out: Tensor) -> Tensor:
    """Copy what torch's attention returns, in graphs, which keep the strides they were made with.

    Its strides depend on which of its kernels runs, thus in PyTorch 2.4 on whether gradients are
    wanted, and an export may be made without and called with them.
    """
    if torch.compiler.is_compiling():
        return out.clone(memory_format=torch.contiguous_format)
    return out


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
