// Window attention in bfloat16 on AMX: see window_attention.h for what it computes, and how.
//
// A tile of scores starts as a tile of the table: one query to the right reads one float to the
// left, so its rows are 16 overlapping pieces of it, 4 bytes apart, backwards. Heads have up to 16
// channels. A product is 32 deep, so that more "channels" come for nothing: with queries (-top,
// -rest of top, 1) and keys (1, 1, mask) scores come out with what is subtracted and masked. They
// are q k^T + sqrt(D) B, so that nothing is rounded before it is multiplied.

constexpr Size TOP = TILE_SIDE, TOP_REST = TOP + 1, MASK = TOP + 2;
// Queries at a time: two tiles, each of which lies side by side in a row of the window.
constexpr Size QUERY_TILES = 2, QUERIES = QUERY_TILES * TILE_SIDE;
// Keys at a time: what fits L1.
constexpr Size FORWARD_KEYS = 64, BACKWARD_KEYS = 32;

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
  const Size window, padded_window, keys, table_width, dim;
  const float to_exponents;  // Times a score: what 2 is raised to.
  Scratch scratch;
  Tiles tiles;
  float* table;

  struct Queries {
    Size row, column, count;  // `count` of them are not padding.
    const float* table;       // Where it holds the bias of the first query and the first key.
    bool repeated;            // Whether this tile has been there, their number being odd.
  };

  TileWindow(Size window, Size dim, const float* table)
      : window(window),
        padded_window(round_up(window, TILE_SIDE)),
        keys(round_up(window * padded_window, FORWARD_KEYS)),
        table_width(2 * window - 1),
        dim(dim),
        to_exponents(LOG2_E / sqrtf(float(dim))),
        table(padded_table()) {
    const float factor = sqrtf(float(dim));
    for (Size i = 0; i < table_width * table_width; ++i) this->table[i] = table[i] * factor;
  }

  // A table of zeros, with room for tiles that reach past its ends.
  float* padded_table() {
    const Size margin = 2 * TILE_SIDE, size = table_width * table_width + 2 * margin;
    float* zeros = scratch.array<float>(size);
    std::memset(zeros, 0, sizeof(float) * size);
    return zeros + margin;
  }

  // Calls use(key, pixel) for the pixels of the window.
  template <class Use>
  void for_keys(const HalfWindow& image, const Use& use) const {
    for (Size row = 0; row < window; ++row)
      for (Size column = 0; column < window; ++column)
        use(row * padded_window + column, image.pixel(row, column));
  }

  // B tiles of 16 keys each: pairs of channels by keys. With what makes `TOP` and `MASK` work if
  // `extended`.
  bfloat16* by_channels(const HalfWindow& k, bool extended) {
    bfloat16* packed = scratch.array<bfloat16>(keys * TILE_DEPTH);
    const __m512i pairs = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i places = _mm512_slli_epi32(pairs, 4);
    bfloat16 channels[TILE_DEPTH] = {};
    const auto put = [&](Size key) {
      _mm512_i32scatter_epi32(packed + key / TILE_SIDE * TILE_VALUES + key % TILE_SIDE * 2, places,
                              *reinterpret_cast<const __m512i_u*>(channels), 4);
    };
    if (extended) {
      channels[TOP] = channels[TOP_REST] = bfloat16_of(1);
      channels[MASK] = bfloat16_of(-1e30f);
    }
    for (Size key = 0; key < keys; ++key) put(key);
    channels[MASK] = 0;
    for_keys(k, [&](Size key, const bfloat16* pixel) {
      std::memcpy(channels, pixel, sizeof(bfloat16) * dim);
      put(key);
    });
    return packed;
  }

  // B tiles of 32 keys each: pairs of keys by channels.
  bfloat16* by_keys(const HalfWindow& v) {
    bfloat16* packed = scratch.array<bfloat16>(keys * TILE_SIDE);
    std::memset(packed, 0, sizeof(bfloat16) * keys * TILE_SIDE);
    for_keys(v, [&](Size key, const bfloat16* pixel) {
      bfloat16* to = packed + key / 2 * TILE_DEPTH + key % 2;
      for (Size d = 0; d < dim; ++d) to[2 * d] = pixel[d];
    });
    return packed;
  }

  // Calls use(queries) for all that lie in the image, `rows` by `columns` of the window.
  template <class Use>
  void for_queries(Size rows, Size columns, const Use& use) const {
    const Size across = (columns + TILE_SIDE - 1) / TILE_SIDE, count = across * rows;
    for (Size first = 0; first < count; first += QUERY_TILES) {
      Queries queries[QUERY_TILES];
      for (Size i = 0; i < QUERY_TILES; ++i) {
        const Size tile = smaller(first + i, count - 1);
        const Size row = tile / across, column = tile % across * TILE_SIDE;
        queries[i] = {row, column, smaller(TILE_SIDE, columns - column),
                      table + (window - 1 - row) * table_width + window - 1 - column,
                      first + i != tile};
      }
      use(queries);
    }
  }

  // A tiles of their channels.
  void pack(const HalfWindow& image, const Queries* queries, bfloat16* to) const {
    std::memset(to, 0, sizeof(bfloat16) * QUERY_TILES * TILE_VALUES);
    for (Size i = 0; i < QUERY_TILES; ++i)
      for (Size j = 0; j < queries[i].count; ++j)
        std::memcpy(to + (i * TILE_SIDE + j) * TILE_DEPTH,
                    image.pixel(queries[i].row, queries[i].column + j), sizeof(bfloat16) * dim);
  }

  // Scores of the queries, packed in `q`, and `count` keys, packed by channels, (QUERIES, count).
  void score(const Queries* queries, const bfloat16* q, const bfloat16* k, Size key, Size count,
             float* scores) const {
    tile_load<0>(q);
    tile_load<1>(q + TILE_VALUES);
    for (Size i = 0; i < count; i += TILE_SIDE) {
      const Size row = (key + i) / padded_window, column = (key + i) % padded_window;
      const Size place = smaller(row, window - 1) * table_width + column;
      tile_load<6>(k + (key + i) * TILE_DEPTH);
      tile_load<4>(queries[0].table + place, -Size(sizeof(float)));
      tile_load<5>(queries[1].table + place, -Size(sizeof(float)));
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
