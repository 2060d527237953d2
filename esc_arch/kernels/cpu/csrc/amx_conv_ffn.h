// The ConvFFN in bfloat16 on AMX: see conv_ffn.h. What lies between its convolutions stays in
// float32.

// Weights of a ConvFFN: `proj` (hidden / 16, C / 32, a B tile each) and `aggr` (C / 16, hidden /
// 32, a B tile each), both rounded up; hidden channels padded by zeros to a multiple of 16.
void conv_ffn(const HalfImage& image, const Tile& tile, const EscConvFfn& weights,
              const HalfImage& out) {
  const Size channels = image.channels, hidden = weights.hidden, size = weights.kernel_size;
  const Size columns = tile.column_end - tile.column, reach = size / 2;
  const Size pixels = round_up(columns + 2 * reach, 4 * TILE_SIDE);
  const Size depth = round_up(channels, TILE_DEPTH), hidden_depth = round_up(hidden, TILE_DEPTH);
  Scratch scratch;
  Tiles tiles;
  Ring ring(image, tile, reach, hidden, scratch);
  bfloat16* line = scratch.array<bfloat16>(pixels * depth);
  float* inner = scratch.array<float>(columns * hidden);
  const float** rows = scratch.array<const float*>(size);
  bfloat16* mixed = scratch.array<bfloat16>(pixels * hidden_depth);
  float* buffer = scratch.array<float>(4 * TILE_SIDE * TILE_SIDE);
  std::memset(line, 0, sizeof(bfloat16) * pixels * depth);
  std::memset(mixed, 0, sizeof(bfloat16) * pixels * hidden_depth);
  for (Size row = tile.row; row < tile.row_end; ++row) {
    ring.advance([&](Size row, Size first, Size last, float* to) {
      for (Size i = 0; i < last - first; ++i)
        std::memcpy(line + i * depth, image.pixel(row, first + i), sizeof(bfloat16) * channels);
      multiply(last - first, hidden, depth, line, weights.proj_tiles, buffer,
               [&](Size i, Size c, Vec value) {
                 const Vec inner = value + width16::load(weights.proj_bias + c);
                 width16::store(to + i * hidden + c, width16::gelu(inner));
               });
    });
    width16::depthwise(ring.kernel_rows(reach, 0, rows), size, columns, hidden, weights.dwc,
                       weights.dwc_bias, inner);
    const float* centre = ring.at(0, 0);
    for (Size i = 0; i < columns; ++i)
      for (Size c = 0; c < hidden; c += TILE_SIDE) {
        const Size place = i * hidden + c;
        const Vec local = width16::gelu(width16::load(inner + place));
        store(mixed + i * hidden_depth + c, width16::load(centre + place) + local);
      }
    multiply(columns, channels, hidden_depth, mixed, weights.aggr_tiles, buffer,
             [&](Size i, Size c, Vec value) {
               store(out.pixel(row, tile.column + i) + c,
                     value + width16::load(weights.aggr_bias + c));
             });
  }
}
