// Vectors of WIDTH floats and products of matrices; included once for each width.

typedef float Vec __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));
typedef int IntVec __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));

inline Vec load(const float* from) { return *reinterpret_cast<const Vec*>(from); }
inline void store(float* to, Vec value) { *reinterpret_cast<Vec*>(to) = value; }
inline Vec broadcast(float value) { return value - Vec{}; }
// The second if either is NaN.
inline Vec larger(Vec a, Vec b) {
#if WIDTH == 8
  return _mm256_max_ps(a, b);  // The compiler does not find it by itself.
#else
  return a > b ? a : b;
#endif
}

inline float sum(Vec value) {
  float total = 0;
  for (int i = 0; i < WIDTH; ++i) total += value[i];
  return total;
}

inline float largest(Vec value) {
  float top = value[0];
  for (int i = 1; i < WIDTH; ++i) top = value[i] > top ? value[i] : top;
  return top;
}

// 2^x, infinite from 128 on and 2^-126 below -126: the polynomial has a relative error of 7.5e-8.
// NaN stays NaN.
inline Vec exp2(Vec x) {
  x = larger(broadcast(-126.f), x);
  // 1.5 * 2^23, which rounds and leaves the integer in the low bits, and an exponent's bias.
  constexpr float shift = 12582912.f + 127.f;
  const Vec shifted = x + shift;
  const Vec fraction = x - (shifted - shift);
  Vec power = broadcast(0.001327647152f);
  power = power * fraction + 0.009675541331f;
  power = power * fraction + 0.05550713275f;
  power = power * fraction + 0.2402211972f;
  power = power * fraction + 0.6931469671f;
  power = power * fraction + 1.000000072f;
  const IntVec scale = reinterpret_cast<const IntVec&>(shifted) << 23;
  return power * reinterpret_cast<const Vec&>(scale);
}

inline Vec reciprocal(Vec x) {
#if WIDTH == 16
  // A quarter of a division's time, and as exact: an estimate of 14 bits, and one step of Newton's.
  const __m512 estimate = _mm512_rcp14_ps((__m512)x);  // By value: Vec is less aligned.
  const Vec first = reinterpret_cast<const Vec&>(estimate);
  return first * (2 - x * first);
#else
  return 1 / x;
#endif
}

// The normal distribution function Phi, with an absolute error of 3e-8: 1/2 + x P(x^2) / Q(x^2).
// Coefficients: own minimax fit on [0, 5.6], where Phi is within 1e-8 of 1.
inline Vec normal(Vec x) {
  const Vec inner = larger(broadcast(-5.6f), -larger(broadcast(-5.6f), -x));
  const Vec square = inner * inner;
  Vec above = broadcast(2.21453991e-08f);
  above = above * square + 6.35651228e-06f;
  above = above * square + 1.73848910e-04f;
  above = above * square + 4.70724798e-03f;
  above = above * square + 3.43759356e-02f;
  above = above * square + 3.98942222e-01f;
  Vec below = broadcast(1.18021309e-06f);
  below = below * square + 7.51013064e-05f;
  below = below * square + 1.91296776e-03f;
  below = below * square + 2.89399873e-02f;
  below = below * square + 2.52833405e-01f;
  below = below * square + 1.f;
  return inner * above * reciprocal(below) + 0.5f;
}

inline Vec gelu(Vec x) { return x * normal(x); }

// The derivative of gelu, Phi(x) + x exp(-x^2 / 2) / sqrt(2 pi).
inline Vec gelu_slope(Vec x) {
  return normal(x) + x * 0.398942280f * exp2(x * x * (-0.5f * LOG2_E));
}

// What a tile of products starts from, and what becomes of it.
struct Keep {
  template <int COLUMNS>
  void finish(Size, Vec (&)[COLUMNS]) const {}
};
struct Zero : Keep {
  Vec start(Size, Size) const { return Vec{}; }
};
struct Row : Keep {
  const float* row;
  explicit Row(const float* row) : row(row) {}
  Vec start(Size, Size column) const { return load(row + column); }
};
struct Sum : Keep {
  const float* c;
  Size stride;
  Sum(const float* c, Size stride) : c(c), stride(stride) {}
  Vec start(Size row, Size column) const { return load(c + row * stride + column); }
};
struct SumAndRow : Keep {
  const float* c;
  Size stride;
  const float* row;
  SumAndRow(const float* c, Size stride, const float* row) : c(c), stride(stride), row(row) {}
  Vec start(Size i, Size column) const {
    return load(c + i * stride + column) + load(row + column);
  }
};

// C = finish(start + A B) for one tile of ROWS x (COLUMNS * WIDTH), held in registers.
template <int ROWS, int COLUMNS, class Ends>
inline void multiply_tile(Size row, Size column, Size depth, const float* a, Size a_row,
                          Size a_depth, const float* b, Size b_stride, float* c, Size c_stride,
                          const Ends& ends) {
  Vec tile[ROWS][COLUMNS];
  UNROLL(12)
  for (Size i = 0; i < ROWS; ++i) {
    UNROLL(2)
    for (Size j = 0; j < COLUMNS; ++j) tile[i][j] = ends.start(row + i, column + j * WIDTH);
  }
  a += row * a_row;
  b += column;
  UNROLL_BY(2)
  for (Size k = 0; k < depth; ++k, a += a_depth, b += b_stride) {
    Vec right[COLUMNS];
    UNROLL(2)
    for (Size j = 0; j < COLUMNS; ++j) right[j] = load(b + j * WIDTH);
    UNROLL(12)
    for (Size i = 0; i < ROWS; ++i) {
      UNROLL(2)
      for (Size j = 0; j < COLUMNS; ++j) tile[i][j] += a[i * a_row] * right[j];
    }
  }
  c += row * c_stride + column;
  UNROLL(12)
  for (Size i = 0; i < ROWS; ++i) {
    ends.finish(row + i, tile[i]);
    UNROLL(2)
    for (Size j = 0; j < COLUMNS; ++j) store(c + i * c_stride + j * WIDTH, tile[i][j]);
  }
}

// C = finish(start + A B). Columns are a multiple of WIDTH; A has any strides. Fastest where rows
// are a multiple of 12.
template <class Ends>
void multiply(Size rows, Size columns, Size depth, const float* a, Size a_row, Size a_depth,
              const float* b, Size b_stride, float* c, Size c_stride, const Ends& ends) {
  Size column = 0;
  for (; column + 2 * WIDTH <= columns; column += 2 * WIDTH) {
    Size row = 0;
#if WIDTH == 16
    for (; row + 12 <= rows; row += 12)
      multiply_tile<12, 2>(row, column, depth, a, a_row, a_depth, b, b_stride, c, c_stride, ends);
#endif
    for (; row + 6 <= rows; row += 6)
      multiply_tile<6, 2>(row, column, depth, a, a_row, a_depth, b, b_stride, c, c_stride, ends);
    for (; row + 4 <= rows; row += 4)
      multiply_tile<4, 2>(row, column, depth, a, a_row, a_depth, b, b_stride, c, c_stride, ends);
    for (; row < rows; ++row)
      multiply_tile<1, 2>(row, column, depth, a, a_row, a_depth, b, b_stride, c, c_stride, ends);
  }
  for (; column < columns; column += WIDTH) {
    Size row = 0;
    for (; row + 12 <= rows; row += 12)
      multiply_tile<12, 1>(row, column, depth, a, a_row, a_depth, b, b_stride, c, c_stride, ends);
    for (; row + 4 <= rows; row += 4)
      multiply_tile<4, 1>(row, column, depth, a, a_row, a_depth, b, b_stride, c, c_stride, ends);
    for (; row < rows; ++row)
      multiply_tile<1, 1>(row, column, depth, a, a_row, a_depth, b, b_stride, c, c_stride, ends);
  }
}

// A depthwise convolution of `count` pixels in a row: `to` (count, channels) from the rows that the
// kernel (SIZE, SIZE, channels) covers. No bias if that is null.
template <int SIZE>
void depthwise_of(const float* const* rows, Size count, Size channels, const float* kernel,
                  const float* bias, float* to) {
  for (Size c = 0; c < channels; c += WIDTH) {
    Vec weights[SIZE * SIZE];
    UNROLL(9)
    for (Size i = 0; i < SIZE * SIZE; ++i) weights[i] = load(kernel + i * channels + c);
    const Vec start = bias ? load(bias + c) : Vec{};
    for (Size i = c; i < count * channels; i += channels) {
      Vec total = start;
      UNROLL(3)
      for (Size y = 0; y < SIZE; ++y) {
        UNROLL(3)
        for (Size x = 0; x < SIZE; ++x)
          total += load(rows[y] + i + x * channels) * weights[y * SIZE + x];
      }
      store(to + i, total);
    }
  }
}

// The same for COUNT pixels from `first` on, and any size of the kernel.
template <int COUNT>
void depthwise_block(const float* const* rows, Size first, Size size, Size channels,
                     const float* kernel, const float* bias, float* to) {
  for (Size c = 0; c < channels; c += WIDTH) {
    Vec totals[COUNT];
    UNROLL(8)
    for (Size i = 0; i < COUNT; ++i) totals[i] = bias ? load(bias + c) : Vec{};
    const float* weights = kernel + c;
    for (Size y = 0; y < size; ++y) {
      const float* from = rows[y] + first * channels + c;
      for (Size x = 0; x < size; ++x, from += channels, weights += channels) {
        const Vec weight = load(weights);
        UNROLL(8)
        for (Size i = 0; i < COUNT; ++i) totals[i] += load(from + i * channels) * weight;
      }
    }
    UNROLL(8)
    for (Size i = 0; i < COUNT; ++i) store(to + i * channels + c, totals[i]);
  }
}

// The same for any number of pixels.
inline void depthwise(const float* const* rows, Size size, Size count, Size channels,
                      const float* kernel, const float* bias, float* to) {
  if (size == 3) return depthwise_of<3>(rows, count, channels, kernel, bias, to);
  Size i = 0;
  for (; i + 8 <= count; i += 8)
    depthwise_block<8>(rows, i, size, channels, kernel, bias, to + i * channels);
  for (; i < count; ++i)
    depthwise_block<1>(rows, i, size, channels, kernel, bias, to + i * channels);
}

// Adds the gradient of a depthwise convolution's kernel (size, size, channels), from the gradient
// of `count` pixels in a row, and the rows that the kernel covered.
inline void depthwise_weights(const float* const* rows, Size size, Size count, Size channels,
                              const float* grads, float* grad_kernel) {
  for (Size y = 0; y < size; ++y)
    for (Size x = 0; x < size; ++x)
      for (Size c = 0; c < channels; c += WIDTH) {
        const float* row = rows[y] + x * channels + c;
        float* to = grad_kernel + (y * size + x) * channels + c;
        Vec total = load(to), other{};  // Two sums, for one to wait less for the other.
        Size i = 0;
        for (; i + 2 <= count; i += 2) {
          total += load(row + i * channels) * load(grads + i * channels + c);
          other += load(row + (i + 1) * channels) * load(grads + (i + 1) * channels + c);
        }
        if (i < count) total += load(row + i * channels) * load(grads + i * channels + c);
        store(to, total + other);
      }
}

// Adds up `count` rows of `columns`.
inline void add_rows(Size count, Size columns, const float* rows, Size stride, float* to) {
  for (Size c = 0; c < columns; c += WIDTH) {
    Vec total = load(to + c);
    for (Size i = 0; i < count; ++i) total += load(rows + i * stride + c);
    store(to + c, total);
  }
}
