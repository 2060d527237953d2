// ConvAttn in bfloat16 on AMX: the large kernel, with each image's own 3x3 kernel on its diagonal,
// and the 1x1 convolution after it. 16 channels are convolved.
//
// With the 16 channels of a pixel side by side, rows of 32 bytes each, what two neighbouring taps
// read for 16 pixels is a tile of overlapping rows: pixels (x, x + 1), (x + 1, x + 2) and so on.

constexpr Size CONVOLVED = 16, PIXEL_TILES = 4;

// `taps` (K, K / 2 rounded up, a B tile each: two neighbours by 16 channels in); `aggr` (channels
// out / 16, channels in / 32 rounded up, a B tile each); `skip` is added.
void conv_attn(Size kernel_size, const HalfImage& image, const Tile& tile, const bfloat16* taps,
               const bfloat16* aggr, const float* aggr_bias, const HalfImage& skip,
               const HalfImage& out) {
  constexpr Size PIXELS = PIXEL_TILES * TILE_SIDE;
  const Size channels = image.channels, reach = kernel_size / 2, pairs = (kernel_size + 1) / 2;
  const Size columns = tile.column_end - tile.column, depth = round_up(channels, TILE_DEPTH);
  const Size width = round_up(columns, PIXELS) + 2 * pairs;
  Scratch scratch;
  Tiles tiles;
  bfloat16* rows = scratch.array<bfloat16>(kernel_size * width * CONVOLVED);
  float* sums = scratch.array<float>(PIXELS * TILE_SIDE);
  bfloat16* mixed = scratch.array<bfloat16>(PIXELS * depth);
  std::memset(mixed, 0, sizeof(bfloat16) * PIXELS * depth);
  const auto slot = [&](Size row) {
    return rows + (row + kernel_size) % kernel_size * width * CONVOLVED;
  };
  const auto read_row = [&](Size row) {
    bfloat16* to = slot(row);
    std::memset(to, 0, sizeof(bfloat16) * width * CONVOLVED);
    if (row < 0 || row >= image.height) return;
    const Size first = larger(tile.column - reach, Size(0));
    const Size last = smaller(tile.column_end + reach, image.width);
    to += (first - tile.column + reach) * CONVOLVED;
    for (Size column = first; column < last; ++column, to += CONVOLVED)
      std::memcpy(to, image.pixel(row, column), sizeof(bfloat16) * CONVOLVED);
  };
  for (Size row = tile.row - reach; row < tile.row + reach; ++row) read_row(row);
  for (Size row = tile.row; row < tile.row_end; ++row) {
    read_row(row + reach);
    for (Size column = 0; column < columns; column += PIXELS) {
      tile_zero<0>();
      tile_zero<1>();
      tile_zero<2>();
      tile_zero<3>();
      const bfloat16* weights = taps;
      for (Size y = -reach; y <= reach; ++y) {
        const bfloat16* from = slot(row + y) + column * CONVOLVED;
        for (Size pair = 0; pair < pairs; ++pair) {
          constexpr Size row_bytes = sizeof(bfloat16) * CONVOLVED;
          tile_load<7>(weights);
          tile_load<4>(from, row_bytes);
          tile_load<5>(from + TILE_SIDE * CONVOLVED, row_bytes);
          tile_load<6>(from + 2 * TILE_SIDE * CONVOLVED, row_bytes);
          tile_multiply<0, 4, 7>();
          tile_load<4>(from + 3 * TILE_SIDE * CONVOLVED, row_bytes);
          tile_multiply<1, 5, 7>();
          tile_multiply<2, 6, 7>();
          tile_multiply<3, 4, 7>();
          from += 2 * CONVOLVED;
          weights += TILE_VALUES;
        }
      }
      tile_store<0>(sums);
      tile_store<1>(sums + TILE_SIDE * TILE_SIDE);
      tile_store<2>(sums + 2 * TILE_SIDE * TILE_SIDE);
      tile_store<3>(sums + 3 * TILE_SIDE * TILE_SIDE);
      const Size count = smaller(PIXELS, columns - column);
      for (Size i = 0; i < count; ++i) {
        bfloat16* to = mixed + i * depth;
        const bfloat16* from = image.pixel(row, tile.column + column + i);
        store(to, width16::load(sums + i * TILE_SIDE));
        std::memcpy(to + CONVOLVED, from + CONVOLVED, sizeof(bfloat16) * (channels - CONVOLVED));
      }
      multiply(count, channels, depth, mixed, aggr, sums, [&](Size i, Size c, Vec value) {
        const Size x = tile.column + column + i;
        const Vec total = value + width16::load(aggr_bias + c) + load(skip.pixel(row, x) + c);
        store(out.pixel(row, x) + c, total);
      });
    }
  }
}
