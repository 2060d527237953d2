"""From a table of relative position biases to the two factors of FlashBias."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from esc_arch.ops.bias import relative_position_bias

TABLE, FACTOR_Q, FACTOR_K = "relative_position_bias", "flashbias_q", "flashbias_k"


def factorize_bias(bias_table: Tensor, window_size: int, rank: int) -> tuple[Tensor, Tensor]:
    """Best approximation of every head's bias by factors of a given rank (truncated SVD).

    The bias is a two-level Toeplitz matrix, so that with its rows in reverse it is symmetric: its
    eigenvalues and eigenvectors give the singular value decomposition, at a fraction of the work.

    Args:
        bias_table: (heads, (2w - 1)^2).
        window_size: Side w of a window in pixels.
        rank: Number R of singular values kept, from 1 to w * w. The factors of a lower rank are the
            first columns of these.

    Returns:
        Factors of queries and keys, (heads, w * w, R) each, in the table's dtype; B is about
        q k^T. The largest singular value comes first, its root in each factor.
    """
    # In double precision, since small singular values drown in the rounding of the large ones.
    reversed_rows = relative_position_bias(bias_table.double(), window_size).flip(1)
    values, vectors = torch.linalg.eigh(reversed_rows)
    order = values.abs().argsort(dim=-1, descending=True)[:, :rank]
    values = values.gather(-1, order).unsqueeze(1)
    vectors = vectors.gather(-1, order.unsqueeze(1).expand(-1, vectors.shape[1], -1))
    root = values.abs().sqrt()
    q = (vectors * root).flip(1)
    k = vectors * root * values.sign()
    return q.to(bias_table.dtype).contiguous(), k.to(bias_table.dtype).contiguous()


def largest_bias_error(bias_table: Tensor, window_size: int, q: Tensor, k: Tensor) -> float:
    """Largest difference between a bias and its factors' product, over all heads and pixel pairs.

    Args:
        bias_table: (heads, (2w - 1)^2).
        window_size: Side w of a window in pixels.
        q: Factor of the queries (heads, w * w, R).
        k: Factor of the keys, same shape.
    """
    bias = relative_position_bias(bias_table.double(), window_size)
    return (bias - q.double() @ k.double().transpose(-2, -1)).abs().max().item()


def factorize_state_dict(
    params: Mapping[str, Tensor],
    window_size: int,
    ranks: Sequence[int],
    on_table: Callable[[], object] = lambda: None,
) -> tuple[dict[int, dict[str, Tensor]], dict[int, float]]:
    """Replace the bias tables in a network's tensors by factors.

    Args:
        params: Tensors by name, with tables `...relative_position_bias`.
        window_size: Side w of a window in pixels.
        ranks: Ranks wanted, each from 1 to w * w.
        on_table: Called after each table; a large network takes minutes.

    Returns:
        For each rank the tensors by name, with `...flashbias_q` and `...flashbias_k` in the
        tables' places; and for each rank the largest error of any bias.
    """
    results: dict[int, dict[str, Tensor]] = {rank: {} for rank in ranks}
    errors = dict.fromkeys(ranks, 0.0)
    for name, value in params.items():
        if not name.endswith(TABLE):
            for result in results.values():
                result[name] = value
            continue
        prefix = name.removesuffix(TABLE)
        q, k = factorize_bias(value, window_size, max(ranks))
        for rank, result in results.items():
            factors = q[..., :rank].contiguous(), k[..., :rank].contiguous()
            result[prefix + FACTOR_Q], result[prefix + FACTOR_K] = factors
            errors[rank] = max(errors[rank], largest_bias_error(value, window_size, *factors))
        on_table()
    return results, errors
