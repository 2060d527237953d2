// The ConvFFN: 1x1 convolution, GELU, h + GELU(depthwise convolution of h), 1x1 convolution.
// Included after vectors.h, for each width.
//
// A tile is walked row by row; only the K rows of hidden channels around the current one exist.

void conv_ffn(const Image& image, const Tile& tile, const EscConvFfn& weights, const Image& out) {
  const Size hidden = weights.hidden, size = weights.kernel_size, reach = size / 2;
  const Size columns = tile.column_end - tile.column;
  Scratch scratch;
  Ring ring(image, tile, reach, hidden, scratch);
  float* mixed = scratch.array<float>(columns * hidden);
  const float** rows = scratch.array<const float*>(size);
  for (Size row = tile.row; row < tile.row_end; ++row) {
    ring.advance([&](Size row, Size first, Size last, float* to) {
      multiply(last - first, hidden, image.channels, image.pixel(row, first), image.pixel_stride, 1,
               weights.proj, hidden, to, hidden, Row(weights.proj_bias));
      for (Size i = 0; i < (last - first) * hidden; i += WIDTH) store(to + i, gelu(load(to + i)));
    });
    depthwise(ring.kernel_rows(reach, 0, rows), size, columns, hidden, weights.dwc,
              weights.dwc_bias, mixed);
    const float* centre = ring.at(0, 0);
    for (Size i = 0; i < columns * hidden; i += WIDTH)
      store(mixed + i, load(centre + i) + gelu(load(mixed + i)));
    multiply(columns, image.channels, hidden, mixed, hidden, 1, weights.aggr, image.channels,
             out.pixel(row, tile.column), out.pixel_stride, Row(weights.aggr_bias));
  }
}

// The gradient of x, `grad_x`; those of the weights are added to `grads`, which holds them one
// after the other as EscConvFfn does. Hidden channels are computed again.
void conv_ffn_backward(const Image& image, const Tile& tile, const EscConvFfn& weights,
                       const Image& grad_out, const Image& grad_x, float* grads) {
  const Size hidden = weights.hidden, size = weights.kernel_size, reach = size / 2;
  const Size channels = image.channels, columns = tile.column_end - tile.column;
  float* grad_proj = grads;
  float* grad_proj_bias = grad_proj + channels * hidden;
  float* grad_dwc = grad_proj_bias + hidden;
  float* grad_dwc_bias = grad_dwc + size * size * hidden;
  float* grad_aggr = grad_dwc_bias + hidden;
  float* grad_aggr_bias = grad_aggr + hidden * channels;

  Scratch scratch;
  // What proj makes, and its GELU; the gradients of h + GELU(dwc(h)) and of what dwc makes.
  Ring before(image, tile, 2 * reach, hidden, scratch),
      after(image, tile, 2 * reach, hidden, scratch);
  Ring grad_mixed(image, tile, reach, hidden, scratch),
      grad_inner(image, tile, reach, hidden, scratch);
  float* inner = scratch.array<float>((columns + 2 * reach) * hidden);
  float* mixed = scratch.array<float>(columns * hidden);
  const float** rows = scratch.array<const float*>(size);
  float* grad_before = scratch.array<float>(columns * hidden);
  for (Size row = tile.row; row < tile.row_end; ++row) {
    before.advance([&](Size y, Size first, Size last, float* to) {
      multiply(last - first, hidden, channels, image.pixel(y, first), image.pixel_stride, 1,
               weights.proj, hidden, to, hidden, Row(weights.proj_bias));
    });
    after.advance([&](Size y, Size first, Size last, float* to) {
      const float* from = before.at(y - row, first - tile.column);
      for (Size i = 0; i < (last - first) * hidden; i += WIDTH) store(to + i, gelu(load(from + i)));
    });
    grad_mixed.advance([&](Size y, Size first, Size last, float* to) {
      multiply(last - first, hidden, channels, grad_out.pixel(y, first), grad_out.pixel_stride, 1,
               weights.aggr_turned, hidden, to, hidden, Zero());
    });
    grad_inner.advance([&](Size y, Size first, Size last, float* to) {
      const Size start = first - tile.column;
      for (Size dy = -reach; dy <= reach; ++dy)
        rows[dy + reach] = after.at(y - row + dy, start - reach);
      depthwise(rows, size, last - first, hidden, weights.dwc, weights.dwc_bias, inner);
      const float* grad = grad_mixed.at(y - row, start);
      for (Size i = 0; i < (last - first) * hidden; i += WIDTH)
        store(to + i, load(grad + i) * gelu_slope(load(inner + i)));
      if (y < tile.row || y >= tile.row_end) return;
      // The tile's own pixels.
      const float* centre = after.at(y - row, 0);
      const float* own = inner - start * hidden;
      for (Size i = 0; i < columns * hidden; i += WIDTH)
        store(mixed + i, load(centre + i) + gelu(load(own + i)));
      multiply(hidden, channels, columns, mixed, 1, hidden, grad_out.pixel(y, tile.column),
               grad_out.pixel_stride, grad_aggr, channels, Sum(grad_aggr, channels));
      add_rows(columns, channels, grad_out.pixel(y, tile.column), grad_out.pixel_stride,
               grad_aggr_bias);
    });
    depthwise_weights(after.kernel_rows(reach, 0, rows), size, columns, hidden, grad_inner.at(0, 0),
                      grad_dwc);
    add_rows(columns, hidden, grad_inner.at(0, 0), hidden, grad_dwc_bias);
    depthwise(grad_inner.kernel_rows(reach, 0, rows), size, columns, hidden, weights.dwc_turned,
              nullptr, grad_before);
    const float* grad = grad_mixed.at(0, 0);
    const float* point = before.at(0, 0);
    for (Size i = 0; i < columns * hidden; i += WIDTH)
      store(grad_before + i,
            (load(grad_before + i) + load(grad + i)) * gelu_slope(load(point + i)));
    multiply(channels, hidden, columns, image.pixel(row, tile.column), 1, image.pixel_stride,
             grad_before, hidden, grad_proj, hidden, Sum(grad_proj, hidden));
    add_rows(columns, hidden, grad_before, hidden, grad_proj_bias);
    multiply(columns, channels, hidden, grad_before, hidden, 1, weights.proj_turned, channels,
             grad_x.pixel(row, tile.column), grad_x.pixel_stride, Zero());
  }
}
