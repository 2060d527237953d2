"""Window attention on compiled FlexAttention, the bias gathered inside the kernel."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from esc_arch.ops.chunked import recomputed_in_backward


class BackendUnavailableError(RuntimeError):
    """A backend lacks something that this machine or this build of torch does not have."""


def flex(q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int) -> Tensor:
    """Backend on compiled FlexAttention: see `attention.window_attention`."""
    if q.device.type == "cpu":
        # FlexAttention has no backward on the CPU.
        return recomputed_in_backward(_forward, q, k, v, bias_table, window_size)
    return _forward(q, k, v, bias_table, window_size)


def _forward(q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int) -> Tensor:
    w = window_size

    def add_bias(score: Tensor, _: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        row = key // w - query // w + w - 1
        column = key % w - query % w + w - 1
        return score + bias_table[head, row * (2 * w - 1) + column]

    if q.device.type == "cpu":
        # It refuses tensors that require gradients, even where none are recorded.
        q, k, v, bias_table = (t.detach() for t in (q, k, v, bias_table))
    head_dim = q.shape[-1]
    # PyTorch 2.6 refuses other numbers of channels; Triton's products take 16 at least.
    more = max(16, 1 << (head_dim - 1).bit_length()) - head_dim
    if more:
        q, k, v = (F.pad(t, (0, more)) for t in (q, k, v))
    try:
        out = _compiled_flex_attention()(q, k, v, score_mod=add_bias, scale=head_dim**-0.5)
        return out[..., :head_dim]
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

    def call(*args: Tensor, **kwargs: Any) -> Tensor:
        with dynamo.patch({limit: 256}):
            return compiled(*args, **kwargs)

    return call
