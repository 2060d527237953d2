"""Triton kernels of ConvFFN and ConvAttn, which go by tiles of pixels, channels last.

The hidden channels of a ConvFFN are written once and read once. One kernel for all of it would
save that, but must compute those at the edges of its tiles again, and a GELU takes as long as
moving its value: benchmarks/gpu_roofline.py counts both.
"""

import triton
import triton.language as tl


@triton.jit
def above(x):
    """What a normal variable lies above |x| by chance, to 1.1e-7, and exp(-x^2 / 2).

    In fewer instructions than a library's (Abramowitz and Stegun, 7.1.26).
    """
    t = 1.0 / (1.0 + 0.23164189 * tl.abs(x))
    tail = 1.061405429 * t - 1.453152027
    tail = ((tail * t + 1.421413741) * t - 0.284496736) * t + 0.254829592
    # log2(e) / 2: half of the square, as erf is of x / sqrt(2).
    bell = tl.exp2(-0.7213475204 * x * x)
    return 0.5 * tail * t * bell, bell


@triton.jit
def gelu(x):
    """GELU to 2.2e-7."""
    tail, _ = above(x)
    return tl.maximum(x, 0.0) - tl.abs(x) * tail


@triton.jit
def gelu_and_slope(x):
    """GELU and its derivative."""
    tail, bell = above(x)
    below = tl.where(x > 0.0, 1.0 - tail, tail)
    return tl.maximum(x, 0.0) - tl.abs(x) * tail, below + 0.3989422804 * x * bell


@triton.jit
def read(pointer, rows, columns, inside, exists, STRIDE: tl.constexpr):
    """(rows, columns) of a matrix whose rows lie STRIDE apart, zero where one does not exist."""
    return tl.load(
        pointer + rows[:, None] * STRIDE + columns[None, :],
        mask=inside[:, None] & exists[None, :],
        other=0.0,
    )


@triton.jit
def write(pointer, value, rows, columns, inside, exists, STRIDE: tl.constexpr):
    """Writes (rows, columns) of a matrix whose rows lie STRIDE apart."""
    tl.store(
        pointer + rows[:, None] * STRIDE + columns[None, :],
        value.to(pointer.dtype.element_ty),
        mask=inside[:, None] & exists[None, :],
    )


@triton.jit
def project_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    pixels,
    C: tl.constexpr,
    C_PADDED: tl.constexpr,
    HIDDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """GELU of a 1x1 convolution; one program: BLOCK_M pixels, BLOCK_N hidden channels at a time.

    `x_ptr` is (pixels, C), `weight_ptr` (HIDDEN, C), `bias_ptr` (HIDDEN), `out_ptr`
    (pixels, HIDDEN).
    """
    first = tl.program_id(0).to(tl.int64) * BLOCK_M
    place = tl.arange(0, BLOCK_M)
    inside = first + place < pixels
    channels = tl.arange(0, C_PADDED)
    real = channels < C
    x = read(x_ptr + first * C, place, channels, inside, real, C)
    for start in range(0, HIDDEN, BLOCK_N):
        hidden = start + tl.arange(0, BLOCK_N)
        exists = hidden < HIDDEN
        weight = read(weight_ptr, hidden, channels, exists, real, C)
        bias = tl.load(bias_ptr + hidden, mask=exists, other=0.0).to(tl.float32)
        out = gelu(tl.dot(x, tl.trans(weight), input_precision=PRECISION) + bias[None, :])
        write(out_ptr + first * HIDDEN, out, place, hidden, inside, exists, HIDDEN)


@triton.jit
def pixels_of_tile(height, width, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """Rows and columns of the pixels of this program's tile of an image, flat."""
    across = (width + TILE_W - 1) // TILE_W
    tile = tl.program_id(0)
    place = tl.arange(0, TILE_H * TILE_W)
    return tile // across * TILE_H + place // TILE_W, tile % across * TILE_W + place % TILE_W


@triton.jit
def neighbour(rows, columns, height, width, tap, SIZE: tl.constexpr):
    """The pixels that a tap of a kernel weighs, and whether they are inside the image."""
    row = rows + (tap // SIZE - SIZE // 2)
    column = columns + (tap % SIZE - SIZE // 2)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return row * width + column, inside


@triton.jit
def depthwise(
    total,
    x_ptr,
    taps_ptr,
    rows,
    columns,
    height,
    width,
    channels,
    exists,
    STRIDE: tl.constexpr,
    SIZE: tl.constexpr,
    TURNED: tl.constexpr,
):
    """`total` plus a depthwise convolution (pixels, channels) in float32, zero padding.

    `taps_ptr` is (channels, SIZE, SIZE), turned half around if TURNED; STRIDE is what lies between
    two pixels of `x_ptr`.
    """
    for tap in range(SIZE * SIZE):
        pixels, inside = neighbour(rows, columns, height, width, tap, SIZE)
        x = read(x_ptr, pixels, channels, inside, exists, STRIDE)
        place = SIZE * SIZE - 1 - tap if TURNED else tap
        weight = tl.load(taps_ptr + channels * (SIZE * SIZE) + place, mask=exists, other=0.0)
        total += x.to(tl.float32) * weight.to(tl.float32)[None, :]
    return total


@triton.jit
def conv_ffn_kernel(
    hidden_ptr,
    taps_ptr,
    taps_bias_ptr,
    aggr_ptr,
    aggr_bias_ptr,
    out_ptr,
    height,
    width,
    C: tl.constexpr,
    C_PADDED: tl.constexpr,
    HIDDEN: tl.constexpr,
    SIZE: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """aggr(h + GELU(dwc(h))) of hidden channels h, BLOCK_K at a time; one program: a tile.

    `hidden_ptr` is (B, H, W, HIDDEN), `taps_ptr` (HIDDEN, SIZE, SIZE), `aggr_ptr` (C, HIDDEN),
    `out_ptr` (B, H, W, C).
    """
    rows, columns = pixels_of_tile(height, width, TILE_H, TILE_W)
    pixels = rows * width + columns
    inside = (rows < height) & (columns < width)
    image = tl.program_id(1).to(tl.int64) * height * width
    hidden_ptr += image * HIDDEN
    channels = tl.arange(0, C_PADDED)
    real = channels < C
    out = tl.zeros([TILE_H * TILE_W, C_PADDED], tl.float32)
    for start in range(0, HIDDEN, BLOCK_K):
        hidden = start + tl.arange(0, BLOCK_K)
        exists = hidden < HIDDEN
        taps_bias = tl.load(taps_bias_ptr + hidden, mask=exists, other=0.0).to(tl.float32)
        mixed = tl.zeros([TILE_H * TILE_W, BLOCK_K], tl.float32) + taps_bias[None, :]
        h = read(hidden_ptr, pixels, hidden, inside, exists, HIDDEN)
        mixed = depthwise(
            mixed,
            hidden_ptr,
            taps_ptr,
            rows,
            columns,
            height,
            width,
            hidden,
            exists,
            HIDDEN,
            SIZE,
            False,
        )
        mixed = (h.to(tl.float32) + gelu(mixed)).to(h.dtype)
        weight = read(aggr_ptr, channels, hidden, real, exists, HIDDEN)
        out = tl.dot(mixed, tl.trans(weight), out, input_precision=PRECISION)
    out += tl.load(aggr_bias_ptr + channels, mask=real, other=0.0).to(tl.float32)[None, :]
    write(out_ptr + image * C, out, pixels, channels, inside, real, C)


@triton.jit
def conv_attn_kernel(
    x_ptr,
    convolved_ptr,
    kernels_ptr,
    aggr_ptr,
    aggr_bias_ptr,
    out_ptr,
    height,
    width,
    C: tl.constexpr,
    C_PADDED: tl.constexpr,
    PDIM: tl.constexpr,
    PDIM_PADDED: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """What follows the large kernel in a ConvAttn; one program: a tile.

    The first PDIM channels of `x_ptr` (B, H, W, C) convolved by each image's `kernels_ptr`
    (B, PDIM, 3, 3), plus `convolved_ptr` (B, H, W, PDIM); these and the other channels, BLOCK_K at
    a time, through `aggr_ptr` (C, C) to `out_ptr` (B, H, W, C).
    """
    rows, columns = pixels_of_tile(height, width, TILE_H, TILE_W)
    pixels = rows * width + columns
    inside = (rows < height) & (columns < width)
    image = tl.program_id(1).to(tl.int64) * height * width
    x_ptr += image * C
    channels = tl.arange(0, C_PADDED)
    real = channels < C
    bias = tl.load(aggr_bias_ptr + channels, mask=real, other=0.0).to(tl.float32)
    out = tl.zeros([TILE_H * TILE_W, C_PADDED], tl.float32) + bias[None, :]

    part = tl.arange(0, PDIM_PADDED)
    exists = part < PDIM
    mixed = read(convolved_ptr + image * PDIM, pixels, part, inside, exists, PDIM).to(tl.float32)
    kernels_ptr += tl.program_id(1) * (PDIM * 9)
    mixed = depthwise(
        mixed, x_ptr, kernels_ptr, rows, columns, height, width, part, exists, C, 3, False
    ).to(x_ptr.dtype.element_ty)
    weight = read(aggr_ptr, channels, part, real, exists, C)
    out = tl.dot(mixed, tl.trans(weight), out, input_precision=PRECISION)
    for start in range(PDIM, C, BLOCK_K):
        others = start + tl.arange(0, BLOCK_K)
        left = others < C
        rest = read(x_ptr, pixels, others, inside, left, C)
        rest_weight = read(aggr_ptr, channels, others, real, left, C)
        out = tl.dot(rest, tl.trans(rest_weight), out, input_precision=PRECISION)
    write(out_ptr + image * C, out, pixels, channels, inside, real, C)
