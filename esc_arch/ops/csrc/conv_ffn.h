// The ConvFFN: 1x1 convolution, GELU, h + GELU(depthwise convolution of h), 1x1 convolution.
// Included after vectors.h, for each width.
//
// A tile is walked row by row; only the K rows of hidden channels around the current one exist.

void conv_ffn(const Image& image, const Tile& tile, const EscConvFfn& weights, const Image& out) {
  const int hidden = weights.hidden, size = weights.kernel_size, reach = size / 2;
  const int columns = tile.column_end - tile.column;
  Scratch scratch;
  Ring ring(image, tile, reach, hidden, scratch);
  float* mixed = scratch.floats(columns * hidden);
  for (int row = tile.row; row < tile.row_end; ++row) {
    ring.advance([&](int row, int first, int last, float* to) {
      multiply(last - first, hidden, image.channels, image.pixel(row, first), image.pixel_stride, 1,
               weights.proj, hidden, to, hidden, Row(weights.proj_bias));
      for (int i = 0; i < (last - first) * hidden; i += WIDTH) store(to + i, gelu(load(to + i)));
    });
    depthwise(ring.kernel_rows(reach, 0).data(), size, columns, hidden, weights.dwc,
              weights.dwc_bias, mixed);
    const float* centre = ring.at(0, 0);
    for (int i = 0; i < columns * hidden; i += WIDTH)
      store(mixed + i, load(centre + i) + gelu(load(mixed + i)));
    multiply(columns, image.channels, hidden, mixed, hidden, 1, weights.aggr, image.channels,
             out.pixel(row, tile.column), out.pixel_stride, Row(weights.aggr_bias));
  }
}
