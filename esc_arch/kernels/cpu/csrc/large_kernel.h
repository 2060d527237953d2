// ConvAttn's convolution: a full K x K kernel that the group D4 leaves alone, plus a depthwise 3x3
// kernel of each image's own. Included after depthwise.h, for each width.
//
// The kernel's mirror images have one weight, so the pixels they weigh are added before they are
// multiplied: with K = 13, 28 products in place of 169 for each pair of channels. Nothing is
// approximated.
//
// Channels lie side by side, padded to whole vectors. A tile of the image is walked row by row,
// with the K rows around the current one kept in a ring of zero-padded copies.

constexpr Size FOLD_PIXELS = 12, FOLD_PIXELS_BACKWARD = 24;

struct FoldLayout {
  Size channels, padded_channels, reach, margin, taps, depth, columns;

  FoldLayout(Size channels, Size kernel_size, Size columns)
      : channels(channels),
        padded_channels(round_up(channels, WIDTH)),
        reach(kernel_size / 2),
        margin(larger(reach, Size(1))),
        taps((reach + 1) * (reach + 2) / 2),
        depth(taps * padded_channels),
        columns(columns) {}
};

// Adds up to four runs of pixels; `to` has room for `to_stride` floats a pixel. Not inlined, for
// the loop to have the registers for itself.
template <int TERMS>
__attribute__((noinline)) void add_pixels(Size count, Size channels, const float* a, const float* b,
                                          const float* c, const float* d, float* to,
                                          Size to_stride) {
  for (Size channel = 0; channel < channels; channel += WIDTH) {
    float* place = to + channel;
    for (Size i = channel; i < count * channels; i += channels, place += to_stride) {
      Vec total = load(a + i);
      if (TERMS > 1) total += load(b + i);
      if (TERMS > 2) total += load(c + i);
      if (TERMS > 3) total += load(d + i);
      store(place, total);
    }
  }
}

// Adds pixels up over the mirror images of each tap. `use(ring, row, column, count, folded)` is
// called for `count` pixels of the tile at a time, `folded` being (count, taps, channels).
template <class Use>
void fold(const FoldLayout& at, const Image& image, const Tile& tile, Size block, const Use& use) {
  Scratch scratch;
  Ring ring(image, tile, at.margin, at.padded_channels, scratch);
  const Size channels = at.padded_channels, reach = at.reach;
  const Size across = (at.columns + 2 * reach) * channels;
  // Pixels e rows above and below, added: (e, columns and both margins, channels).
  float* vertical = scratch.array<float>((reach + 1) * across);
  float* folded = scratch.array<float>(block * at.depth);
  for (Size row = tile.row; row < tile.row_end; ++row) {
    ring.advance(copy_pixels(image, at.padded_channels));
    std::memcpy(vertical, ring.at(0, -reach), sizeof(float) * across);
    for (Size e = 1; e <= reach; ++e)
      add_pixels<2>(1, across, ring.at(-e, -reach), ring.at(e, -reach), nullptr, nullptr,
                    vertical + e * across, across);
    for (Size column = 0; column < at.columns; column += block) {
      const Size count = smaller(block, at.columns - column);
      float* to = folded;
      for (Size e = 0; e <= reach; ++e)
        for (Size d = e; d <= reach; ++d, to += channels) {
          // From the centre, e rows and d columns away; d rows and e columns away.
          const float* wide = vertical + e * across + (column + reach) * channels;
          const float* tall = vertical + d * across + (column + reach) * channels;
          const float *left = wide - d * channels, *right = wide + d * channels;
          const float *near_left = tall - e * channels, *near_right = tall + e * channels;
          if (d == 0)
            add_pixels<1>(count, channels, wide, nullptr, nullptr, nullptr, to, at.depth);
          else if (d == e)
            add_pixels<2>(count, channels, left, right, nullptr, nullptr, to, at.depth);
          else if (e == 0)
            add_pixels<3>(count, channels, left, right, tall, nullptr, to, at.depth);
          else
            add_pixels<4>(count, channels, left, right, near_left, near_right, to, at.depth);
        }
      use(ring, row, column, count, folded);
    }
  }
}

// `taps` (taps, channels in, channels out) and `kernel` (channels, 3, 3) of this image.
// `use(row, column, count, sums)` gets what comes out for `count` pixels, (count, padded channels).
template <class Use>
void convolve_and(Size kernel_size, const Image& image, const Tile& tile, const float* taps,
                  const float* kernel, const Use& use) {
  const FoldLayout at(image.channels, kernel_size, tile.column_end - tile.column);
  const Size channels = at.padded_channels;
  Scratch scratch;
  float* taps_packed = scratch.array<float>(at.depth * channels);
  const float* kernel_packed = pack_depthwise(kernel, 3, at.channels, channels, scratch);
  float* sums = scratch.array<float>(FOLD_PIXELS * channels);
  const float* rows[3];
  std::memset(taps_packed, 0, sizeof(float) * at.depth * channels);
  for (Size tap = 0; tap < at.taps; ++tap)
    for (Size c = 0; c < at.channels; ++c)
      std::memcpy(taps_packed + (tap * channels + c) * channels,
                  taps + (tap * at.channels + c) * at.channels, sizeof(float) * at.channels);

  fold(at, image, tile, FOLD_PIXELS,
       [&](const Ring& ring, Size row, Size column, Size count, const float* folded) {
         depthwise(ring.kernel_rows(1, column, rows), 3, count, channels, kernel_packed, nullptr,
                   sums);
         multiply(count, channels, at.depth, folded, at.depth, 1, taps_packed, channels, sums,
                  channels, Sum(sums, channels));
         use(row, tile.column + column, count, sums);
       });
}

void convolve(Size kernel_size, const Image& image, const Tile& tile, const float* taps,
              const float* kernel, const Image& out) {
  const Size channels = round_up(image.channels, WIDTH);
  convolve_and(kernel_size, image, tile, taps, kernel,
               [&](Size row, Size column, Size count, const float* sums) {
                 for (Size i = 0; i < count; ++i)
                   std::memcpy(out.pixel(row, column + i), sums + i * channels,
                               sizeof(float) * image.channels);
               });
}

// All of ConvAttn: the first `convolved` channels convolved, then the 1x1 convolution `aggr`
// (channels in, channels out) of these and the others, plus `skip`.
void conv_attn(Size kernel_size, Size convolved, const Image& image, const Tile& tile,
               const float* taps, const float* kernel, const float* aggr, const float* aggr_bias,
               const Image& skip, const Image& out) {
  const Size channels = image.channels, padded = round_up(convolved, WIDTH);
  Image first = image;
  first.channels = convolved;
  convolve_and(
      kernel_size, first, tile, taps, kernel,
      [&](Size row, Size column, Size count, const float* sums) {
        float* to = out.pixel(row, column);
        multiply(count, channels, convolved, sums, padded, 1, aggr, channels, to, out.pixel_stride,
                 SumAndRow(skip.pixel(row, column), skip.pixel_stride, aggr_bias));
        multiply(count, channels, channels - convolved, image.pixel(row, column) + convolved,
                 image.pixel_stride, 1, aggr + convolved * channels, channels, to, out.pixel_stride,
                 Sum(to, out.pixel_stride));
      });
}

// Gradients of `taps` and `kernel` are added to `grad_taps` and `grad_kernel`, shapes as there.
void convolve_backward(Size kernel_size, const Image& image, const Tile& tile,
                       const Image& grad_out, float* grad_taps, float* grad_kernel) {
  const FoldLayout at(image.channels, kernel_size, tile.column_end - tile.column);
  const Size channels = at.padded_channels;
  Scratch scratch;
  float* taps_sums = scratch.array<float>(at.depth * channels);
  float* kernel_sums = scratch.array<float>(9 * channels);
  float* grads = scratch.array<float>(FOLD_PIXELS_BACKWARD * channels);
  const float* rows[3];
  std::memset(taps_sums, 0, sizeof(float) * at.depth * channels);
  std::memset(kernel_sums, 0, sizeof(float) * 9 * channels);
  std::memset(grads, 0, sizeof(float) * FOLD_PIXELS_BACKWARD * channels);

  fold(at, image, tile, FOLD_PIXELS_BACKWARD,
       [&](const Ring& ring, Size row, Size column, Size count, const float* folded) {
         for (Size i = 0; i < count; ++i)
           std::memcpy(grads + i * channels, grad_out.pixel(row, tile.column + column + i),
                       sizeof(float) * at.channels);
         multiply(at.depth, channels, count, folded, 1, at.depth, grads, channels, taps_sums,
                  channels, Sum(taps_sums, channels));
         depthwise_weights(ring.kernel_rows(1, column, rows), 3, count, channels, grads,
                           kernel_sums);
       });
  for (Size tap = 0; tap < at.taps; ++tap)
    for (Size in = 0; in < at.channels; ++in)
      for (Size c = 0; c < at.channels; ++c)
        grad_taps[(tap * at.channels + in) * at.channels + c] +=
            taps_sums[(tap * channels + in) * channels + c];
  add_unpacked(kernel_sums, 3, at.channels, channels, grad_kernel);
}
