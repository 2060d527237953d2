"""Triton kernels of ConvFFN and ConvAttn, backward, by tiles of pixels as the forward ones.

Hidden channels are computed again, not kept. No program adds to memory that another one writes:
gradients of small weights come out as a part a tile, those of matrices are products that torch
makes of what is written here.
"""

import triton
import triton.language as tl

from esc_arch.kernels.gpu.pixel_kernels import (
    depthwise,
    gelu_and_slope,
    neighbour,
    pixels_of_tile,
    read,
    write,
)


@triton.jit
def taps_gradient(
    grad,
    x_ptr,
    parts_ptr,
    rows,
    columns,
    height,
    width,
    channels,
    exists,
    STRIDE: tl.constexpr,
    SIZE: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Writes what a tile's `grad` (pixels, channels) gives to the taps of a depthwise convolution.

    `parts_ptr` is (channels, PARTS), of which the first SIZE * SIZE are written.
    """
    for tap in range(SIZE * SIZE):
        pixels, inside = neighbour(rows, columns, height, width, tap, SIZE)
        x = read(x_ptr, pixels, channels, inside, exists, STRIDE)
        part = tl.sum(grad * x.to(tl.float32), 0)
        tl.store(parts_ptr + channels * PARTS + tap, part, mask=exists)


@triton.jit
def conv_gradient_kernel(
    hidden_ptr,
    taps_ptr,
    taps_bias_ptr,
    aggr_ptr,
    grad_out_ptr,
    mixed_ptr,
    grad_conv_ptr,
    parts_ptr,
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
    """The gradients of a ConvFFN's depthwise convolution; one program: a tile, BLOCK_K channels.

    `hidden_ptr` is (B, H, W, HIDDEN), `grad_out_ptr` (B, H, W, C). Written are `mixed_ptr`, what
    the last convolution was given, and `grad_conv_ptr`, the gradient of the depthwise
    convolution's result, both (B, H, W, HIDDEN); and `parts_ptr` (B, tiles, HIDDEN,
    SIZE * SIZE + 1), in float32, to be summed over images and tiles: those of taps and bias.
    """
    PARTS: tl.constexpr = SIZE * SIZE + 1
    rows, columns = pixels_of_tile(height, width, TILE_H, TILE_W)
    pixels = rows * width + columns
    inside = (rows < height) & (columns < width)
    image = tl.program_id(1).to(tl.int64) * height * width
    hidden_ptr += image * HIDDEN
    channels = tl.arange(0, C_PADDED)
    real = channels < C
    hidden = tl.program_id(2) * BLOCK_K + tl.arange(0, BLOCK_K)
    exists = hidden < HIDDEN
    taps_bias = tl.load(taps_bias_ptr + hidden, mask=exists, other=0.0).to(tl.float32)
    conv = tl.zeros([TILE_H * TILE_W, BLOCK_K], tl.float32) + taps_bias[None, :]
    conv = depthwise(
        conv,
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
    value, slope = gelu_and_slope(conv)
    h = read(hidden_ptr, pixels, hidden, inside, exists, HIDDEN)
    mixed = h.to(tl.float32) + value
    write(mixed_ptr + image * HIDDEN, mixed, pixels, hidden, inside, exists, HIDDEN)

    grad_out = read(grad_out_ptr + image * C, pixels, channels, inside, real, C)
    weight = read(aggr_ptr, channels, hidden, real, exists, HIDDEN)
    grad_conv = slope * tl.dot(grad_out, weight, input_precision=PRECISION)
    write(grad_conv_ptr + image * HIDDEN, grad_conv, pixels, hidden, inside, exists, HIDDEN)

    tile = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    parts_ptr += tile * (HIDDEN * PARTS)
    taps_gradient(
        grad_conv,
        hidden_ptr,
        parts_ptr,
        rows,
        columns,
        height,
        width,
        hidden,
        exists,
        HIDDEN,
        SIZE,
        PARTS,
    )
    tl.store(parts_ptr + hidden * PARTS + SIZE * SIZE, tl.sum(grad_conv, 0), mask=exists)


@triton.jit
def proj_gradient_kernel(
    x_ptr,
    proj_ptr,
    proj_bias_ptr,
    taps_ptr,
    aggr_ptr,
    grad_out_ptr,
    grad_conv_ptr,
    grad_proj_ptr,
    parts_ptr,
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
    """The gradient of what a ConvFFN's first convolution gives; one program: a tile, some channels.

    `x_ptr` is (B, H, W, C), `grad_conv_ptr` is from `conv_gradient_kernel`. Written are
    `grad_proj_ptr` (B, H, W, HIDDEN), and `parts_ptr` (B, tiles, HIDDEN) in float32, to be summed:
    that of the convolution's bias.
    """
    rows, columns = pixels_of_tile(height, width, TILE_H, TILE_W)
    pixels = rows * width + columns
    inside = (rows < height) & (columns < width)
    image = tl.program_id(1).to(tl.int64) * height * width
    channels = tl.arange(0, C_PADDED)
    real = channels < C
    hidden = tl.program_id(2) * BLOCK_K + tl.arange(0, BLOCK_K)
    exists = hidden < HIDDEN
    x = read(x_ptr + image * C, pixels, channels, inside, real, C)
    proj = read(proj_ptr, hidden, channels, exists, real, C)
    bias = tl.load(proj_bias_ptr + hidden, mask=exists, other=0.0).to(tl.float32)
    projected = tl.dot(x, tl.trans(proj), input_precision=PRECISION) + bias[None, :]
    _, slope = gelu_and_slope(projected)
    grad_out = read(grad_out_ptr + image * C, pixels, channels, inside, real, C)
    weight = read(aggr_ptr, channels, hidden, real, exists, HIDDEN)
    grad = tl.dot(grad_out, weight, input_precision=PRECISION)
    grad = depthwise(
        grad,
        grad_conv_ptr + image * HIDDEN,
        taps_ptr,
        rows,
        columns,
        height,
        width,
        hidden,
        exists,
        HIDDEN,
        SIZE,
        True,
    )
    # Pixels outside, which have a bias and neighbours inside, have no gradient.
    grad = tl.where(inside[:, None], grad * slope, 0.0)
    write(grad_proj_ptr + image * HIDDEN, grad, pixels, hidden, inside, exists, HIDDEN)
    tile = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    tl.store(parts_ptr + tile * HIDDEN + hidden, tl.sum(grad, 0), mask=exists)


@triton.jit
def conv_attn_gradient_kernel(
    x_ptr,
    convolved_ptr,
    kernels_ptr,
    aggr_ptr,
    grad_out_ptr,
    grad_x_ptr,
    grad_mixed_ptr,
    mixed_ptr,
    parts_ptr,
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
    """The gradients of `conv_attn_kernel`; one program: a tile.

    Written are `grad_x_ptr` (B, H, W, C); `grad_mixed_ptr`, the gradient of what the first PDIM
    channels became, and these, `mixed_ptr`, both (B, H, W, PDIM); and `parts_ptr`
    (B, tiles, PDIM, 9) in float32, to be summed over tiles: those of each image's kernels.
    """
    rows, columns = pixels_of_tile(height, width, TILE_H, TILE_W)
    pixels = rows * width + columns
    inside = (rows < height) & (columns < width)
    image = tl.program_id(1).to(tl.int64) * height * width
    x_ptr += image * C
    grad_out_ptr += image * C
    grad_x_ptr += image * C
    channels = tl.arange(0, C_PADDED)
    real = channels < C
    part = tl.arange(0, PDIM_PADDED)
    exists = part < PDIM
    kernels_ptr += tl.program_id(1) * (PDIM * 9)

    mixed = read(convolved_ptr + image * PDIM, pixels, part, inside, exists, PDIM).to(tl.float32)
    mixed = depthwise(
        mixed, x_ptr, kernels_ptr, rows, columns, height, width, part, exists, C, 3, False
    )
    write(mixed_ptr + image * PDIM, mixed, pixels, part, inside, exists, PDIM)

    grad_out = read(grad_out_ptr, pixels, channels, inside, real, C)
    weight = read(aggr_ptr, channels, part, real, exists, C)
    grad_mixed = tl.dot(grad_out, weight, input_precision=PRECISION)
    write(grad_mixed_ptr + image * PDIM, grad_mixed, pixels, part, inside, exists, PDIM)
    tile = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    parts_ptr += tile * (PDIM * 9)
    taps_gradient(grad_mixed, x_ptr, parts_ptr, rows, columns, height, width, part, exists, C, 3, 9)

    # The neighbours' gradients are products made again, not waited for.
    grad_part = tl.zeros([TILE_H * TILE_W, PDIM_PADDED], tl.float32)
    for tap in range(9):
        places, there = neighbour(rows, columns, height, width, tap, 3)
        grad = read(grad_out_ptr, places, channels, there, real, C)
        grad = tl.dot(grad, weight, input_precision=PRECISION)
        kernel = tl.load(kernels_ptr + part * 9 + 8 - tap, mask=exists, other=0.0)
        grad_part += grad * kernel.to(tl.float32)[None, :]
    write(grad_x_ptr, grad_part, pixels, part, inside, exists, C)
    for start in range(PDIM, C, BLOCK_K):
        others = start + tl.arange(0, BLOCK_K)
        left = others < C
        rest_weight = read(aggr_ptr, channels, others, real, left, C)
        grad_rest = tl.dot(grad_out, rest_weight, input_precision=PRECISION)
        write(grad_x_ptr, grad_rest, pixels, others, inside, left, C)
