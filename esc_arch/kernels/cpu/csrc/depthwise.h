// A depthwise convolution with kernels of each image's own. Included after vectors.h, for each
// width.

// `kernel` (C, K, K) as (K, K, channels), channels padded by zeros.
inline float* pack_depthwise(const float* kernel, Size size, Size channels, Size padded,
                             Scratch& scratch) {
  float* packed = scratch.array<float>(size * size * padded);
  std::memset(packed, 0, sizeof(float) * size * size * padded);
  for (Size c = 0; c < channels; ++c)
    for (Size i = 0; i < size * size; ++i) packed[i * padded + c] = kernel[c * size * size + i];
  return packed;
}

// Adds what is packed so to `kernel`.
inline void add_unpacked(const float* packed, Size size, Size channels, Size padded,
                         float* kernel) {
  for (Size c = 0; c < channels; ++c)
    for (Size i = 0; i < size * size; ++i) kernel[c * size * size + i] += packed[i * padded + c];
}

inline auto copy_pixels(const Image& image, Size padded) {
  return [&image, padded](Size row, Size first, Size last, float* to) {
    for (Size column = first; column < last; ++column, to += padded)
      std::memcpy(to, image.pixel(row, column), sizeof(float) * image.channels);
  };
}

void convolve_depthwise(Size size, const Image& image, const Tile& tile, const float* kernel,
                        const Image& out) {
  const Size channels = round_up(image.channels, WIDTH), columns = tile.column_end - tile.column;
  Scratch scratch;
  Ring ring(image, tile, size / 2, channels, scratch);
  const float* packed = pack_depthwise(kernel, size, image.channels, channels, scratch);
  float* sums = scratch.array<float>(columns * channels);
  const float** rows = scratch.array<const float*>(size);
  for (Size row = tile.row; row < tile.row_end; ++row) {
    ring.advance(copy_pixels(image, channels));
    depthwise(ring.kernel_rows(size / 2, 0, rows), size, columns, channels, packed, nullptr, sums);
    for (Size i = 0; i < columns; ++i)
      std::memcpy(out.pixel(row, tile.column + i), sums + i * channels,
                  sizeof(float) * image.channels);
  }
}

// The gradient of `kernel` is added to `grad_kernel`.
void convolve_depthwise_backward(Size size, const Image& image, const Tile& tile,
                                 const Image& grad_out, float* grad_kernel) {
  const Size channels = round_up(image.channels, WIDTH), columns = tile.column_end - tile.column;
  Scratch scratch;
  Ring ring(image, tile, size / 2, channels, scratch);
  float* grads = scratch.array<float>(columns * channels);
  float* sums = scratch.array<float>(size * size * channels);
  const float** rows = scratch.array<const float*>(size);
  std::memset(grads, 0, sizeof(float) * columns * channels);
  std::memset(sums, 0, sizeof(float) * size * size * channels);
  for (Size row = tile.row; row < tile.row_end; ++row) {
    ring.advance(copy_pixels(image, channels));
    for (Size i = 0; i < columns; ++i)
      std::memcpy(grads + i * channels, grad_out.pixel(row, tile.column + i),
                  sizeof(float) * image.channels);
    depthwise_weights(ring.kernel_rows(size / 2, 0, rows), size, columns, channels, grads, sums);
  }
  add_unpacked(sums, size, image.channels, channels, grad_kernel);
}
