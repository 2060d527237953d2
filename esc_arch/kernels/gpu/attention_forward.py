"""Triton kernel of window attention, forward.

Softmax(q k^T / sqrt(D) + B) v within windows of feature maps whose channels lie last, computed as
FlashAttention does (Dao et al., 2022): no more than a tile of scores exists at a time. Scores are
in base 2, with log2(e) folded into the queries and the bias.
"""

import triton
import triton.language as tl


@triton.jit
def reflected(position, size, ONCE: tl.constexpr):
    """Where a pixel of an image lies that is continued at its end by reflection.

    ONCE: no further than to its first pixel, as where images are as large as windows.
    """
    period = 2 * (size - 1)
    if not ONCE:
        period = tl.maximum(period, 1)
        position = position % period
    return tl.minimum(position, period - position)


@triton.jit
def locate(window, height, width, W: tl.constexpr):
    """Image, first row and first column of a window."""
    columns = (width + W - 1) // W
    windows = columns * ((height + W - 1) // W)
    place = window % windows
    return window // windows, place // columns * W, place % columns * W


@triton.jit
def scaled(x, scale, dtype: tl.constexpr):
    """`scale` times x in a dtype, and what its rounding takes away, which scores would show."""
    product = x.to(tl.float32) * scale
    rounded = product.to(dtype)
    return rounded, (product - rounded.to(tl.float32)).to(dtype)


@triton.jit
def scores_of(first, rest, second, start, PRECISION: tl.constexpr):
    """`start` plus the products of rows, of which the first ones are two numbers, see `scaled`."""
    if first.dtype != tl.float32:
        start = tl.dot(rest, tl.trans(second), start)
    return tl.dot(first, tl.trans(second), start, input_precision=PRECISION)


@triton.jit
def pixels_of(at, W: tl.constexpr, COUNT: tl.constexpr, ACROSS: tl.constexpr):
    """A row of a window, and rows (from that one on) and columns of COUNT of its pixels.

    These are a tile of ACROSS columns, and `at` its first row, where such tiles fill the window
    (see `columns_of_tile`); in a loop the compiler then computes once what does not depend on it.
    Else ACROSS is 0, and `at` the first of COUNT pixels one after the other.
    """
    pixels = tl.arange(0, COUNT)
    row = at
    if ACROSS == 0:
        pixels += at
        row = 0
    across: tl.constexpr = ACROSS if ACROSS else W
    return row, pixels // across, pixels % across


@triton.jit
def pixels_of_program(block, W: tl.constexpr, COUNT: tl.constexpr, ACROSS: tl.constexpr):
    """Rows, columns and numbers of the COUNT pixels of a program; its first row and column.

    They are a tile of ACROSS columns, as in `pixels_of`: places of biases are then sums with
    constants. Else ACROSS is 0, and they are one after the other.
    """
    if ACROSS == 0:
        first_row, first_column = block * COUNT // W, 0
        numbers = block * COUNT + tl.arange(0, COUNT)
        rows, columns = numbers // W, numbers % W
    else:
        tiles: tl.constexpr = W // ACROSS
        first_row, first_column = block // tiles * (COUNT // ACROSS), block % tiles * ACROSS
        rows = first_row + tl.arange(0, COUNT) // ACROSS
        columns = first_column + tl.arange(0, COUNT) % ACROSS
        numbers = rows * W + columns
    return rows, columns, numbers, first_row, first_column


@triton.jit
def bias_places(rows, columns, other_rows, other_columns, W: tl.constexpr, IN_TILES: tl.constexpr):
    """Where the biases of pixels (rows) with other pixels (columns) lie in `layouts.bias_tiles`.

    IN_TILES: the pixels are a tile of a window. Compilers see sums with constants in 64 bits alone.
    """
    if IN_TILES:
        rows, columns = rows.to(tl.int64), columns.to(tl.int64)
    places = ((W - 1 - rows) * W + columns) * W
    return places[:, None] + (other_rows * (W * W) + other_columns)[None, :]


@triton.jit
def column_places(
    top,
    left,
    rows,
    columns,
    width,
    row_stride,
    column_stride,
    WHOLE: tl.constexpr,
    ONCE: tl.constexpr,
):
    """What does not depend on the row of the window that pixels are in, of where they lie."""
    places = left + columns
    if not WHOLE:
        places = reflected(places, width, ONCE)
    places = places * column_stride
    if WHOLE:
        places += (top + rows) * row_stride
    return places


@triton.jit
def window_attention_forward(
    q_ptr,
    k_ptr,
    v_ptr,
    bias_ptr,
    out_ptr,
    log_sums_ptr,
    scale,
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
    SUMS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program: BLOCK_M queries of one window and head.

    `bias_ptr` is (heads, 2 W - 1, W, W) in float32, base 2: row distance, query column, key column.
    `log_sums_ptr` is (windows, heads, 2, W * W) in float32: of each query the largest score, and
    log2 of its sum of exponentials over that; zero where all of the program's queries are outside
    of the image. SUMS: equal columns of sums of exponentials, as few as the matrix units make.
    """
    PIXELS: tl.constexpr = W * W
    EVEN_M: tl.constexpr = PIXELS % BLOCK_M == 0
    EVEN: tl.constexpr = PIXELS % BLOCK_N == 0
    ROWS: tl.constexpr = BLOCK_N // ACROSS if ACROSS else BLOCK_N
    IN_MATRIX_UNITS: tl.constexpr = k_ptr.dtype.element_ty != tl.float32
    # Neighbouring programs share the bias, which then comes from a cache.
    window = tl.program_id(0)
    block = tl.program_id(1)
    head = tl.program_id(2)
    image, top, left = locate(window, height, width, W)
    base = image.to(tl.int64) * image_stride + head * D

    query_rows, query_columns, queries, first_row, first_column = pixels_of_program(
        block, W, BLOCK_M, ACROSS_M
    )
    log_sums_ptr += (window.to(tl.int64) * HEADS + head) * (2 * PIXELS)
    if not WHOLE:
        if (top + first_row >= height) | (left + first_column >= width):
            nothing = tl.zeros([BLOCK_M], tl.float32)
            tl.store(log_sums_ptr + queries, nothing, mask=queries < PIXELS)
            tl.store(log_sums_ptr + PIXELS + queries, nothing, mask=queries < PIXELS)
            return
    channels = tl.arange(0, D_PADDED)
    real = channels < D
    wanted = (queries < PIXELS) & (top + query_rows < height) & (left + query_columns < width)
    offsets = (top + query_rows) * row_stride + (left + query_columns) * column_stride
    q = tl.load(
        q_ptr + base + offsets[:, None] + channels[None, :],
        mask=wanted[:, None] & real[None, :],
        other=0.0,
    )
    q, q_rest = scaled(q, scale, k_ptr.dtype.element_ty)

    if not EVEN_M:
        query_rows = tl.minimum(query_rows, W - 1)
    bias_ptr += head * ((2 * W - 1) * PIXELS)

    top_score = tl.full([BLOCK_M], float("-inf"), tl.float32)
    sums = tl.zeros([BLOCK_M], tl.float32)
    ones = tl.full([BLOCK_N, SUMS], 1.0, tl.float32).to(k_ptr.dtype.element_ty)
    sums_by_dot = tl.zeros([BLOCK_M, SUMS], tl.float32)
    result = tl.zeros([BLOCK_M, D_PADDED], tl.float32)
    for part in range(0, W // ACROSS if ACROSS else 1):
        for at in range(0, W if ACROSS else PIXELS, ROWS):
            row, key_rows, key_columns = pixels_of(at, W, BLOCK_N, ACROSS)
            column = part * ACROSS
            bias_tile = bias_places(
                query_rows, query_columns, key_rows, key_columns, W, ACROSS_M > 0
            )
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
                mask = (row + key_rows < W)[:, None] & real[None, :]
                k = tl.load(k_ptr + address, mask=mask, other=0.0)
                v = tl.load(v_ptr + address, mask=mask, other=0.0)
            scores = scores_of(q, q_rest, k, bias, PRECISION)
            new_top = tl.maximum(top_score, tl.max(scores, 1))
            # Where all scores are -inf so far, there is nothing to scale.
            shift = tl.where(new_top == float("-inf"), 0.0, new_top)
            weights = tl.exp2(scores - shift[:, None])
            shrink = tl.exp2(top_score - shift)
            result *= shrink[:, None]
            if IN_MATRIX_UNITS:
                sums_by_dot *= shrink[:, None]
                sums_by_dot = tl.dot(weights.to(k.dtype), ones, sums_by_dot)
            else:
                sums = sums * shrink + tl.sum(weights, 1)
            result = tl.dot(weights.to(v.dtype), v, result, input_precision=PRECISION)
            top_score = new_top
    if IN_MATRIX_UNITS:
        sums = tl.max(sums_by_dot, 1)

    result = result / sums[:, None]
    out_offsets = (
        (top + query_rows) * out_row_stride + (left + query_columns) * out_column_stride + head * D
    )
    out_base = out_ptr + image.to(tl.int64) * out_image_stride
    tl.store(
        out_base + out_offsets[:, None] + channels[None, :],
        result.to(out_ptr.dtype.element_ty),
        mask=wanted[:, None] & real[None, :],
    )
    tl.store(log_sums_ptr + queries, top_score, mask=queries < PIXELS)
    tl.store(log_sums_ptr + PIXELS + queries, tl.log2(sums), mask=queries < PIXELS)
