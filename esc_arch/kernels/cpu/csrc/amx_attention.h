// Window attention in bfloat16 on AMX, forward and backward; included after amx_window.h.

class TileForward : TileWindow {
 public:
  TileForward(Size dim, const HalfWindow& k, const HalfWindow& v, const float* table)
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

  // `out` (pixels, D), and `log_sums`, log2 of the sum of exponentials, (w * w), as far as the
  // window lies in the image.
  void run(const HalfWindow& q_image, const HalfWindow& out, float* log_sums) {
    for_queries(out.rows, out.columns, [&](const Queries* queries) {
      pack(q_image, queries, q);
      subtract_tops(queries);
      attend(queries);
      for (Size i = 0; i < QUERIES; ++i) {
        const Queries& tile = queries[i / TILE_SIDE];
        const Size column = tile.column + i % TILE_SIDE;
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

  void bound_scores(const HalfWindow& k_image) {
    float longest = 0;
    bfloat16 channels[TILE_SIDE] = {};
    for_keys(k_image, [&](Size, const bfloat16* pixel) {
      std::memcpy(channels, pixel, sizeof(bfloat16) * dim);
      longest = larger(sum(load(channels) * load(channels)), longest);
    });
    longest_key = sqrtf(longest);
    Vec least = width16::broadcast(table[0]), most = least;
    for (Size i = 0; i < table_width * table_width; i += TILE_SIDE) {
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
    for (Size i = 0; i < QUERIES; ++i) {
      bfloat16* channels = q + i * TILE_DEPTH;
      const float product = sqrtf(sum(load(channels) * load(channels))) * longest_key;
      const float excess = to_exponents * (2 * product + highest_bias - lowest_bias);
      safe = safe && excess <= SAFE_EXCESS;
      tops[i] = product + highest_bias;
      channels[MASK] = bfloat16_of(1);
    }
    if (!safe) find_tops(queries);
    for (Size i = 0; i < QUERIES; ++i) {
      const float top = truncate(-tops[i]), rest = truncate(-tops[i] - top);
      q[i * TILE_DEPTH + TOP] = bfloat16_of(top);
      q[i * TILE_DEPTH + TOP_REST] = bfloat16_of(rest);
      tops[i] = -(top + rest);
    }
  }

  void find_tops(const Queries* queries) {
    for (Size i = 0; i < QUERIES; ++i) tops[i] = -INFINITY;
    for (Size key = 0; key < keys; key += FORWARD_KEYS) {
      score(queries, q, k, key, FORWARD_KEYS, scores);
      for (Size i = 0; i < QUERIES * FORWARD_KEYS; i += TILE_SIDE) {
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
    for (Size key = 0; key < keys; key += FORWARD_KEYS) {
      score(queries, q, k, key, FORWARD_KEYS, scores);
      for (Size i = 0; i < QUERIES; ++i) {
        Vec total = width16::load(totals + i * TILE_SIDE);
        UNROLL(4)
        for (Size j = i * FORWARD_KEYS; j < (i + 1) * FORWARD_KEYS; j += TILE_DEPTH) {
          const Vec first = exp2_roughly(width16::load(scores + j) * to_exponents);
          const Vec second = exp2_roughly(width16::load(scores + j + TILE_SIDE) * to_exponents);
          store(weights + j, first, second);
          total += first + second;
        }
        width16::store(totals + i * TILE_SIDE, total);
      }
      for (Size j = 0; j < FORWARD_KEYS; j += TILE_DEPTH) {
        constexpr Size row_bytes = sizeof(bfloat16) * FORWARD_KEYS;
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

// Gradients of q, k and v; that of the table is added to `grad_table`. The window lies in the
// image.
class TileBackward : TileWindow {
 public:
  TileBackward(Size dim, const HalfWindow& k, const HalfWindow& v, const float* table)
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

  void run(const HalfWindow& q_image, const HalfWindow& out_image, const float* log_sums,
           const HalfWindow& grad_out_image, const HalfWindow& grad_q_image,
           const HalfWindow& grad_k_image, const HalfWindow& grad_v_image, float* grad_table_sums) {
    const Vec scale = width16::broadcast(1 / sqrtf(float(dim)));
    for_queries(window, window, [&](const Queries* queries) {
      pack(out_image, queries, q);
      pack(grad_out_image, queries, grad_out);
      for (Size i = 0; i < QUERIES; ++i) {
        const Queries& tile = queries[i / TILE_SIDE];
        const Size column = tile.column + i % TILE_SIDE;
        const bool real = i % TILE_SIDE < tile.count && !tile.repeated;
        deltas[i] = sum(load(q + i * TILE_DEPTH) * load(grad_out + i * TILE_DEPTH));
        this->log_sums[i] = real ? log_sums[tile.row * window + column] : 1e30f;  // No weight.
      }
      pack(q_image, queries, q);
      for (Size i = 0; i < QUERIES; ++i) q[i * TILE_DEPTH + MASK] = bfloat16_of(1);
      turn(q, q_turned);
      turn(grad_out, grad_out_turned);
      add_gradients(queries);
      for (Size i = 0; i < QUERIES; ++i) {
        const Queries& tile = queries[i / TILE_SIDE];
        const Size column = tile.column + i % TILE_SIDE;
        if (i % TILE_SIDE < tile.count && !tile.repeated)
          write(width16::load(grad_q + i * TILE_SIDE) * scale,
                grad_q_image.pixel(tile.row, column));
      }
    });
    write_keys(grad_k, scale, grad_k_image);
    write_keys(grad_v, width16::broadcast(1), grad_v_image);
    for (Size i = 0; i < table_width * table_width; ++i) grad_table_sums[i] += grad_table[i];
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
    for (Size d = 0; d < TILE_SIDE; ++d)
      for (Size i = 0; i < QUERIES; ++i) to[d * QUERIES + i] = from[i * TILE_DEPTH + d];
  }

  void write_keys(const float* grads, Vec factor, const HalfWindow& image) const {
    for_keys(image, [&](Size key, bfloat16* pixel) {
      float channels[TILE_SIDE];
      for (Size d = 0; d < TILE_SIDE; ++d)
        channels[d] =
            grads[key / TILE_SIDE * TILE_SIDE * TILE_SIDE + d * TILE_SIDE + key % TILE_SIDE];
      write(width16::load(channels) * factor, pixel);
    });
  }

  void add_gradients(const Queries* queries) {
    tile_zero<2>();
    tile_zero<3>();
    for (Size key = 0; key < keys; key += BACKWARD_KEYS) {
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
  void multiply_by_values(Size key) const {
    constexpr Size row_bytes = sizeof(float) * BACKWARD_KEYS;
    tile_load<0>(grad_out);
    tile_load<1>(grad_out + TILE_VALUES);
    for (Size i = 0; i < BACKWARD_KEYS; i += TILE_SIDE) {
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
  void differentiate(const Queries* queries, Size key) {
    for (Size i = 0; i < QUERIES; i += 2)
      for (Size j = 0; j < BACKWARD_KEYS; j += TILE_SIDE) {
        const Size row = (key + j) / padded_window, column = (key + j) % padded_window;
        const Size offset = smaller(row, window - 1) * table_width + column;
        Vec weights[2], grads[2];
        for (Size n = 0; n < 2; ++n) {
          const Size place = (i + n) * BACKWARD_KEYS + j;
          const Vec exponents = width16::load(scores + place) * to_exponents - log_sums[i + n];
          weights[n] = exp2_roughly(exponents);
          grads[n] = weights[n] * (width16::load(grad_weights + place) - deltas[i + n]);
          store(grad_scores + place, grads[n]);
          const Queries& tile = queries[i / TILE_SIDE];
          float* to = grad_table + (tile.table - table) + offset - (i + n) % TILE_SIDE;
          width16::store(to, width16::load(to) + grads[n]);
        }
        const Size place = j * QUERIES + i * TILE_SIDE;
        store_pairs(weight_pairs + place, weights[0], weights[1]);
        store_pairs(grad_score_pairs + place, grads[0], grads[1]);
      }
  }

  // Gradients of values and keys, channels by keys: turned grad_out times weights, and turned q
  // times gradients of scores.
  void add_to_keys(Size key) {
    tile_load<0>(grad_out_turned);
    tile_load<1>(q_turned);
    for (Size i = 0; i < BACKWARD_KEYS; i += TILE_SIDE) {
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

void attend(Size dim, const HalfWindow& q, const HalfWindow& k, const HalfWindow& v,
            const float* table, const HalfWindow& out, float* log_sums) {
  TileForward(dim, k, v, table).run(q, out, log_sums);
}

void attend_backward(Size dim, const HalfWindow& q, const HalfWindow& k, const HalfWindow& v,
                     const float* table, const HalfWindow& out, const float* log_sums,
                     const HalfWindow& grad_out, const HalfWindow& grad_q, const HalfWindow& grad_k,
                     const HalfWindow& grad_v, float* grad_table) {
  TileBackward(dim, k, v, table)
      .run(q, out, log_sums, grad_out, grad_q, grad_k, grad_v, grad_table);
}
