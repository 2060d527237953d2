// Window attention with a relative position bias for one vector width; included once for each.
//
// softmax(q k^T / sqrt(D) + B) v and its gradients, a tile of scores at a time, so that scores never
// leave the cache. The bias is not spread out: B[query, (row, column)] for consecutive columns of
// one row of keys is a consecutive piece of the table, loaded where the scores are made.
//
// Scores are kept in base 2: the queries and the table are multiplied by log2(e) when packed.
//
// WIDTH: floats in a vector. Source of the tiling: Dao et al., FlashAttention, arXiv:2205.14135.

typedef float Vec __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));
typedef int IntVec __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));

constexpr int FORWARD_QUERIES = 16, FORWARD_KEYS = 256;
constexpr int BACKWARD_QUERIES = 32, BACKWARD_KEYS = 64;

inline Vec load(const float* from) { return *reinterpret_cast<const Vec*>(from); }
inline void store(float* to, Vec value) { *reinterpret_cast<Vec*>(to) = value; }
inline Vec broadcast(float value) { return value - Vec{}; }
// The second if either is NaN.
inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }
inline float larger(float a, float b) { return a > b ? a : b; }
inline int smaller(int a, int b) { return a < b ? a : b; }

inline float sum(Vec value) {
  float total = 0;
  for (int i = 0; i < WIDTH; ++i) total += value[i];
  return total;
}

inline float largest(Vec value) {
  float top = value[0];
  for (int i = 1; i < WIDTH; ++i) top = larger(value[i], top);
  return top;
}

// 2^x for x <= 127, and 2^-126 below that: the polynomial has a relative error of 7.5e-8.
inline Vec exp2(Vec x) {
  x = larger(broadcast(-126.f), x);
  const Vec shifted = x + 12582912.f;  // 1.5 * 2^23: rounds, and leaves the integer in the low bits
  const Vec fraction = x - (shifted - 12582912.f);
  Vec power = broadcast(0.001327647152f);
  power = power * fraction + 0.009675541331f;
  power = power * fraction + 0.05550713275f;
  power = power * fraction + 0.2402211972f;
  power = power * fraction + 0.6931469671f;
  power = power * fraction + 1.000000072f;
  const IntVec exponent = reinterpret_cast<const IntVec&>(shifted) << 23;
  const IntVec bits = reinterpret_cast<const IntVec&>(power) + exponent;
  return reinterpret_cast<const Vec&>(bits);
}

// What a tile of products starts from.
struct Zero {
  Vec operator()(int, int) const { return Vec{}; }
};
struct Sum {
  const float* c;
  long stride;
  Vec operator()(int row, int column) const { return load(c + row * stride + column); }
};

// C = start + A B for one tile of ROWS x (COLUMNS * WIDTH), held in registers.
template <int ROWS, int COLUMNS, class Start>
inline void multiply_tile(int row, int column, int depth, const float* a, long a_row, long a_depth,
                          const float* b, long b_stride, float* c, long c_stride,
                          const Start& start) {
  Vec tile[ROWS][COLUMNS];
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < COLUMNS; ++j) tile[i][j] = start(row + i, column + j * WIDTH);
  a += row * a_row;
  b += column;
#pragma GCC unroll 2
  for (int k = 0; k < depth; ++k, a += a_depth, b += b_stride) {
    Vec right[COLUMNS];
#pragma GCC unroll 2
    for (int j = 0; j < COLUMNS; ++j) right[j] = load(b + j * WIDTH);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < COLUMNS; ++j) tile[i][j] += a[i * a_row] * right[j];
  }
  c += row * c_stride + column;
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < COLUMNS; ++j) store(c + i * c_stride + j * WIDTH, tile[i][j]);
}

// C = start + A B. Rows are a multiple of 8, columns of WIDTH; A has any strides.
template <class Start>
void multiply(int rows, int columns, int depth, const float* a, long a_row, long a_depth,
              const float* b, long b_stride, float* c, long c_stride, const Start& start) {
  int column = 0;
  for (; column + 2 * WIDTH <= columns; column += 2 * WIDTH) {
    int row = 0;
    for (; row + 6 <= rows; row += 6)
      multiply_tile<6, 2>(row, column, depth, a, a_row, a_depth, b, b_stride, c, c_stride, start);
    for (; row + 4 <= rows; row += 4)
      multiply_tile<4, 2>(row, column, depth, a, a_row, a_depth, b, b_stride, c, c_stride, start);
    for (; row < rows; row += 2)
      multiply_tile<2, 2>(row, column, depth, a, a_row, a_depth, b, b_stride, c, c_stride, start);
  }
  for (; column < columns; column += WIDTH)
    for (int row = 0; row < rows; row += 8)
      multiply_tile<8, 1>(row, column, depth, a, a_row, a_depth, b, b_stride, c, c_stride, start);
}

inline int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

// How a window lies in packed buffers: rows of keys padded to whole vectors, queries to whole
// tiles, the channels of a head to whole vectors.
struct Layout {
  int window, pixels, padded_window, keys, queries, dim, padded_dim, table_width;
  bool has_padding;

  Layout(int window, int dim, int query_tile)
      : window(window),
        pixels(window * window),
        padded_window(round_up(window, WIDTH)),
        keys(round_up(window * padded_window, 2 * WIDTH)),
        queries(round_up(pixels, query_tile)),
        dim(dim),
        padded_dim(round_up(dim, WIDTH < 8 ? 8 : WIDTH)),
        table_width(2 * window - 1),
        has_padding(keys != pixels) {}

  int key(int pixel) const { return pixel / window * padded_window + pixel % window; }
};

// Where the table holds the bias of a query and a key: at query[q] + key[vector of keys], which are
// consecutive within a vector. What is added to padding, -1e30, leaves it no weight.
struct Places {
  const Layout& at;
  int *query, *key;
  float* mask;

  Places(const Layout& at, Scratch& scratch)
      : at(at),
        query(scratch.ints(at.queries)),
        key(scratch.ints(at.keys / WIDTH)),
        mask(scratch.floats(at.keys)) {
    for (int i = 0; i < at.queries; ++i) {
      const int pixel = smaller(i, at.pixels - 1);  // The padding repeats the last query.
      const int row = pixel / at.window, column = pixel % at.window;
      query[i] = (at.window - 1 - row) * at.table_width + at.window - 1 - column;
    }
    for (int i = 0; i < at.keys; ++i) {
      const int row = i / at.padded_window, column = i % at.padded_window;
      const bool real = row < at.window && column < at.window;
      mask[i] = real ? 0.f : -1e30f;
      if (i % WIDTH == 0) key[i / WIDTH] = real ? row * at.table_width + column : 0;
    }
  }
};

// What a tile of scores starts from.
struct Bias {
  const float* table;
  const int *query, *key;

  Vec operator()(int row, int column) const {
    return load(table + query[row] + key[column / WIDTH]);
  }
};
struct MaskedBias {
  Bias bias;
  const float* mask;

  Vec operator()(int row, int column) const { return bias(row, column) + load(mask + column); }
};

// Biased scores of some queries and keys: (queries, keys) from q (queries, dim), k (dim, all keys).
inline void score_tile(const Places& places, const float* table, const float* q, const float* k,
                       int query, int queries, int key, int key_count, float* scores) {
  const Layout& at = places.at;
  const float* q_tile = q + query * at.padded_dim;
  const Bias bias{table, places.query + query, places.key + key / WIDTH};
  if (at.has_padding)
    multiply(queries, key_count, at.dim, q_tile, at.padded_dim, 1, k + key, at.keys, scores,
             key_count, MaskedBias{bias, places.mask + key});
  else
    multiply(queries, key_count, at.dim, q_tile, at.padded_dim, 1, k + key, at.keys, scores,
             key_count, bias);
}

// Packed copies, multiplied by `scale`: pixels by channels, or channels by keys.
void pack_queries(const Layout& at, const Strided& from, float scale, float* to) {
  std::memset(to, 0, sizeof(float) * at.queries * at.padded_dim);
  for (int pixel = 0; pixel < at.pixels; ++pixel)
    for (int d = 0; d < at.dim; ++d) to[pixel * at.padded_dim + d] = from(pixel, d) * scale;
}
void pack_keys(const Layout& at, const Strided& from, float* to) {
  std::memset(to, 0, sizeof(float) * at.keys * at.padded_dim);
  for (int pixel = 0; pixel < at.pixels; ++pixel)
    for (int d = 0; d < at.dim; ++d) to[at.key(pixel) * at.padded_dim + d] = from(pixel, d);
}
void pack_keys_transposed(const Layout& at, const Strided& from, float* to) {
  std::memset(to, 0, sizeof(float) * at.keys * at.padded_dim);
  for (int d = 0; d < at.dim; ++d)
    for (int pixel = 0; pixel < at.pixels; ++pixel) to[d * at.keys + at.key(pixel)] = from(pixel, d);
}
// The table in base 2, with room for a vector to be read past its end.
void pack_table(const Layout& at, const float* from, float* to) {
  const int size = at.table_width * at.table_width;
  for (int i = 0; i < size; ++i) to[i] = from[i] * LOG2_E;
  std::memset(to + size, 0, sizeof(float) * WIDTH);
}

// One window and head: `out` (pixels, D), and `log_sums`, log2 of the sum of exponentials, (pixels).
void forward(int window, int dim, const Strided& q, const Strided& k, const Strided& v,
             const float* table, const Strided& out, float* log_sums) {
  const Layout at(window, dim, FORWARD_QUERIES);
  Scratch scratch;
  const Places places(at, scratch);
  float* table_packed = scratch.floats(at.table_width * at.table_width + WIDTH);
  float* q_packed = scratch.floats(at.queries * at.padded_dim);
  float* k_packed = scratch.floats(at.keys * at.padded_dim);
  float* v_packed = scratch.floats(at.keys * at.padded_dim);
  float* scores = scratch.floats(FORWARD_QUERIES * FORWARD_KEYS);
  float* sums = scratch.floats(FORWARD_QUERIES * at.padded_dim);
  pack_table(at, table, table_packed);
  pack_queries(at, q, LOG2_E / std::sqrt(float(dim)), q_packed);
  pack_keys_transposed(at, k, k_packed);
  pack_keys(at, v, v_packed);

  for (int query = 0; query < at.pixels; query += FORWARD_QUERIES) {
    float top[FORWARD_QUERIES], total[FORWARD_QUERIES];
    for (int i = 0; i < FORWARD_QUERIES; ++i) top[i] = -1e30f, total[i] = 0;
    std::memset(sums, 0, sizeof(float) * FORWARD_QUERIES * at.padded_dim);
    for (int key = 0; key < at.keys; key += FORWARD_KEYS) {
      const int count = smaller(FORWARD_KEYS, at.keys - key);
      score_tile(places, table_packed, q_packed, k_packed, query, FORWARD_QUERIES, key, count, scores);
      for (int i = 0; i < FORWARD_QUERIES; ++i) {
        float* row = scores + i * count;
        Vec highest = load(row);
        for (int j = WIDTH; j < count; j += WIDTH) highest = larger(highest, load(row + j));
        const float new_top = larger(top[i], largest(highest));
        const float correction = exp2f(top[i] - new_top);
        Vec row_total{};
        for (int j = 0; j < count; j += WIDTH) {
          const Vec weight = exp2(load(row + j) - new_top);
          row_total += weight;
          store(row + j, weight);
        }
        top[i] = new_top;
        total[i] = total[i] * correction + sum(row_total);
        for (int d = 0; d < at.padded_dim; ++d) sums[i * at.padded_dim + d] *= correction;
      }
      multiply(FORWARD_QUERIES, at.padded_dim, count, scores, count, 1,
               v_packed + key * at.padded_dim, at.padded_dim, sums, at.padded_dim,
               Sum{sums, at.padded_dim});
    }
    for (int i = 0; i < smaller(FORWARD_QUERIES, at.pixels - query); ++i) {
      for (int d = 0; d < dim; ++d) out(query + i, d) = sums[i * at.padded_dim + d] / total[i];
      log_sums[query + i] = top[i] + log2f(total[i]);
    }
  }
}

// One window and head: gradients (pixels, D) of q, k and v; that of the table is added to
// `grad_table`, which has room for WIDTH more floats.
void backward(int window, int dim, const Strided& q, const Strided& k, const Strided& v,
              const float* table, const Strided& out, const float* log_sums,
              const Strided& grad_out, const Strided& grad_q, const Strided& grad_k,
              const Strided& grad_v, float* grad_table) {
  const Layout at(window, dim, BACKWARD_QUERIES);
  Scratch scratch;
  const Places places(at, scratch);
  const int query_size = at.queries * at.padded_dim, key_size = at.keys * at.padded_dim;
  float* table_packed = scratch.floats(at.table_width * at.table_width + WIDTH);
  float* q_packed = scratch.floats(query_size);
  float* grad_out_packed = scratch.floats(query_size);
  float* k_packed = scratch.floats(key_size);
  float* k_transposed = scratch.floats(key_size);
  float* v_transposed = scratch.floats(key_size);
  float* grad_k_sums = scratch.floats(key_size);
  float* grad_v_sums = scratch.floats(key_size);
  float* grad_q_sums = scratch.floats(BACKWARD_QUERIES * at.padded_dim);
  float* weights = scratch.floats(BACKWARD_QUERIES * BACKWARD_KEYS);
  float* grad_scores = scratch.floats(BACKWARD_QUERIES * BACKWARD_KEYS);
  const float scale = 1 / std::sqrt(float(dim));
  pack_table(at, table, table_packed);
  pack_queries(at, q, LOG2_E * scale, q_packed);
  pack_queries(at, grad_out, 1, grad_out_packed);
  pack_keys(at, k, k_packed);
  pack_keys_transposed(at, k, k_transposed);
  pack_keys_transposed(at, v, v_transposed);
  std::memset(grad_k_sums, 0, sizeof(float) * key_size);
  std::memset(grad_v_sums, 0, sizeof(float) * key_size);

  for (int query = 0; query < at.pixels; query += BACKWARD_QUERIES) {
    const int real = smaller(BACKWARD_QUERIES, at.pixels - query);
    float log_sum[BACKWARD_QUERIES], delta[BACKWARD_QUERIES];
    for (int i = 0; i < BACKWARD_QUERIES; ++i) {
      log_sum[i] = i < real ? log_sums[query + i] : 1e30f;  // A query of the padding weighs nothing.
      delta[i] = 0;
      for (int d = 0; i < real && d < dim; ++d)
        delta[i] += grad_out(query + i, d) * out(query + i, d);
    }
    const float* q_tile = q_packed + query * at.padded_dim;
    const float* grad_out_tile = grad_out_packed + query * at.padded_dim;
    std::memset(grad_q_sums, 0, sizeof(float) * BACKWARD_QUERIES * at.padded_dim);
    for (int key = 0; key < at.keys; key += BACKWARD_KEYS) {
      const int count = smaller(BACKWARD_KEYS, at.keys - key);
      score_tile(places, table_packed, q_packed, k_transposed, query, BACKWARD_QUERIES, key, count,
                 weights);
      multiply(BACKWARD_QUERIES, count, dim, grad_out_tile, at.padded_dim, 1, v_transposed + key,
               at.keys, grad_scores, count, Zero());
      for (int i = 0; i < BACKWARD_QUERIES; ++i) {
        float* table_row = grad_table + places.query[query + i];
        for (int j = 0; j < count; j += WIDTH) {
          const Vec weight = exp2(load(weights + i * count + j) - log_sum[i]);
          const Vec grad = weight * (load(grad_scores + i * count + j) - delta[i]);
          store(weights + i * count + j, weight);
          store(grad_scores + i * count + j, grad);
          float* place = table_row + places.key[(key + j) / WIDTH];
          store(place, load(place) + grad);
        }
      }
      float* grad_v_tile = grad_v_sums + key;
      float* grad_k_tile = grad_k_sums + key;
      multiply(at.padded_dim, count, BACKWARD_QUERIES, grad_out_tile, 1, at.padded_dim, weights,
               count, grad_v_tile, at.keys, Sum{grad_v_tile, at.keys});
      multiply(at.padded_dim, count, BACKWARD_QUERIES, q_tile, 1, at.padded_dim, grad_scores, count,
               grad_k_tile, at.keys, Sum{grad_k_tile, at.keys});
      multiply(BACKWARD_QUERIES, at.padded_dim, count, grad_scores, count, 1,
               k_packed + key * at.padded_dim, at.padded_dim, grad_q_sums, at.padded_dim,
               Sum{grad_q_sums, at.padded_dim});
    }
    for (int i = 0; i < real; ++i)
      for (int d = 0; d < dim; ++d) grad_q(query + i, d) = grad_q_sums[i * at.padded_dim + d] * scale;
  }
  for (int pixel = 0; pixel < at.pixels; ++pixel)
    for (int d = 0; d < dim; ++d) {
      // The queries that made grad_k_sums were packed in base 2.
      grad_k(pixel, d) = grad_k_sums[d * at.keys + at.key(pixel)] / LOG2_E;
      grad_v(pixel, d) = grad_v_sums[d * at.keys + at.key(pixel)];
    }
}
