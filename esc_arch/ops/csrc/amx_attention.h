// Window attention in bfloat16 on AMX: see window_attention.h for what it computes, and how.
//
// A tile of scores starts as a tile of the table: one query to the right reads one float to the left,
// so its rows are 16 overlapping pieces of it, 4 bytes apart, backwards. Heads have up to 16
// channels. A product is 32 deep, so that more "channels" come for nothing: with queries (-top, -rest
// of top, 1) and keys (1, 1, mask) scores come out with what is subtracted and masked. They are q k^T +
// sqrt(D) B, so that nothing is rounded before it is multiplied.

constexpr int QUERY_TILES = 2, KEYS_AT_ONCE = 64;  // Two accumulators, and what fits L1.
constexpr int TOP = TILE_SIDE, TOP_REST = TOP + 1, MASK = TOP + 2;

// How a window lies in packed buffers: rows of pixels padded to whole tiles, keys to KEYS_AT_ONCE.
struct TileLayout {
  int window, padded_window, keys, table_width;

  explicit TileLayout(int window)
      : window(window),
        padded_window(round_up(window, TILE_SIDE)),
        keys(round_up(window * padded_window, KEYS_AT_ONCE)),
        table_width(2 * window - 1) {}
};

// Calls use(place, pixel) for the pixels of a window, `place` being that in its padded rows.
template <class Use>
void for_pixels(const TileLayout& at, const WindowOf<bfloat16>& window, int rows, int columns,
                const Use& use) {
  for (int row = 0; row < rows; ++row)
    for (int column = 0; column < columns; ++column)
      use(row * at.padded_window + column, window.pixel(row, column));
}

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

class TileAttention {
 public:
  TileAttention(int dim, const WindowOf<bfloat16>& k, const WindowOf<bfloat16>& v, const float* table)
      : at(k.size), dim(dim), to_exponents(LOG2_E / std::sqrt(float(dim))) {
    pack_table(table);
    pack_keys(k);
    pack_values(v);
    q_packed = bfloat16s(QUERY_TILES * TILE_VALUES);
    weights = bfloat16s(QUERY_TILES * TILE_SIDE * KEYS_AT_ONCE);
    scores = scratch.array<float>(QUERY_TILES * TILE_SIDE * KEYS_AT_ONCE);
    sums = scratch.array<float>(QUERY_TILES * TILE_SIDE * TILE_SIDE);
    totals = scratch.array<float>(QUERY_TILES * TILE_SIDE * TILE_SIDE);
  }

  // `out` (pixels, D), and `log_sums`, log2 of the sum of exponentials, (w * w), as far as the window
  // lies in the image.
  void forward(const WindowOf<bfloat16>& q, const WindowOf<bfloat16>& out, float* log_sums) {
    const int across = (q.columns + TILE_SIDE - 1) / TILE_SIDE, tiles = across * q.rows;
    for (int tile = 0; tile < tiles; tile += QUERY_TILES) {
      Queries queries[QUERY_TILES];
      for (int i = 0; i < QUERY_TILES; ++i) {
        // The last one repeats where their number is odd.
        const int number = smaller(tile + i, tiles - 1);
        queries[i].row = number / across;
        queries[i].column = number % across * TILE_SIDE;
        queries[i].table = table_packed + (at.window - 1 - queries[i].row) * at.table_width +
                           at.window - 1 - queries[i].column;
      }
      pack_queries(q, queries);
      attend(queries);
      for (int i = 0; i < QUERY_TILES; ++i) {
        const int count = smaller(TILE_SIDE, q.columns - queries[i].column);
        for (int j = 0; j < count; ++j) {
          const int place = (i * TILE_SIDE + j) * TILE_SIDE, row = queries[i].row;
          const int column = queries[i].column + j;
          const float total = sum(width16::load(totals + place));
          bfloat16 result[TILE_SIDE];
          store(result, width16::load(sums + place) / total);
          std::memcpy(out.pixel(row, column), result, sizeof(bfloat16) * dim);
          log_sums[row * q.columns + column] = queries[i].top[j] * to_exponents + log2f(total);
        }
      }
    }
  }

 private:
  // A tile of them, which lie side by side in a row of the window.
  struct Queries {
    int row, column;
    const float* table;  // Where it holds the bias of the first query and the first key.
    float top[TILE_SIDE];
  };

  const TileLayout at;
  const int dim;
  const float to_exponents;  // Times a score: what 2 is raised to.
  Scratch scratch;
  Tiles tiles;
  float *table_packed, *scores, *sums, *totals;
  bfloat16 *q_packed, *k_packed, *v_packed, *weights;
  float longest_key, lowest, highest;

  bfloat16* bfloat16s(int count) {
    return scratch.array<bfloat16>(count);
  }

  // The table, times sqrt(D), with room for tiles that reach past its ends.
  void pack_table(const float* table) {
    const int size = at.table_width * at.table_width, margin = 2 * TILE_SIDE;
    const int room = size + 2 * margin;
    table_packed = scratch.array<float>(room) + margin;
    std::memset(table_packed - margin, 0, sizeof(float) * room);
    for (int i = 0; i < size; ++i) table_packed[i] = table[i] * std::sqrt(float(dim));
    Vec least = width16::broadcast(table_packed[0]), most = least;
    for (int i = 0; i < size; i += TILE_SIDE) {
      const Vec biases = width16::load(table_packed + i);  // Past its end: 0, which does no harm.
      least = least < biases ? least : biases;
      most = width16::larger(most, biases);
    }
    lowest = -width16::largest(-least);
    highest = width16::largest(most);
  }

  // B tiles of 16 keys each: pairs of channels by keys.
  void pack_keys(const WindowOf<bfloat16>& k) {
    k_packed = bfloat16s(at.keys * TILE_DEPTH);
    const __m512i steps = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    bfloat16 channels[TILE_DEPTH] = {};
    channels[TOP] = channels[TOP_REST] = bfloat16_of(1);
    const auto put = [&](int key) {
      _mm512_i32scatter_epi32(
          k_packed + key / TILE_SIDE * TILE_VALUES + key % TILE_SIDE * 2,
          _mm512_slli_epi32(steps, 4), *reinterpret_cast<const __m512i_u*>(channels), 4);
    };
    channels[MASK] = bfloat16_of(-1e30f);
    for (int key = 0; key < at.keys; ++key) put(key);
    channels[MASK] = 0;
    float longest = 0;
    for_pixels(at, k, at.window, at.window, [&](int key, const bfloat16* pixel) {
      std::memcpy(channels, pixel, sizeof(bfloat16) * dim);
      put(key);
      longest = larger(sum(load(channels) * load(channels)), longest);
    });
    longest_key = std::sqrt(longest);
  }

  // B tiles of 32 keys each: pairs of keys by channels.
  void pack_values(const WindowOf<bfloat16>& v) {
    v_packed = bfloat16s(at.keys * TILE_SIDE);
    std::memset(v_packed, 0, sizeof(bfloat16) * at.keys * TILE_SIDE);
    for_pixels(at, v, at.window, at.window, [&](int key, const bfloat16* pixel) {
      bfloat16* to = v_packed + key / 2 * TILE_DEPTH + key % 2;
      for (int d = 0; d < dim; ++d) to[2 * d] = pixel[d];
    });
  }

  // A tiles, with what is subtracted from each query's scores: what none of them exceeds,
  // |q| max |k| + max B, if that is not so far from the largest that all weights could vanish, else
  // the largest itself.
  void pack_queries(const WindowOf<bfloat16>& q, Queries* queries) {
    std::memset(q_packed, 0, sizeof(bfloat16) * QUERY_TILES * TILE_VALUES);
    bool safe = true;
    for (int i = 0; i < QUERY_TILES; ++i) {
      const int count = smaller(TILE_SIDE, q.columns - queries[i].column);
      for (int j = 0; j < TILE_SIDE; ++j) {
        bfloat16* to = q_packed + (i * TILE_SIDE + j) * TILE_DEPTH;
        if (j < count)
          std::memcpy(to, q.pixel(queries[i].row, queries[i].column + j), sizeof(bfloat16) * dim);
        const float product = std::sqrt(sum(load(to) * load(to))) * longest_key;
        safe = safe && to_exponents * (2 * product + highest - lowest) <= width16::SAFE_EXCESS;
        queries[i].top[j] = product + highest;
      }
    }
    for (int i = 0; i < QUERY_TILES; ++i)
      for (int j = 0; j < TILE_SIDE; ++j)
        q_packed[(i * TILE_SIDE + j) * TILE_DEPTH + MASK] = bfloat16_of(1);
    if (!safe) find_tops(queries);
    for (int i = 0; i < QUERY_TILES; ++i)
      for (int j = 0; j < TILE_SIDE; ++j) {
        bfloat16* to = q_packed + (i * TILE_SIDE + j) * TILE_DEPTH;
        const float top = truncate(-queries[i].top[j]), rest = truncate(-queries[i].top[j] - top);
        to[TOP] = bfloat16_of(top);
        to[TOP_REST] = bfloat16_of(rest);
        queries[i].top[j] = -(top + rest);
      }
  }

  void find_tops(Queries* queries) {
    for (int i = 0; i < QUERY_TILES; ++i)
      for (int j = 0; j < TILE_SIDE; ++j) queries[i].top[j] = -INFINITY;
    for (int key = 0; key < at.keys; key += KEYS_AT_ONCE) {
      score(queries, key);
      for (int i = 0; i < QUERY_TILES; ++i)
        for (int j = 0; j < TILE_SIDE; ++j)
          for (int n = 0; n < KEYS_AT_ONCE; n += TILE_SIDE)
            queries[i].top[j] = larger(
                width16::largest(width16::load(scores + (i * TILE_SIDE + j) * KEYS_AT_ONCE + n)),
                queries[i].top[j]);
    }
  }

  // Scores of all queries and KEYS_AT_ONCE keys.
  void score(const Queries* queries, int key) {
    tile_load<0>(q_packed);
    tile_load<1>(q_packed + TILE_VALUES);
    for (int i = 0; i < KEYS_AT_ONCE; i += TILE_SIDE) {
      const int row = (key + i) / at.padded_window, column = (key + i) % at.padded_window;
      const int place = smaller(row, at.window - 1) * at.table_width + column;
      tile_load<6>(k_packed + (key + i) * TILE_DEPTH);
      tile_load<4>(queries[0].table + place, -long(sizeof(float)));
      tile_load<5>(queries[1].table + place, -long(sizeof(float)));
      tile_multiply<4, 0, 6>();
      tile_multiply<5, 1, 6>();
      tile_store<4>(scores + i, sizeof(float) * KEYS_AT_ONCE);
      tile_store<5>(scores + TILE_SIDE * KEYS_AT_ONCE + i, sizeof(float) * KEYS_AT_ONCE);
    }
  }

  // Makes `sums`, the weighted values, and `totals`, 16 parts of the weights' sum.
  void attend(const Queries* queries) {
    constexpr int ROWS = QUERY_TILES * TILE_SIDE;
    std::memset(totals, 0, sizeof(float) * ROWS * TILE_SIDE);
    tile_zero<2>();
    tile_zero<3>();
    for (int key = 0; key < at.keys; key += KEYS_AT_ONCE) {
      score(queries, key);
      for (int i = 0; i < ROWS; ++i) {
        Vec total = width16::load(totals + i * TILE_SIDE);
#pragma GCC unroll 4
        for (int j = 0; j < KEYS_AT_ONCE; j += TILE_DEPTH) {
          const float* from = scores + i * KEYS_AT_ONCE + j;
          const Vec first = exp2_roughly(width16::load(from) * to_exponents);
          const Vec second = exp2_roughly(width16::load(from + TILE_SIDE) * to_exponents);
          store(weights + i * KEYS_AT_ONCE + j, first, second);
          total += first + second;
        }
        width16::store(totals + i * TILE_SIDE, total);
      }
      for (int j = 0; j < KEYS_AT_ONCE; j += TILE_DEPTH) {
        const long row_bytes = sizeof(bfloat16) * KEYS_AT_ONCE;
        tile_load<6>(v_packed + (key + j) * TILE_SIDE);
        tile_load<4>(weights + j, row_bytes);
        tile_load<5>(weights + TILE_SIDE * KEYS_AT_ONCE + j, row_bytes);
        tile_multiply<2, 4, 6>();
        tile_multiply<3, 5, 6>();
      }
    }
    tile_store<2>(sums);
    tile_store<3>(sums + TILE_SIDE * TILE_SIDE);
  }
};
