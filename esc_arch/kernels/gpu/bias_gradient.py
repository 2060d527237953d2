"""Triton kernel of window attention, backward: the gradient of the bias, summed over all windows.

A program adds up a tile by itself, window after window, so it is the same to the bit each run.
"""

import triton
import triton.language as tl

from esc_arch.kernels.gpu.attention_backward import selection, subtracted
from esc_arch.kernels.gpu.attention_forward import bias_places, reflected


@triton.jit
def bias_pass(
    scaled_q_ptr,
    k_ptr,
    v_ptr,
    bias_ptr,
    sums_ptr,
    grad_out_ptr,
    grad_bias_ptr,
    origins_ptr,
    filled,
    windows,
    first_head,
    height,
    width,
    row_stride,
    column_stride,
    out_row_stride,
    out_column_stride,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    W: tl.constexpr,
    WHOLE: tl.constexpr,
    ONCE: tl.constexpr,
    ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program: the gradient of a tile of one head's bias, summed over all windows.

    `origins_ptr` is (windows, 5) of int64, first the `filled` windows that the image fills: where
    a window begins in keys, in results and in `sums_ptr`, and its first row and column; ALIGNED
    says that it begins at multiples of 16. `scaled_q_ptr` has queries times the scale of scores,
    with the strides of results. `grad_bias_ptr` is (heads from `first_head` on, W * W, W * W) in
    float32, queries by keys.
    """
    PIXELS: tl.constexpr = W * W
    FILLED: tl.constexpr = (PIXELS % BLOCK_M == 0) and (PIXELS % BLOCK_N == 0)
    EVEN: tl.constexpr = FILLED and (D == D_PADDED)
    IN_MATRIX_UNITS: tl.constexpr = k_ptr.dtype.element_ty != tl.float32
    head = first_head + tl.program_id(2)
    queries = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    keys = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    query_rows, query_columns = queries // W, queries % W
    key_rows, key_columns = keys // W, keys % W
    channels = tl.arange(0, D_PADDED)
    real = channels < D

    inside = (queries < PIXELS)[:, None] & (keys < PIXELS)[None, :]
    bias_tile = bias_places(query_rows, query_columns, key_rows, key_columns, W, False)
    bias_ptr += head * ((2 * W - 1) * PIXELS)
    bias = tl.load(bias_ptr + bias_tile, mask=inside, other=float("-inf"))

    if IN_MATRIX_UNITS:
        parts = tl.arange(0, 16)
        log_sums_of = selection(parts[:, None], 0, BLOCK_N, k_ptr.dtype.element_ty)
        deltas_of = selection(parts[:, None], 8, BLOCK_N, k_ptr.dtype.element_ty)
        sums_places = (head * PIXELS + queries)[:, None] * 16 + parts[None, :]
    out_places = query_rows * out_row_stride + query_columns * out_column_stride
    key_places = key_rows * row_stride + key_columns * column_stride
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    # Windows that the image fills need neither masks nor reflection.
    for completed in tl.static_range(0, 1 if WHOLE else 2):
        for window in range(filled if completed else 0, windows if completed else filled):
            origin_ptr = origins_ptr + 5 * window
            base, out_base = tl.load(origin_ptr), tl.load(origin_ptr + 1)
            if ALIGNED:
                # Loads are then of 16 bytes each.
                base, out_base = tl.multiple_of(base, 16), tl.multiple_of(out_base, 16)
            base, out_base = base + head * D, out_base + head * D
            out_address = out_base + out_places[:, None] + channels[None, :]
            if completed:
                top = tl.load(origin_ptr + 3).to(tl.int32)
                left = tl.load(origin_ptr + 4).to(tl.int32)
                rows = reflected(top + key_rows, height, ONCE) - top
                columns = reflected(left + key_columns, width, ONCE) - left
                key_address = base + (rows * row_stride + columns * column_stride)[:, None]
                key_address += channels[None, :]
            else:
                key_address = base + key_places[:, None] + channels[None, :]
            sums_start = tl.multiple_of(tl.load(origin_ptr + 2), 16)
            if IN_MATRIX_UNITS:
                sums_address = sums_start + sums_places
            else:
                tops, log_sums, deltas = subtracted(
                    sums_ptr + sums_start, head * PIXELS + queries, queries < PIXELS
                )
            if EVEN and not completed:
                q = tl.load(scaled_q_ptr + out_address)
                grad_out = tl.load(grad_out_ptr + out_address)
                k = tl.load(k_ptr + key_address)
                v = tl.load(v_ptr + key_address)
                if IN_MATRIX_UNITS:
                    sums = tl.load(sums_ptr + sums_address)
            else:
                wanted = queries < PIXELS
                if IN_MATRIX_UNITS:
                    sums = tl.load(sums_ptr + sums_address, mask=wanted[:, None], other=0.0)
                if completed:
                    wanted = wanted & (top + query_rows < height) & (left + query_columns < width)
                mask = wanted[:, None] & real[None, :]
                q = tl.load(scaled_q_ptr + out_address, mask=mask, other=0.0)
                grad_out = tl.load(grad_out_ptr + out_address, mask=mask, other=0.0)
                key_mask = (keys < PIXELS)[:, None] & real[None, :]
                k = tl.load(k_ptr + key_address, mask=key_mask, other=0.0)
                v = tl.load(v_ptr + key_address, mask=key_mask, other=0.0)
            if IN_MATRIX_UNITS:
                scores = tl.dot(sums, log_sums_of, bias, input_precision=PRECISION)
                scores = tl.dot(q, tl.trans(k), scores, input_precision=PRECISION)
                products = tl.dot(sums, deltas_of, input_precision=PRECISION)
                products = tl.dot(grad_out, tl.trans(v), products, input_precision=PRECISION)
            else:
                scores = tl.dot(q, tl.trans(k), bias, input_precision=PRECISION)
                scores = scores + tops[:, None] + log_sums[:, None]
                products = tl.dot(grad_out, tl.trans(v), input_precision=PRECISION)
                products += deltas[:, None]
            total += tl.exp2(scores) * products

    address = (tl.program_id(2) * PIXELS + queries).to(tl.int64)[:, None] * PIXELS + keys[None, :]
    tl.store(grad_bias_ptr + address, total, mask=inside)
