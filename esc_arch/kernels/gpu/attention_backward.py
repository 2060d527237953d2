"""Triton kernels of window attention, backward: passes that each recompute their scores.

No pass adds to memory that another program writes, so results are the same to the bit each run.
`queries_pass` makes the gradient of the queries and `keys_pass` those of keys and values; that of
the bias is made by `bias_gradient.bias_pass`.
"""

import triton
import triton.language as tl

from esc_arch.kernels.gpu.attention_forward import (
    bias_places,
    column_places,
    locate,
    pixels_of,
    pixels_of_program,
    reflected,
    scaled,
    scores_of,
)


@triton.jit
def selection(part, first: tl.constexpr, COUNT: tl.constexpr, dtype: tl.constexpr):
    """(16, COUNT), of ones in three rows from `first` on, else zeros."""
    chosen = (part >= first) & (part < first + 3) & (tl.arange(0, COUNT)[None, :] >= 0)
    return chosen.to(tl.float32).to(dtype)


@triton.jit
def subtracted(sums_ptr, places, mask):
    """What is taken from scores, in two parts, and from their gradients, of queries in float32."""
    top = tl.load(sums_ptr + places * 16, mask=mask, other=0.0)
    rest = tl.load(sums_ptr + places * 16 + 1, mask=mask, other=0.0)
    return top, rest, tl.load(sums_ptr + places * 16 + 8, mask=mask, other=0.0)


@triton.jit
def queries_pass(
    q_ptr,
    k_ptr,
    v_ptr,
    bias_ptr,
    sums_ptr,
    grad_out_ptr,
    grad_q_ptr,
    scale,
    score_scale,
    height,
    width,
    image_stride,
    row_stride,
    column_stride,
    out_image_stride,
    out_row_stride,
    out_column_stride,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    W: tl.constexpr,
    WHOLE: tl.constexpr,
    ONCE: tl.constexpr,
    ACROSS: tl.constexpr,
    ACROSS_M: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program: the gradient of BLOCK_M queries of one window and head.

    `scale` is 1 / sqrt(D), `score_scale` that times log2(e). `sums_ptr` is
    (windows, heads, W * W, 16), see `sums_of`. `grad_out_ptr` and `grad_q_ptr` have the out_
    strides.
    """
    PIXELS: tl.constexpr = W * W
    EVEN_M: tl.constexpr = PIXELS % BLOCK_M == 0
    EVEN: tl.constexpr = PIXELS % BLOCK_N == 0
    ROWS: tl.constexpr = BLOCK_N // ACROSS if ACROSS else BLOCK_N
    IN_MATRIX_UNITS: tl.constexpr = k_ptr.dtype.element_ty != tl.float32
    window = tl.program_id(0)
    block = tl.program_id(1)
    head = tl.program_id(2)
    image, top, left = locate(window, height, width, W)
    query_rows, query_columns, queries, first_row, first_column = pixels_of_program(
        block, W, BLOCK_M, ACROSS_M
    )
    if not WHOLE:
        if (top + first_row >= height) | (left + first_column >= width):
            return
    base = image.to(tl.int64) * image_stride + head * D
    out_base = image.to(tl.int64) * out_image_stride + head * D

    channels = tl.arange(0, D_PADDED)
    real = channels < D
    wanted = (queries < PIXELS) & (top + query_rows < height) & (left + query_columns < width)
    mask = wanted[:, None] & real[None, :]
    places = (top + query_rows) * row_stride + (left + query_columns) * column_stride
    q = tl.load(q_ptr + base + places[:, None] + channels[None, :], mask=mask, other=0.0)
    q, q_rest = scaled(q, score_scale, k_ptr.dtype.element_ty)
    places = (top + query_rows) * out_row_stride + (left + query_columns) * out_column_stride
    grad_out = tl.load(
        grad_out_ptr + out_base + places[:, None] + channels[None, :], mask=mask, other=0.0
    )
    sums_ptr += (window.to(tl.int64) * HEADS + head) * (PIXELS * 16)
    if IN_MATRIX_UNITS:
        parts = tl.arange(0, 16)
        sums = tl.load(
            sums_ptr + queries[:, None] * 16 + parts[None, :], mask=(queries < PIXELS)[:, None]
        )
        log_sums_of = selection(parts[:, None], 0, BLOCK_N, q.dtype)
        deltas_of = selection(parts[:, None], 8, BLOCK_N, q.dtype)
    else:
        tops, log_sums, deltas = subtracted(sums_ptr, queries, queries < PIXELS)

    if not EVEN_M:
        query_rows = tl.minimum(query_rows, W - 1)
    bias_ptr += head * ((2 * W - 1) * PIXELS)

    grad_q = tl.zeros([BLOCK_M, D_PADDED], tl.float32)
    for part in range(0, W // ACROSS if ACROSS else 1):
        for at in range(0, W if ACROSS else PIXELS, ROWS):
            row, key_rows, key_columns = pixels_of(at, W, BLOCK_N, ACROSS)
            column = part * ACROSS
            # In 64 bits, registers would not do.
            bias_tile = bias_places(query_rows, query_columns, key_rows, key_columns, W, False)
            columns = column_places(
                top,
                left if WHOLE else left + column,
                key_rows,
                key_columns,
                width,
                row_stride,
                column_stride,
                WHOLE,
                ONCE,
            )
            if WHOLE:
                start = base + row * row_stride + column * column_stride
                address = start + columns[:, None] + channels[None, :]
            else:
                rows = reflected(top + row + key_rows, height, ONCE) * row_stride
                address = base + (rows + columns)[:, None] + channels[None, :]
            if EVEN:
                bias = tl.load(bias_ptr + (row * PIXELS + column) + bias_tile)
            else:
                inside = row + key_rows < W
                bias = tl.load(
                    bias_ptr + (row * PIXELS + column) + bias_tile,
                    mask=inside[None, :],
                    other=float("-inf"),
                )
            if EVEN and D == D_PADDED:
                k = tl.load(k_ptr + address)
                v = tl.load(v_ptr + address)
            else:
                key_mask = (row + key_rows < W)[:, None] & real[None, :]
                k = tl.load(k_ptr + address, mask=key_mask, other=0.0)
                v = tl.load(v_ptr + address, mask=key_mask, other=0.0)
            if IN_MATRIX_UNITS:
                scores = tl.dot(sums, log_sums_of, bias, input_precision=PRECISION)
                scores = scores_of(q, q_rest, k, scores, PRECISION)
                weights = tl.exp2(scores)
                products = tl.dot(sums, deltas_of, input_precision=PRECISION)
                products = tl.dot(grad_out, tl.trans(v), products, input_precision=PRECISION)
            else:
                scores = scores_of(q, q_rest, k, bias, PRECISION)
                weights = tl.exp2(scores + tops[:, None] + log_sums[:, None])
                products = tl.dot(grad_out, tl.trans(v), input_precision=PRECISION)
                products += deltas[:, None]
            grad_scores = weights * products
            grad_q = tl.dot(grad_scores.to(k.dtype), k, grad_q, input_precision=PRECISION)

    grad_q = (grad_q * scale).to(grad_q_ptr.dtype.element_ty)
    tl.store(grad_q_ptr + out_base + places[:, None] + channels[None, :], grad_q, mask=mask)


@triton.jit
def keys_pass(
    q_ptr,
    k_ptr,
    v_ptr,
    bias_ptr,
    sums_ptr,
    grad_out_ptr,
    grad_k_ptr,
    grad_v_ptr,
    scale,
    score_scale,
    height,
    width,
    image_stride,
    row_stride,
    column_stride,
    out_image_stride,
    out_row_stride,
    out_column_stride,
    padded_image_stride,
    padded_row_stride,
    padded_column_stride,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    W: tl.constexpr,
    WHOLE: tl.constexpr,
    ONCE: tl.constexpr,
    ACROSS: tl.constexpr,
    ACROSS_M: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program: the gradients of BLOCK_M keys and values of one window and head.

    As `queries_pass`, with the two sides exchanged: `bias_ptr` holds the table turned half around.
    The gradients are those of whole windows, with the padded_ strides. In float32, queries have
    the scale of scores already, so that these are the forward's to the bit, and the out_ strides.
    """
    PIXELS: tl.constexpr = W * W
    EVEN_M: tl.constexpr = PIXELS % BLOCK_M == 0
    EVEN: tl.constexpr = PIXELS % BLOCK_N == 0
    ROWS: tl.constexpr = BLOCK_N // ACROSS if ACROSS else BLOCK_N
    IN_MATRIX_UNITS: tl.constexpr = k_ptr.dtype.element_ty != tl.float32
    window = tl.program_id(0)
    block = tl.program_id(1)
    head = tl.program_id(2)
    image, top, left = locate(window, height, width, W)
    base = image.to(tl.int64) * image_stride + head * D
    out_base = image.to(tl.int64) * out_image_stride + head * D
    sums_ptr += (window.to(tl.int64) * HEADS + head) * (PIXELS * 16)

    key_rows, key_columns, keys, _, _ = pixels_of_program(block, W, BLOCK_M, ACROSS_M)
    channels = tl.arange(0, D_PADDED)
    real = channels < D
    mask = (keys < PIXELS)[:, None] & real[None, :]
    rows, columns = top + key_rows, left + key_columns
    if not WHOLE:
        rows = reflected(rows, height, ONCE)
        columns = reflected(columns, width, ONCE)
    places = rows * row_stride + columns * column_stride
    k = tl.load(k_ptr + base + places[:, None] + channels[None, :], mask=mask, other=0.0)
    v = tl.load(v_ptr + base + places[:, None] + channels[None, :], mask=mask, other=0.0)
    # In the scores the scale is the keys', so that the queries need no copy of their own.
    scaled_k, k_rest = scaled(k, score_scale, k_ptr.dtype.element_ty)

    if IN_MATRIX_UNITS:
        parts = tl.arange(0, 16)
        log_sums_of = tl.trans(selection(parts[:, None], 0, BLOCK_M, q_ptr.dtype.element_ty))
        deltas_of = tl.trans(selection(parts[:, None], 8, BLOCK_M, q_ptr.dtype.element_ty))
    if not EVEN_M:
        key_rows = tl.minimum(key_rows, W - 1)
    bias_ptr += head * ((2 * W - 1) * PIXELS)

    grad_k = tl.zeros([BLOCK_M, D_PADDED], tl.float32)
    grad_v = tl.zeros([BLOCK_M, D_PADDED], tl.float32)
    # Rows of queries below the image weigh nothing.
    wanted_rows = W if WHOLE else tl.minimum(height - top, W)
    end = wanted_rows if ACROSS else wanted_rows * W
    for part in range(0, W // ACROSS if ACROSS else 1):
        for at in range(0, end, ROWS):
            row, query_rows, query_columns = pixels_of(at, W, BLOCK_N, ACROSS)
            column = part * ACROSS
            bias_tile = bias_places(
                key_rows, key_columns, query_rows, query_columns, W, ACROSS_M > 0
            )
            down, right = top + query_rows, left + query_columns
            query_places = down * row_stride + right * column_stride
            start = base + row * row_stride + column * column_stride
            address = start + query_places[:, None] + channels[None, :]
            query_places = down * out_row_stride + right * out_column_stride
            start = out_base + row * out_row_stride + column * out_column_stride
            out_address = start + query_places[:, None] + channels[None, :]
            numbers = query_rows * W + query_columns
            if IN_MATRIX_UNITS:
                sums_places = numbers[:, None] * 16 + parts[None, :]
                sums_address = sums_ptr + (row * W + column) * 16 + sums_places
            # Queries outside of the image are in `sums` as ones without weights.
            inside = row + query_rows < W
            if EVEN:
                bias = tl.load(bias_ptr + (row * PIXELS + column) + bias_tile)
            else:
                bias = tl.load(
                    bias_ptr + (row * PIXELS + column) + bias_tile,
                    mask=inside[None, :],
                    other=float("-inf"),
                )
            if not IN_MATRIX_UNITS:
                tops, log_sums, deltas = subtracted(
                    sums_ptr + (row * W + column) * 16, numbers, inside
                )
                address = out_address
            elif EVEN:
                sums = tl.load(sums_address)
            else:
                sums = tl.load(sums_address, mask=inside[:, None], other=0.0)
            if (EVEN and WHOLE) and D == D_PADDED:
                q = tl.load(q_ptr + address)
                grad_out = tl.load(grad_out_ptr + out_address)
            else:
                inside = (row + down < height) & (column + right < width)
                if not EVEN:
                    inside = inside & (row + query_rows < W)
                query_mask = inside[:, None] & real[None, :]
                q = tl.load(q_ptr + address, mask=query_mask, other=0.0)
                grad_out = tl.load(grad_out_ptr + out_address, mask=query_mask, other=0.0)
            if IN_MATRIX_UNITS:
                scores = tl.dot(log_sums_of, tl.trans(sums), bias, input_precision=PRECISION)
                scores = scores_of(scaled_k, k_rest, q, scores, PRECISION)
                weights = tl.exp2(scores)
            else:
                scores = scores_of(scaled_k, k_rest, q, bias, PRECISION)
                weights = tl.exp2(scores + tops[None, :] + log_sums[None, :])
            grad_v = tl.dot(weights.to(q.dtype), grad_out, grad_v, input_precision=PRECISION)
            if IN_MATRIX_UNITS:
                products = tl.dot(deltas_of, tl.trans(sums), input_precision=PRECISION)
                products = tl.dot(v, tl.trans(grad_out), products, input_precision=PRECISION)
            else:
                products = tl.dot(v, tl.trans(grad_out), input_precision=PRECISION)
                products += deltas[None, :]
            grad_scores = weights * products
            grad_k = tl.dot(grad_scores.to(q.dtype), q, grad_k, input_precision=PRECISION)

    places = (top + keys // W) * padded_row_stride + (left + key_columns) * padded_column_stride
    address = image.to(tl.int64) * padded_image_stride + head * D
    address += places[:, None] + channels[None, :]
    tl.store(grad_k_ptr + address, (grad_k * scale).to(grad_k_ptr.dtype.element_ty), mask=mask)
    tl.store(grad_v_ptr + address, grad_v.to(grad_v_ptr.dtype.element_ty), mask=mask)
