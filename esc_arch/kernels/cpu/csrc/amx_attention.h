// Window attention in bfloat16 on AMX: see window_attention.h for what it computes, and how.
//
// A tile of scores starts as a tile of the table: one query to the right reads one float to the left,
// so its rows are 16 overlapping pieces of it, 4 bytes apart, backwards. Heads have up to 16
// channels. A product is 32 deep, so that more "channels" come for nothing: with queries (-top, -rest
// of top, 1) and keys (1, 1, mask) scores come out with what is subtracted and masked. They are q k^T +
// sqrt(D) B, so that nothing is rounded before it is multiplied.

constexpr int TOP = TILE_SIDE, TOP_REST = TOP + 1, MASK = TOP + 2;
// Queries at a time: two tiles, each of which lies side by side in a row of the window.
constexpr int QUERY_TILES = 2, QUERIES = QUERY_TILES * TILE_SIDE;
// Keys at a time: what fits L1.
constexpr int FORWARD_KEYS = 64, BACKWARD_KEYS = 32;

// 2^x for x below 128, within 8e-5 of it; coefficients: own minimax fit on [0, 1].
inline Vec exp2_roughly(Vec x) {
  const __m512 binary = wide(x);
  const __m512 fraction = _mm512_reduce_ps(binary, _MM_FROUND_TO_NEG_INF);
  __m512 power = _mm512_set1_ps(0.07802452f);
  power = _mm512_fmadd_ps(power, fraction, _mm512_set1_ps(0.22606717f));
  power = _mm512_fmadd_ps(power, fraction, _mm512_set1_ps(0.69583353f));
  power = _mm512_fmadd_ps(power, fraction, _mm512_set1_ps(0.99992522f));
  const __m512 scaled = _mm512_scalef_ps(power, binary);
  return reinterpret_cast<const Vec&>(scaled);
}

inline float sum(Vec value) { return _mm512_reduce_add_ps(wide(value)); }

// One window and head: what its forward and its backward have in common.
class TileWindow {
 protected:
  const int window, padded_window, keys, table_width, dim;
  const float to_exponents;  // Times a score: what 2 is raised to.
  Scratch scratch;
  Tiles tiles;
  float* table;

  struct Queries {
    int row, column, count;  // `count` of them are not padding.
    const float* table;      // Where it holds the bias of the first query and the first key.
    bool repeated;           // Whether this tile has been there, their number being odd.
  };

  TileWindow(int window, int dim, const float* table)
      : window(window),
        padded_window(round_up(window, TILE_SIDE)),
        keys(round_up(window * padded_window, FORWARD_KEYS)),
        table_width(2 * window - 1),
        dim(dim),
        to_exponents(LOG2_E / std::sqrt(float(dim))),
        table(padded_table()) {
    const float factor = std::sqrt(float(dim));
    for (int i = 0; i < table_width * table_width; ++i) this->table[i] = table[i] * factor;
  }

  // A table of zeros, with room for tiles that reach past its ends.
  float* padded_table() {
    const int margin = 2 * TILE_SIDE, size = table_width * table_width + 2 * margin;
    float* zeros = scratch.array<float>(size);
    std::memset(zeros, 0, sizeof(float) * size);
    return zeros + margin;
  }

  // Calls use(key, pixel) for the pixels of the window.
  template <class Use>
  void for_keys(const WindowOf<bfloat16>& image, const Use& use) const {
    for (int row = 0; row < window; ++row)
      for (int column = 0; column < window; ++column)
        use(row * padded_window + column, image.pixel(row, column));
  }

  // B tiles of 16 keys each: pairs of channels by keys. With what makes `TOP` and `MASK` work if
  // `extended`.
  bfloat16* by_channels(const WindowOf<bfloat16>& k, bool extended) {
    bfloat16* packed = scratch.array<bfloat16>(keys * TILE_DEPTH);
    const __m512i pairs = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i places = _mm512_slli_epi32(pairs, 4);
    bfloat16 channels[TILE_DEPTH] = {};
    const auto put = [&](int key) {
      _mm512_i32scatter_epi32(packed + key / TILE_SIDE * TILE_VALUES + key % TILE_SIDE * 2, places,
                              *reinterpret_cast<const __m512i_u*>(channels), 4);
    };
    if (extended) {
      channels[TOP] = channels[TOP_REST] = bfloat16_of(1);
      channels[MASK] = bfloat16_of(-1e30f);
    }
    for (int key = 0; key < keys; ++key) put(key);
    channels[MASK] = 0;
    for_keys(k, [&](int key, const bfloat16* pixel) {
      std::memcpy(channels, pixel, sizeof(bfloat16) * dim);
      put(key);
    });
    return packed;
  }

  // B tiles of 32 keys each: pairs of keys by channels.
  bfloat16* by_keys(const WindowOf<bfloat16>& v) {
    bfloat16* packed = scratch.array<bfloat16>(keys * TILE_SIDE);
    std::memset(packed, 0, sizeof(bfloat16) * keys * TILE_SIDE);
    for_keys(v, [&](int key, const bfloat16* pixel) {
      bfloat16* to = packed + key / 2 * TILE_DEPTH + key % 2;
      for (int d = 0; d < dim; ++d) to[2 * d] = pixel[d];
    });
    return packed;
  }

  // Calls use(queries) for all that lie in the image, `rows` by `columns` of the window.
  template <class Use>
  void for_queries(int rows, int columns, const Use& use) const {
    const int across = (columns + TILE_SIDE - 1) / TILE_SIDE, count = across * rows;
    for (int first = 0; first < count; first += QUERY_TILES) {
      Queries queries[QUERY_TILES];
      for (int i = 0; i < QUERY_TILES; ++i) {
        const int tile = smaller(first + i, count - 1);
        const int row = tile / across, column = tile % across * TILE_SIDE;
        queries[i] = {row, column, smaller(TILE_SIDE, columns - column),
                      table + (window - 1 - row) * table_width + window - 1 - column,
                      first + i != tile};
      }
      use(queries);
    }
  }

  // A tiles of their channels.
  void pack(const WindowOf<bfloat16>& image, const Queries* queries, bfloat16* to) const {
    std::memset(to, 0, sizeof(bfloat16) * QUERY_TILES * TILE_VALUES);
    for (int i = 0; i < QUERY_TILES; ++i)
      for (int j = 0; j < queries[i].count; ++j)
        std::memcpy(to + (i * TILE_SIDE + j) * TILE_DEPTH,
                    image.pixel(queries[i].row, queries[i].column + j), sizeof(bfloat16) * dim);
  }

  // Scores of the queries, packed in `q`, and `count` keys, packed by channels, (QUERIES, count).
  void score(const Queries* queries, const bfloat16* q, const bfloat16* k, int key, int count,
             float* scores) const {
    tile_load<0>(q);
    tile_load<1>(q + TILE_VALUES);
    for (int i = 0; i < count; i += TILE_SIDE) {
      const int row = (key + i) / padded_window, column = (key + i) % padded_window;
      const int place = smaller(row, window - 1) * table_width + column;
      tile_load<6>(k + (key + i) * TILE_DEPTH);
      tile_load<4>(queries[0].table + place, -long(sizeof(float)));
      tile_load<5>(queries[1].table + place, -long(sizeof(float)));
      tile_multiply<4, 0, 6>();
      tile_multiply<5, 1, 6>();
      tile_store<4>(scores + i, sizeof(float) * count);
      tile_store<5>(scores + TILE_SIDE * count + i, sizeof(float) * count);
    }
  }

  void write(Vec values, bfloat16* pixel) const {
    bfloat16 channels[TILE_SIDE];
    store(channels, values);
    std::memcpy(pixel, channels, sizeof(bfloat16) * dim);
  }
};

class TileForward : TileWindow {
 public:
  TileForward(int dim, const WindowOf<bfloat16>& k, const WindowOf<bfloat16>& v, const float* table)
      : TileWindow(k.size, dim, table),
        k(by_channels(k, true)),
        v(by_keys(v)),
        q(scratch.array<bfloat16>(QUERIES * TILE_DEPTH)),
        weights(scratch.array<bfloat16>(QUERIES * FORWARD_KEYS)),
        scores(scratch.array<float>(QUERIES * FORWARD_KEYS)),
        sums(scratch.array<float>(QUERIES * TILE_SIDE)),
        totals(scratch.array<float>(QUERIES * TILE_SIDE)) {
    bound_scores(k);
  }

  // `out` (pixels, D), and `log_sums`, log2 of the sum of exponentials, (w * w), as far as the window
  // lies in the image.
  void run(const WindowOf<bfloat16>& q_image, const WindowOf<bfloat16>& out, float* log_sums) {
    for_queries(out.rows, out.columns, [&](const Queries* queries) {
      pack(q_image, queries, q);
      subtract_tops(queries);
      attend(queries);
      for (int i = 0; i < QUERIES; ++i) {
        const Queries& tile = queries[i / TILE_SIDE];
        const int column = tile.column + i % TILE_SIDE;
        if (i % TILE_SIDE >= tile.count) continue;
        const float total = sum(width16::load(totals + i * TILE_SIDE));
        write(width16::load(sums + i * TILE_SIDE) / total, out.pixel(tile.row, column));
        log_sums[tile.row * out.columns + column] = tops[i] * to_exponents + log2f(total);
      }
    });
  }

 private:
  bfloat16 *k, *v, *q, *weights;
  float *scores, *sums, *totals;
  float longest_key, lowest_bias, highest_bias;
  float tops[QUERIES];

  void bound_scores(const WindowOf<bfloat16>& k_image) {
    float longest = 0;
    bfloat16 channels[TILE_SIDE] = {};
    for_keys(k_image, [&](int, const bfloat16* pixel) {
      std::memcpy(channels, pixel, sizeof(bfloat16) * dim);
      longest = larger(sum(load(channels) * load(channels)), longest);
    });
    longest_key = std::sqrt(longest);
    Vec least = width16::broadcast(table[0]), most = least;
    for (int i = 0; i < table_width * table_width; i += TILE_SIDE) {
      const Vec biases = width16::load(table + i);  // Past its end: 0, which does no harm.
      least = least < biases ? least : biases;
      most = width16::larger(most, biases);
    }
    lowest_bias = -width16::largest(-least);
    highest_bias = width16::largest(most);
  }

  // Has subtracted from a query's scores what none of them exceeds, |q| max |k| + max B, if that is
  // not so far from the largest that all weights could vanish, else the largest itself.
  void subtract_tops(const Queries* queries) {
    bool safe = true;
    for (int i = 0; i < QUERIES; ++i) {
      bfloat16* channels = q + i * TILE_DEPTH;
      const float product = std::sqrt(sum(load(channels) * load(channels))) * longest_key;
      const float excess = to_exponents * (2 * product + highest_bias - lowest_bias);
      safe = safe && excess <= width16::SAFE_EXCESS;
      tops[i] = product + highest_bias;
      channels[MASK] = bfloat16_of(1);
    }
    if (!safe) find_tops(queries);
    for (int i = 0; i < QUERIES; ++i) {
      const float top = truncate(-tops[i]), rest = truncate(-tops[i] - top);
      q[i * TILE_DEPTH + TOP] = bfloat16_of(top);
      q[i * TILE_DEPTH + TOP_REST] = bfloat16_of(rest);
      tops[i] = -(top + rest);
    }
  }

  void find_tops(const Queries* queries) {
    for (int i = 0; i < QUERIES; ++i) tops[i] = -INFINITY;
    for (int key = 0; key < keys; key += FORWARD_KEYS) {
      score(queries, q, k, key, FORWARD_KEYS, scores);
      for (int i = 0; i < QUERIES * FORWARD_KEYS; i += TILE_SIDE) {
        float& top = tops[i / FORWARD_KEYS];
        top = larger(width16::largest(width16::load(scores + i)), top);
      }
    }
  }

  // Makes `sums`, the weighted values, and `totals`, 16 parts of the weights' sum.
  void attend(const Queries* queries) {
    std::memset(totals, 0, sizeof(float) * QUERIES * TILE_SIDE);
    tile_zero<2>();
    tile_zero<3>();
    for (int key = 0; key < keys; key += FORWARD_KEYS) {
      score(queries, q, k, key, FORWARD_KEYS, scores);
      for (int i = 0; i < QUERIES; ++i) {
        Vec total = width16::load(totals + i * TILE_SIDE);
#pragma GCC unroll 4
        for (int j = i * FORWARD_KEYS; j < (i + 1) * FORWARD_KEYS; j += TILE_DEPTH) {
          const Vec first = exp2_roughly(width16::load(scores + j) * to_exponents);
          const Vec second = exp2_roughly(width16::load(scores + j + TILE_SIDE) * to_exponents);
          store(weights + j, first, second);
          total += first + second;
        }
        width16::store(totals + i * TILE_SIDE, total);
      }
      for (int j = 0; j < FORWARD_KEYS; j += TILE_DEPTH) {
        constexpr long row_bytes = sizeof(bfloat16) * FORWARD_KEYS;
        tile_load<6>(v + (key + j) * TILE_SIDE);
        tile_load<4>(weights + j, row_bytes);
        tile_load<5>(weights + TILE_SIDE * FORWARD_KEYS + j, row_bytes);
        tile_multiply<2, 4, 6>();
        tile_multiply<3, 5, 6>();
      }
    }
    tile_store<2>(sums);
    tile_store<3>(sums + TILE_SIDE * TILE_SIDE);
  }
};

// Gradients of q, k and v; that of the table is added to `grad_table`. The window lies in the image.
class TileBackward : TileWindow {
 public:
  TileBackward(int dim, const WindowOf<bfloat16>& k, const WindowOf<bfloat16>& v, const float* table)
      : TileWindow(k.size, dim, table),
        k(by_channels(k, true)),
        k_by_keys(by_keys(k)),
        v(by_channels(v, false)),
        q(scratch.array<bfloat16>(QUERIES * TILE_DEPTH)),
        q_turned(scratch.array<bfloat16>(TILE_VALUES)),
        grad_out(scratch.array<bfloat16>(QUERIES * TILE_DEPTH)),
        grad_out_turned(scratch.array<bfloat16>(TILE_VALUES)),
        weight_pairs(scratch.array<bfloat16>(QUERIES * BACKWARD_KEYS)),
        grad_score_pairs(scratch.array<bfloat16>(QUERIES * BACKWARD_KEYS)),
        grad_scores(scratch.array<bfloat16>(QUERIES * BACKWARD_KEYS)),
        scores(scratch.array<float>(QUERIES * BACKWARD_KEYS)),
        grad_weights(scratch.array<float>(QUERIES * BACKWARD_KEYS)),
        grad_q(scratch.array<float>(QUERIES * TILE_SIDE)),
        grad_k(scratch.array<float>(keys * TILE_SIDE)),
        grad_v(scratch.array<float>(keys * TILE_SIDE)),
        grad_table(padded_table()) {
    std::memset(grad_k, 0, sizeof(float) * keys * TILE_SIDE);
    std::memset(grad_v, 0, sizeof(float) * keys * TILE_SIDE);
  }

  void run(const WindowOf<bfloat16>& q_image, const WindowOf<bfloat16>& out_image,
           const float* log_sums, const WindowOf<bfloat16>& grad_out_image,
           const WindowOf<bfloat16>& grad_q_image, const WindowOf<bfloat16>& grad_k_image,
           const WindowOf<bfloat16>& grad_v_image, float* grad_table_sums) {
    const Vec scale = width16::broadcast(1 / std::sqrt(float(dim)));
    for_queries(window, window, [&](const Queries* queries) {
      pack(out_image, queries, q);
      pack(grad_out_image, queries, grad_out);
      for (int i = 0; i < QUERIES; ++i) {
        const Queries& tile = queries[i / TILE_SIDE];
        const int column = tile.column + i % TILE_SIDE;
        const bool real = i % TILE_SIDE < tile.count && !tile.repeated;
        deltas[i] = sum(load(q + i * TILE_DEPTH) * load(grad_out + i * TILE_DEPTH));
        this->log_sums[i] = real ? log_sums[tile.row * window + column] : 1e30f;  // No weight.
      }
      pack(q_image, queries, q);
      for (int i = 0; i < QUERIES; ++i) q[i * TILE_DEPTH + MASK] = bfloat16_of(1);
      turn(q, q_turned);
      turn(grad_out, grad_out_turned);
      add_gradients(queries);
      for (int i = 0; i < QUERIES; ++i) {
        const Queries& tile = queries[i / TILE_SIDE];
        const int column = tile.column + i % TILE_SIDE;
        if (i % TILE_SIDE < tile.count && !tile.repeated)
          write(width16::load(grad_q + i * TILE_SIDE) * scale, grad_q_image.pixel(tile.row, column));
      }
    });
    write_keys(grad_k, scale, grad_k_image);
    write_keys(grad_v, width16::broadcast(1), grad_v_image);
    for (int i = 0; i < table_width * table_width; ++i) grad_table_sums[i] += grad_table[i];
  }

 private:
  bfloat16 *k, *k_by_keys, *v, *q, *q_turned, *grad_out, *grad_out_turned;
  bfloat16 *weight_pairs, *grad_score_pairs, *grad_scores;  // Pairs of queries by keys; B tiles.
  float *scores, *grad_weights, *grad_q;
  float *grad_k, *grad_v;  // Tiles of 16 keys: channels by keys.
  float* grad_table;
  float deltas[QUERIES], log_sums[QUERIES];

  // An A tile of channels by queries, from tiles of queries by channels.
  static void turn(const bfloat16* from, bfloat16* to) {
    for (int d = 0; d < TILE_SIDE; ++d)
      for (int i = 0; i < QUERIES; ++i) to[d * QUERIES + i] = from[i * TILE_DEPTH + d];
  }

  void write_keys(const float* grads, Vec factor, const WindowOf<bfloat16>& image) const {
    for_keys(image, [&](int key, bfloat16* pixel) {
      float channels[TILE_SIDE];
      for (int d = 0; d < TILE_SIDE; ++d)
        channels[d] = grads[key / TILE_SIDE * TILE_SIDE * TILE_SIDE + d * TILE_SIDE + key % TILE_SIDE];
      write(width16::load(channels) * factor, pixel);
    });
  }

  void add_gradients(const Queries* queries) {
    tile_zero<2>();
    tile_zero<3>();
    for (int key = 0; key < keys; key += BACKWARD_KEYS) {
      score(queries, q, k, key, BACKWARD_KEYS, scores);
      multiply_by_values(key);
      differentiate(queries, key);
      add_to_keys(key);
      // grad_q += grad_scores k
      tile_load<6>(k_by_keys + key * TILE_SIDE);
      tile_load<4>(grad_scores);
      tile_load<5>(grad_scores + TILE_VALUES);
      tile_multiply<2, 4, 6>();
      tile_multiply<3, 5, 6>();
    }
    tile_store<2>(grad_q);
    tile_store<3>(grad_q + TILE_SIDE * TILE_SIDE);
  }

  // grad_weights = grad_out v^T
  void multiply_by_values(int key) const {
    constexpr long row_bytes = sizeof(float) * BACKWARD_KEYS;
    tile_load<0>(grad_out);
    tile_load<1>(grad_out + TILE_VALUES);
    for (int i = 0; i < BACKWARD_KEYS; i += TILE_SIDE) {
      tile_load<6>(v + (key + i) * TILE_DEPTH);
      tile_zero<4>();
      tile_zero<5>();
      tile_multiply<4, 0, 6>();
      tile_multiply<5, 1, 6>();
      tile_store<4>(grad_weights + i, row_bytes);
      tile_store<5>(grad_weights + TILE_SIDE * BACKWARD_KEYS + i, row_bytes);
    }
  }

  // Makes weights and gradients of scores from scores and gradients of weights, and adds the latter
  // to the table's.
  void differentiate(const Queries* queries, int key) {
    for (int i = 0; i < QUERIES; i += 2)
      for (int j = 0; j < BACKWARD_KEYS; j += TILE_SIDE) {
        const int row = (key + j) / padded_window, column = (key + j) % padded_window;
        const int offset = smaller(row, window - 1) * table_width + column;
        Vec weights[2], grads[2];
        for (int n = 0; n < 2; ++n) {
          const int place = (i + n) * BACKWARD_KEYS + j;
          const Vec exponents = width16::load(scores + place) * to_exponents - log_sums[i + n];
          weights[n] = exp2_roughly(exponents);
          grads[n] = weights[n] * (width16::load(grad_weights + place) - deltas[i + n]);
          store(grad_scores + place, grads[n]);
          const Queries& tile = queries[i / TILE_SIDE];
          float* to = grad_table + (tile.table - table) + offset - (i + n) % TILE_SIDE;
          width16::store(to, width16::load(to) + grads[n]);
        }
        const int place = j * QUERIES + i * TILE_SIDE;
        store_pairs(weight_pairs + place, weights[0], weights[1]);
        store_pairs(grad_score_pairs + place, grads[0], grads[1]);
      }
  }

  // Gradients of values and keys, channels by keys: turned grad_out times weights, and turned q times
  // gradients of scores.
  void add_to_keys(int key) {
    tile_load<0>(grad_out_turned);
    tile_load<1>(q_turned);
    for (int i = 0; i < BACKWARD_KEYS; i += TILE_SIDE) {
      float *to_v = grad_v + (key + i) * TILE_SIDE, *to_k = grad_k + (key + i) * TILE_SIDE;
      tile_load<4>(to_v);
      tile_load<6>(weight_pairs + i * QUERIES);
      tile_multiply<4, 0, 6>();
      tile_store<4>(to_v);
      tile_load<5>(to_k);
      tile_load<7>(grad_score_pairs + i * QUERIES);
      tile_multiply<5, 1, 7>();
      tile_store<5>(to_k);
    }
  }
};
