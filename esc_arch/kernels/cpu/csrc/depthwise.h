// A depthwise convolution with kernels of each image's own. Included after vectors.h, for each width.

// `kernel` (C, K, K) as (K, K, channels), channels padded by zeros.
inline float* pack_depthwise(const float* kernel, int size, int channels, int padded,
                             Scratch& scratch) {
  float* packed = scratch.array<float>(size * size * padded);
  std::memset(packed, 0, sizeof(float) * size * size * padded);
  for (int c = 0; c < channels; ++c)
    for (int i = 0; i < size * size; ++i) packed[i * padded + c] = kernel[c * size * size + i];
  return packed;
}

// Adds what is packed so to `kernel`.
inline void add_unpacked(const float* packed, int size, int channels, int padded, float* kernel) {
  for (int c = 0; c < channels; ++c)
    for (int i = 0; i < size * size; ++i) kernel[c * size * size + i] += packed[i * padded + c];
}

inline auto copy_pixels(const Image& image, int padded) {
  return [&image, padded](int row, int first, int last, float* to) {
    for (int column = first; column < last; ++column, to += padded)
      std::memcpy(to, image.pixel(row, column), sizeof(float) * image.channels);
  };
}

void convolve_depthwise(int size, const Image& image, const Tile& tile, const float* kernel,
                        const Image& out) {
  const int channels = round_up(image.channels, WIDTH), columns = tile.column_end - tile.column;
  Scratch scratch;
  Ring ring(image, tile, size / 2, channels, scratch);
  const float* packed = pack_depthwise(kernel, size, image.channels, channels, scratch);
  float* sums = scratch.array<float>(columns * channels);
  for (int row = tile.row; row < tile.row_end; ++row) {
    ring.advance(copy_pixels(image, channels));
    depthwise(ring.kernel_rows(size / 2, 0).data(), size, columns, channels, packed, nullptr, sums);
    for (int i = 0; i < columns; ++i)
      std::memcpy(out.pixel(row, tile.column + i), sums + i * channels,
                  sizeof(float) * image.channels);
  }
}

// The gradient of `kernel` is added to `grad_kernel`.
void convolve_depthwise_backward(int size, const Image& image, const Tile& tile,
                                 const Image& grad_out, float* grad_kernel) {
  const int channels = round_up(image.channels, WIDTH), columns = tile.column_end - tile.column;
  Scratch scratch;
  Ring ring(image, tile, size / 2, channels, scratch);
  float* grads = scratch.array<float>(columns * channels);
  float* sums = scratch.array<float>(size * size * channels);
  std::memset(grads, 0, sizeof(float) * columns * channels);
  std::memset(sums, 0, sizeof(float) * size * size * channels);
  for (int row = tile.row; row < tile.row_end; ++row) {
    ring.advance(copy_pixels(image, channels));
    for (int i = 0; i < columns; ++i)
      std::memcpy(grads + i * channels, grad_out.pixel(row, tile.column + i),
                  sizeof(float) * image.channels);
    depthwise_weights(ring.kernel_rows(size / 2, 0).data(), size, columns, channels, grads, sums);
  }
  add_unpacked(sums, size, image.channels, channels, grad_kernel);
}
