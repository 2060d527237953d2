// Window attention with a relative position bias; included after vectors.h, for each width.
//
// softmax(q k^T / sqrt(D) + B) v and its gradients, a tile of scores at a time, so that scores
// never leave the cache. The bias is not spread out: B[query, (row, column)] for consecutive
// columns of one row of keys is a consecutive piece of the table, loaded where the scores are made.
//
// Scores are kept in base 2: the queries and the table are multiplied by log2(e) when packed.
//
// Source of the tiling: Dao et al., FlashAttention, arXiv:2205.14135.

constexpr Size FORWARD_QUERIES = 12, FORWARD_KEYS = 128;
constexpr Size BACKWARD_QUERIES = 24, BACKWARD_KEYS = 64;
constexpr float LOWEST = -3.402823466e38f;  // Of all floats but minus infinity.

// How a window lies in packed buffers: rows of keys padded to whole vectors, queries, of which
// those in the image's padding are left out, to whole tiles, the channels of a head to whole
// vectors. Where keys lie side by side, the next channel's are not a power of two away, which
// caches dislike.
struct Layout {
  Size window, rows, columns, pixels, padded_window, keys, key_stride, queries;
  Size dim, padded_dim, table_width;
  bool has_padding;

  Layout(const Window& place, Size dim, Size query_tile)
      : window(place.size),
        rows(place.rows),
        columns(place.columns),
        pixels(rows * columns),
        padded_window(round_up(window, WIDTH)),
        keys(round_up(window * padded_window, 2 * WIDTH)),
        key_stride(keys + 16),
        queries(round_up(pixels, query_tile)),
        dim(dim),
        padded_dim(round_up(dim, WIDTH < 8 ? 8 : WIDTH)),
        table_width(2 * window - 1),
        has_padding(keys != window * window) {}

  Size key(Size row, Size column) const { return row * padded_window + column; }
};

// Where the table holds the bias of a query and a key: at query[q] + key[vector of keys], which are
// consecutive within a vector. What is added to padding, minus infinity, leaves it no weight.
struct Places {
  const Layout& at;
  Size *query, *key;
  float* mask;

  Places(const Layout& at, Scratch& scratch)
      : at(at),
        query(scratch.array<Size>(at.queries)),
        key(scratch.array<Size>(at.keys / WIDTH)),
        mask(scratch.array<float>(at.keys)) {
    for (Size i = 0; i < at.queries; ++i) {
      const Size pixel = smaller(i, at.pixels - 1);  // The padding repeats the last query.
      const Size row = pixel / at.columns, column = pixel % at.columns;
      query[i] = (at.window - 1 - row) * at.table_width + at.window - 1 - column;
    }
    for (Size i = 0; i < at.keys; ++i) {
      const Size row = i / at.padded_window, column = i % at.padded_window;
      const bool real = row < at.window && column < at.window;
      mask[i] = real ? 0.f : -INFINITY;
      if (i % WIDTH == 0) key[i / WIDTH] = real ? row * at.table_width + column : 0;
    }
  }
};

// Makes a tile of biased scores.
template <bool MASKED>
struct Scores : Keep {
  const float* table;
  const Size *query, *key;
  const float* mask;

  Scores(const Places& places, const float* table, Size query, Size key)
      : table(table),
        query(places.query + query),
        key(places.key + key / WIDTH),
        mask(places.mask + key) {}

  Vec start(Size row, Size column) const {
    const Vec bias = load(table + query[row] + key[column / WIDTH]);
    return MASKED ? bias + load(mask + column) : bias;
  }
};

// Makes a tile of weights, 2^(score - top), and adds each query's up.
template <bool MASKED>
struct Weights : Scores<MASKED> {
  const float* top;
  float* sums;

  Weights(const Scores<MASKED>& scores, const float* top, float* sums)
      : Scores<MASKED>(scores), top(top), sums(sums) {}

  template <int COLUMNS>
  void finish(Size row, Vec (&scores)[COLUMNS]) const {
    Vec total = load(sums + row * WIDTH);
    UNROLL(2)
    for (Size j = 0; j < COLUMNS; ++j) total += scores[j] = exp2(scores[j] - top[row]);
    store(sums + row * WIDTH, total);
  }
};

// Packed copies, multiplied by `scale`: pixels by channels, or channels by keys.
void pack_queries(const Layout& at, const Window& from, float scale, float* to) {
  std::memset(to, 0, sizeof(float) * at.queries * at.padded_dim);
  for (Size row = 0; row < at.rows; ++row)
    for (Size column = 0; column < at.columns; ++column, to += at.padded_dim)
      for (Size d = 0; d < at.dim; ++d) to[d] = from(row, column, d) * scale;
}
void pack_keys(const Layout& at, const Window& from, float* to) {
  std::memset(to, 0, sizeof(float) * at.keys * at.padded_dim);
  for (Size row = 0; row < at.window; ++row)
    for (Size column = 0; column < at.window; ++column) {
      float* place = to + at.key(row, column) * at.padded_dim;
      for (Size d = 0; d < at.dim; ++d) place[d] = from(row, column, d);
    }
}
void pack_keys_transposed(const Layout& at, const Window& from, float* to) {
  std::memset(to, 0, sizeof(float) * at.key_stride * at.padded_dim);
  for (Size row = 0; row < at.window; ++row)
    for (Size column = 0; column < at.window; ++column) {
      float* place = to + at.key(row, column);
      for (Size d = 0; d < at.dim; ++d) place[d * at.key_stride] = from(row, column, d);
    }
}
// The table in base 2, with room for a vector to be read past its end.
void pack_table(const Layout& at, const float* from, float* to) {
  const Size size = at.table_width * at.table_width;
  for (Size i = 0; i < size; ++i) to[i] = from[i] * LOG2_E;
  std::memset(to + size, 0, sizeof(float) * WIDTH);
}

// What no score of a query exceeds, |q| max |k| + max B, if it cannot exceed the largest of them by
// more than SAFE_EXCESS either; else infinity.
class Bounds {
 public:
  Bounds(const Layout& at, const float* table, const float* k_transposed) : at(at) {
    lowest = highest = table[0];
    for (Size i = 1; i < at.table_width * at.table_width; ++i) {
      lowest = table[i] < lowest ? table[i] : lowest;
      highest = larger(table[i], highest);
    }
    Vec longest{};
    for (Size key = 0; key < at.keys; key += WIDTH) {
      Vec square{};
      for (Size d = 0; d < at.dim; ++d) {
        const Vec value = load(k_transposed + d * at.key_stride + key);
        square += value * value;
      }
      longest = larger(longest, square);
    }
    longest_key = sqrtf(largest(longest));
  }

  float of(const float* query) const {
    float square = 0;
    for (Size d = 0; d < at.dim; ++d) square += query[d] * query[d];
    const float product = sqrtf(square) * longest_key;
    const bool safe = 2 * product + highest - lowest <= SAFE_EXCESS;
    return safe ? product + highest : INFINITY;
  }

 private:
  const Layout& at;
  float lowest, highest, longest_key;
};

// Turns scores into weights of 2^(score - top), top being the largest so far; corrects what was
// summed with a smaller one.
void weigh(const Layout& at, Size count, float* scores, float* top, float* total, float* sums) {
  for (Size i = 0; i < FORWARD_QUERIES; ++i) {
    float* row = scores + i * count;
    Vec highest = load(row);
    for (Size j = WIDTH; j < count; j += WIDTH) highest = larger(highest, load(row + j));
    const float new_top = larger(top[i], largest(highest));
    const float correction = exp2f(top[i] - new_top);
    Vec row_total{};
    for (Size j = 0; j < count; j += WIDTH) {
      const Vec weight = exp2(load(row + j) - new_top);
      row_total += weight;
      store(row + j, weight);
    }
    top[i] = new_top;
    total[i] = total[i] * correction + sum(row_total);
    for (Size d = 0; d < at.padded_dim; ++d) sums[i * at.padded_dim + d] *= correction;
  }
}

// One window and head: `out` (pixels, D), and `log_sums`, log2 of the sum of exponentials,
// (pixels).
template <bool MASKED>
void attend_of(const Layout& at, const Window& q, const Window& k, const Window& v,
               const float* table, const Window& out, float* log_sums) {
  Scratch scratch;
  const Places places(at, scratch);
  float* table_packed = scratch.array<float>(at.table_width * at.table_width + WIDTH);
  float* q_packed = scratch.array<float>(at.queries * at.padded_dim);
  float* k_packed = scratch.array<float>(at.key_stride * at.padded_dim);
  float* v_packed = scratch.array<float>(at.keys * at.padded_dim);
  float* scores = scratch.array<float>(FORWARD_QUERIES * FORWARD_KEYS);
  float* sums = scratch.array<float>(FORWARD_QUERIES * at.padded_dim);
  float* totals = scratch.array<float>(FORWARD_QUERIES * WIDTH);
  pack_table(at, table, table_packed);
  pack_queries(at, q, LOG2_E / sqrtf(float(at.dim)), q_packed);
  pack_keys_transposed(at, k, k_packed);
  pack_keys(at, v, v_packed);
  const Bounds bounds(at, table_packed, k_packed);

  for (Size query = 0; query < at.pixels; query += FORWARD_QUERIES) {
    float top[FORWARD_QUERIES], total[FORWARD_QUERIES];
    bool safe = true;
    for (Size i = 0; i < FORWARD_QUERIES; ++i) {
      top[i] = bounds.of(q_packed + (query + i) * at.padded_dim);
      safe = safe && top[i] < INFINITY;
    }
    for (Size i = 0; i < FORWARD_QUERIES && !safe; ++i) top[i] = LOWEST;
    for (Size i = 0; i < FORWARD_QUERIES; ++i) total[i] = 0;
    std::memset(totals, 0, sizeof(float) * FORWARD_QUERIES * WIDTH);
    std::memset(sums, 0, sizeof(float) * FORWARD_QUERIES * at.padded_dim);
    for (Size key = 0; key < at.keys; key += FORWARD_KEYS) {
      const Size count = smaller(FORWARD_KEYS, at.keys - key);
      const auto products = [&](const auto& ends) {
        multiply(FORWARD_QUERIES, count, at.dim, q_packed + query * at.padded_dim, at.padded_dim, 1,
                 k_packed + key, at.key_stride, scores, count, ends);
      };
      const Scores<MASKED> biased(places, table_packed, query, key);
      if (safe) {
        products(Weights<MASKED>(biased, top, totals));
      } else {
        products(biased);
        weigh(at, count, scores, top, total, sums);
      }
      multiply(FORWARD_QUERIES, at.padded_dim, count, scores, count, 1,
               v_packed + key * at.padded_dim, at.padded_dim, sums, at.padded_dim,
               Sum(sums, at.padded_dim));
    }
    for (Size i = 0; i < smaller(FORWARD_QUERIES, at.pixels - query); ++i) {
      const Size row = (query + i) / at.columns, column = (query + i) % at.columns;
      if (safe) total[i] = sum(load(totals + i * WIDTH));
      if (top[i] == LOWEST) total[i] = NAN;  // All scores are minus infinity.
      for (Size d = 0; d < at.dim; ++d)
        out(row, column, d) = sums[i * at.padded_dim + d] / total[i];
      log_sums[query + i] = top[i] + log2f(total[i]);
    }
  }
}

void attend(Size dim, const Window& q, const Window& k, const Window& v, const float* table,
            const Window& out, float* log_sums) {
  const Layout at(q, dim, FORWARD_QUERIES);
  auto* function = at.has_padding ? attend_of<true> : attend_of<false>;
  function(at, q, k, v, table, out, log_sums);
}

// One window and head: gradients (pixels, D) of q, k and v; that of the table is added to
// `grad_table`, which has room for WIDTH more floats.
template <bool MASKED>
void attend_backward_of(const Layout& at, const Window& q, const Window& k, const Window& v,
                        const float* table, const Window& out, const float* log_sums,
                        const Window& grad_out, const Window& grad_q, const Window& grad_k,
                        const Window& grad_v, float* grad_table) {
  Scratch scratch;
  const Places places(at, scratch);
  const Size query_size = at.queries * at.padded_dim, key_size = at.key_stride * at.padded_dim;
  float* table_packed = scratch.array<float>(at.table_width * at.table_width + WIDTH);
  float* q_packed = scratch.array<float>(query_size);
  float* out_packed = scratch.array<float>(query_size);
  float* grad_out_packed = scratch.array<float>(query_size);
  float* k_packed = scratch.array<float>(key_size);
  float* k_transposed = scratch.array<float>(key_size);
  float* v_transposed = scratch.array<float>(key_size);
  float* grad_k_sums = scratch.array<float>(key_size);
  float* grad_v_sums = scratch.array<float>(key_size);
  float* grad_q_sums = scratch.array<float>(BACKWARD_QUERIES * at.padded_dim);
  float* weights = scratch.array<float>(BACKWARD_QUERIES * BACKWARD_KEYS);
  float* grad_scores = scratch.array<float>(BACKWARD_QUERIES * BACKWARD_KEYS);
  const float scale = 1 / sqrtf(float(at.dim));
  pack_table(at, table, table_packed);
  pack_queries(at, q, LOG2_E * scale, q_packed);
  pack_queries(at, out, 1, out_packed);
  pack_queries(at, grad_out, 1, grad_out_packed);
  pack_keys(at, k, k_packed);
  pack_keys_transposed(at, k, k_transposed);
  pack_keys_transposed(at, v, v_transposed);
  std::memset(grad_k_sums, 0, sizeof(float) * key_size);
  std::memset(grad_v_sums, 0, sizeof(float) * key_size);

  for (Size query = 0; query < at.pixels; query += BACKWARD_QUERIES) {
    const Size real = smaller(BACKWARD_QUERIES, at.pixels - query);
    const float* q_tile = q_packed + query * at.padded_dim;
    const float* grad_out_tile = grad_out_packed + query * at.padded_dim;
    float log_sum[BACKWARD_QUERIES], delta[BACKWARD_QUERIES];
    for (Size i = 0; i < BACKWARD_QUERIES; ++i) {
      // A query of the padding weighs nothing.
      log_sum[i] = i < real ? log_sums[query + i] : INFINITY;
      delta[i] = 0;
      for (Size d = 0; d < at.dim; ++d)
        delta[i] +=
            grad_out_tile[i * at.padded_dim + d] * out_packed[(query + i) * at.padded_dim + d];
    }
    std::memset(grad_q_sums, 0, sizeof(float) * BACKWARD_QUERIES * at.padded_dim);
    for (Size key = 0; key < at.keys; key += BACKWARD_KEYS) {
      const Size count = smaller(BACKWARD_KEYS, at.keys - key);
      multiply(BACKWARD_QUERIES, count, at.dim, q_tile, at.padded_dim, 1, k_transposed + key,
               at.key_stride, weights, count, Scores<MASKED>(places, table_packed, query, key));
      multiply(BACKWARD_QUERIES, count, at.dim, grad_out_tile, at.padded_dim, 1, v_transposed + key,
               at.key_stride, grad_scores, count, Zero());
      for (Size i = 0; i < BACKWARD_QUERIES; ++i) {
        float* table_row = grad_table + places.query[query + i];
        for (Size j = 0; j < count; j += WIDTH) {
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
               count, grad_v_tile, at.key_stride, Sum(grad_v_tile, at.key_stride));
      multiply(at.padded_dim, count, BACKWARD_QUERIES, q_tile, 1, at.padded_dim, grad_scores, count,
               grad_k_tile, at.key_stride, Sum(grad_k_tile, at.key_stride));
      multiply(BACKWARD_QUERIES, at.padded_dim, count, grad_scores, count, 1,
               k_packed + key * at.padded_dim, at.padded_dim, grad_q_sums, at.padded_dim,
               Sum(grad_q_sums, at.padded_dim));
    }
    for (Size i = 0; i < real; ++i) {
      const Size row = (query + i) / at.columns, column = (query + i) % at.columns;
      for (Size d = 0; d < at.dim; ++d)
        grad_q(row, column, d) = grad_q_sums[i * at.padded_dim + d] * scale;
    }
  }
  for (Size row = 0; row < at.window; ++row)
    for (Size column = 0; column < at.window; ++column)
      for (Size d = 0; d < at.dim; ++d) {
        const Size place = d * at.key_stride + at.key(row, column);
        // The queries that made grad_k_sums were packed in base 2.
        grad_k(row, column, d) = grad_k_sums[place] / LOG2_E;
        grad_v(row, column, d) = grad_v_sums[place];
      }
}

void attend_backward(Size dim, const Window& q, const Window& k, const Window& v,
                     const float* table, const Window& out, const float* log_sums,
                     const Window& grad_out, const Window& grad_q, const Window& grad_k,
                     const Window& grad_v, float* grad_table) {
  const Layout at(q, dim, BACKWARD_QUERIES);
  auto* function = at.has_padding ? attend_backward_of<true> : attend_backward_of<false>;
  function(at, q, k, v, table, out, log_sums, grad_out, grad_q, grad_k, grad_v, grad_table);
}
