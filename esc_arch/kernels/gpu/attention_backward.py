"""Triton kernels of window attention, backward: three passes, each recomputing its scores.

No pass adds to memory that another program writes, so results are the same to the bit each run.
`queries_pass` makes the gradient of the queries, `keys_pass` those of keys and values, and
`bias_pass` that of the bias, summed over all windows.
"""

import triton
import triton.language as tl

from esc_arch.kernels.gpu.attention_forward import (
    bias_places,
    column_places,
    locate,
    pixels_of,
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
    window = tl.program_id(0)
    block = tl.program_id(1)
    head = tl.program_id(2)
    image, top, left = locate(window, height, width, W)
    if not WHOLE:
        if top + block * BLOCK_M // W >= height:
            return
    base = image.to(tl.int64) * image_stride + head * D
    out_base = image.to(tl.int64) * out_image_stride + head * D

    queries = block * BLOCK_M + tl.arange(0, BLOCK_M)
    query_rows, query_columns = queries // W, queries % W
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
    parts = tl.arange(0, 16)
    sums_ptr += (window.to(tl.int64) * HEADS + head) * (PIXELS * 16)
    sums = tl.load(
        sums_ptr + queries[:, None] * 16 + parts[None, :], mask=(queries < PIXELS)[:, None]
    )
    log_sums_of = selection(parts[:, None], 0, BLOCK_N, q.dtype)
    deltas_of = selection(parts[:, None], 8, BLOCK_N, q.dtype)

    if not EVEN_M:
        query_rows = tl.minimum(query_rows, W - 1)
    bias_ptr += head * ((2 * W - 1) * PIXELS)

    grad_q = tl.zeros([BLOCK_M, D_PADDED], tl.float32)
    for part in range(0, W // ACROSS if ACROSS else 1):
        for at in range(0, W if ACROSS else PIXELS, ROWS):
            row, key_rows, key_columns = pixels_of(at, W, BLOCK_N, ACROSS)
            column = part * ACROSS
            bias_tile = bias_places(query_rows, query_columns, key_rows, key_columns, W)
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
            scores = tl.dot(sums, log_sums_of, bias, input_precision=PRECISION)
            scores = scores_of(q, q_rest, k, scores, PRECISION)
            weights = tl.exp2(scores)
            products = tl.dot(sums, deltas_of, input_precision=PRECISION)
            products = tl.dot(grad_out, tl.trans(v), products, input_precision=PRECISION)
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
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program: the gradients of BLOCK_M keys and values of one window and head.

    As `queries_pass`, with the two sides exchanged: `bias_ptr` holds the table turned half around.
    The gradients are those of whole windows, with the padded_ strides.
    """
    PIXELS: tl.constexpr = W * W
    EVEN_M: tl.constexpr = PIXELS % BLOCK_M == 0
    EVEN: tl.constexpr = PIXELS % BLOCK_N == 0
    ROWS: tl.constexpr = BLOCK_N // ACROSS if ACROSS else BLOCK_N
    window = tl.program_id(0)
    block = tl.program_id(1)
    head = tl.program_id(2)
    image, top, left = locate(window, height, width, W)
    base = image.to(tl.int64) * image_stride + head * D
    out_base = image.to(tl.int64) * out_image_stride + head * D
    sums_ptr += (window.to(tl.int64) * HEADS + head) * (PIXELS * 16)

    keys = block * BLOCK_M + tl.arange(0, BLOCK_M)
    key_rows, key_columns = keys // W, keys % W
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
            bias_tile = bias_places(key_rows, key_columns, query_rows, query_columns, W)
            down, right = top + query_rows, left + query_columns
            query_places = down * row_stride + right * column_stride
            start = base + row * row_stride + column * column_stride
            address = start + query_places[:, None] + channels[None, :]
            query_places = down * out_row_stride + right * out_column_stride
            start = out_base + row * out_row_stride + column * out_column_stride
            out_address = start + query_places[:, None] + channels[None, :]
            sums_places = (query_rows * W + query_columns)[:, None] * 16 + parts[None, :]
            sums_address = sums_ptr + (row * W + column) * 16 + sums_places
            if EVEN:
                bias = tl.load(bias_ptr + (row * PIXELS + column) + bias_tile)
                sums = tl.load(sums_address)
            else:
                # Queries outside of the image are in `sums` as ones without weights.
                inside = row + query_rows < W
                bias = tl.load(
                    bias_ptr + (row * PIXELS + column) + bias_tile,
                    mask=inside[None, :],
                    other=float("-inf"),
                )
                sums = tl.load(sums_address, mask=inside[:, None], other=0.0)
            if EVEN and WHOLE and D == D_PADDED:
                q = tl.load(q_ptr + address)
                grad_out = tl.load(grad_out_ptr + out_address)
            else:
                inside = (row + down < height) & (column + right < width)
                if not EVEN:
                    inside = inside & (row + query_rows < W)
                query_mask = inside[:, None] & real[None, :]
                q = tl.load(q_ptr + address, mask=query_mask, other=0.0)
                grad_out = tl.load(grad_out_ptr + out_address, mask=query_mask, other=0.0)
            scores = tl.dot(log_sums_of, tl.trans(sums), bias, input_precision=PRECISION)
            scores = scores_of(scaled_k, k_rest, q, scores, PRECISION)
            weights = tl.exp2(scores)
            grad_v = tl.dot(weights.to(q.dtype), grad_out, grad_v, input_precision=PRECISION)
            products = tl.dot(deltas_of, tl.trans(sums), input_precision=PRECISION)
            products = tl.dot(v, tl.trans(grad_out), products, input_precision=PRECISION)
            grad_scores = weights * products
            grad_k = tl.dot(grad_scores.to(q.dtype), q, grad_k, input_precision=PRECISION)

    places = (top + keys // W) * padded_row_stride + (left + key_columns) * padded_column_stride
    address = image.to(tl.int64) * padded_image_stride + head * D
    address += places[:, None] + channels[None, :]
    tl.store(grad_k_ptr + address, (grad_k * scale).to(grad_k_ptr.dtype.element_ty), mask=mask)
    tl.store(grad_v_ptr + address, grad_v.to(grad_v_ptr.dtype.element_ty), mask=mask)


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
    EVEN: tl.constexpr = PIXELS % BLOCK_M == 0 and PIXELS % BLOCK_N == 0 and D == D_PADDED
    head = first_head + tl.program_id(2)
    queries = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    keys = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    query_rows, query_columns = queries // W, queries % W
    key_rows, key_columns = keys // W, keys % W
    channels = tl.arange(0, D_PADDED)
    real = channels < D

    inside = (queries < PIXELS)[:, None] & (keys < PIXELS)[None, :]
    bias_tile = bias_places(query_rows, query_columns, key_rows, key_columns, W)
    bias_ptr += head * ((2 * W - 1) * PIXELS)
    bias = tl.load(bias_ptr + bias_tile, mask=inside, other=float("-inf"))

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
            sums_address = tl.multiple_of(tl.load(origin_ptr + 2), 16) + sums_places
            if EVEN and not completed:
                q = tl.load(scaled_q_ptr + out_address)
                grad_out = tl.load(grad_out_ptr + out_address)
                k = tl.load(k_ptr + key_address)
                v = tl.load(v_ptr + key_address)
                sums = tl.load(sums_ptr + sums_address)
            else:
                wanted = queries < PIXELS
                sums = tl.load(sums_ptr + sums_address, mask=wanted[:, None], other=0.0)
                if completed:
                    wanted = wanted & (top + query_rows < height) & (left + query_columns < width)
                mask = wanted[:, None] & real[None, :]
                q = tl.load(scaled_q_ptr + out_address, mask=mask, other=0.0)
                grad_out = tl.load(grad_out_ptr + out_address, mask=mask, other=0.0)
                key_mask = (keys < PIXELS)[:, None] & real[None, :]
                k = tl.load(k_ptr + key_address, mask=key_mask, other=0.0)
                v = tl.load(v_ptr + key_address, mask=key_mask, other=0.0)
            scores = tl.dot(sums, log_sums_of, bias, input_precision=PRECISION)
            scores = tl.dot(q, tl.trans(k), scores, input_precision=PRECISION)
            products = tl.dot(sums, deltas_of, input_precision=PRECISION)
            products = tl.dot(grad_out, tl.trans(v), products, input_precision=PRECISION)
            total += tl.exp2(scores) * products

    address = (tl.program_id(2) * PIXELS + queries).to(tl.int64)[:, None] * PIXELS + keys[None, :]
    tl.store(grad_bias_ptr + address, total, mask=inside)
