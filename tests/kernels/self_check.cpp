// A program of the kernels alone, for processors that are emulated: compares each with loops in
// double, in several threads, and gradients with differences of these loops' results.

#include <cmath>
#include <cstdio>
#include <functional>

#include "api.cpp"

typedef std::vector<float> Floats;
typedef std::vector<double> Doubles;

bool failed = false;

Floats random(Size count) {
  static std::uint32_t state = 1;
  Floats values(count);
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    value = float(state >> 8) / (1 << 23) - 1;
  }
  return values;
}
Doubles wide(const Floats& values) { return Doubles(values.begin(), values.end()); }

void expect(const char* what, int width, double error, double limit) {
  std::printf("%-28s width %2d  error %.1e\n", what, width, error);
  if (!(error < limit)) failed = true;
}
template <class Values>
double relative_error(const Values& values, const Doubles& expected) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    difference += (values[i] - expected[i]) * (values[i] - expected[i]);
    size += expected[i] * expected[i];
  }
  return values.size() < expected.size() ? INFINITY : std::sqrt(difference / size);
}

// Compares gradients of sum(weights * function(inputs)) with differences along a random direction.
void expect_gradients(const char* what, int width, const std::vector<Floats>& inputs,
                      const std::vector<Floats>& gradients, const Floats& weights,
                      const std::function<Doubles(const std::vector<Doubles>&)>& function) {
  double worst = 0;
  for (std::size_t which = 0; which < inputs.size(); ++which) {
    const Floats direction = random(inputs[which].size());
    double slope = 0, size = 0, sides[2];
    for (std::size_t i = 0; i < direction.size(); ++i) {
      slope += double(direction[i]) * gradients[which][i];
      size += std::abs(double(direction[i]) * gradients[which][i]);
    }
    for (int side = 0; side < 2; ++side) {
      std::vector<Doubles> moved;
      for (const Floats& input : inputs) moved.push_back(wide(input));
      for (std::size_t i = 0; i < direction.size(); ++i)
        moved[which][i] += (side ? 1e-5 : -1e-5) * direction[i];
      const Doubles values = function(moved);
      sides[side] = 0;
      for (std::size_t i = 0; i < values.size(); ++i) sides[side] += weights[i] * values[i];
    }
    worst = larger(worst, std::abs((sides[1] - sides[0]) / 2e-5 - slope) / size);
  }
  expect(what, width, worst, 1e-5);
}

constexpr int THREADS = 3;

// Images (B, H, W, C) as a tensor (B, C, H, W).
EscTensor tensor_of(Floats& values, Size height, Size width, Size channels) {
  return {values.data(), {height * width * channels, 1, width * channels, channels}};
}
double at(const Doubles& x, Size height, Size width, Size channels, Size b, Size y, Size xx,
          Size c) {
  const bool inside = y >= 0 && y < height && xx >= 0 && xx < width;
  return inside ? x[((b * height + y) * width + xx) * channels + c] : 0;
}

void check_attention(int vector_width) {
  constexpr Size B = 2, HEADS = 2, D = 5, W = 7, SIDE = 14, C = HEADS * D, TABLE = 13 * 13;
  const Size count = B * SIDE * SIDE * C;
  std::vector<Floats> inputs = {random(count), random(count), random(count), random(HEADS * TABLE)};
  for (float& value : inputs[0]) value *= 3;
  const auto formula = [&](const std::vector<Doubles>& in) {
    Doubles out(count);
    for (Size b = 0; b < B; ++b)
      for (Size head = 0; head < HEADS; ++head)
        for (Size query = 0; query < SIDE * SIDE; ++query) {
          const Size y = query / SIDE, x = query % SIDE;
          const auto place = [&](Size row, Size column, Size d) {
            return ((b * SIDE + row) * SIDE + column) * C + head * D + d;
          };
          double total = 0;
          Doubles sums(D);
          for (Size key = 0; key < W * W; ++key) {
            const Size row = y / W * W + key / W, column = x / W * W + key % W;
            double score = in[3][head * TABLE + (row - y + W - 1) * 13 + column - x + W - 1];
            for (Size d = 0; d < D; ++d)
              score += in[0][place(y, x, d)] * in[1][place(row, column, d)] / std::sqrt(double(D));
            total += std::exp(score);
            for (Size d = 0; d < D; ++d) sums[d] += std::exp(score) * in[2][place(row, column, d)];
          }
          for (Size d = 0; d < D; ++d) out[place(y, x, d)] = sums[d] / total;
        }
    return out;
  };
  Floats out(count), log_sums(B * HEADS * SIDE * SIDE), weights = random(count);
  std::vector<Floats> gradients(3, Floats(count));
  gradients.push_back(Floats(HEADS * (TABLE + 16)));
  const EscWindows windows = {B, HEADS, D, SIDE, SIDE, W};
  const auto of = [&](Floats& values) { return tensor_of(values, SIDE, SIDE, C); };
  const EscTensor q = of(inputs[0]), k = of(inputs[1]), v = of(inputs[2]), result = of(out);
  const EscTensor grad_out = of(weights), grad_q = of(gradients[0]), grad_k = of(gradients[1]),
                  grad_v = of(gradients[2]);
  esc_window_attention_forward(vector_width, THREADS, &windows, &q, &k, &v, inputs[3].data(),
                               &result, log_sums.data());
  expect("attention", vector_width,
         relative_error(
             out, formula({wide(inputs[0]), wide(inputs[1]), wide(inputs[2]), wide(inputs[3])})),
         2e-6);
  esc_window_attention_backward(vector_width, THREADS, &windows, &q, &k, &v, inputs[3].data(),
                                &result, log_sums.data(), &grad_out, &grad_q, &grad_k, &grad_v,
                                gradients[3].data());
  Floats& table = gradients[3];
  table.erase(table.begin() + TABLE, table.begin() + TABLE + 16);
  expect_gradients("attention's gradients", vector_width, inputs, gradients, weights, formula);
}

void check_convolution(int vector_width) {
  constexpr Size B = 2, C = 6, H = 19, W = 11, K = 5, TAPS = 6;
  std::vector<Floats> inputs = {random(B * H * W * C), random(TAPS * C * C), random(B * C * 9)};
  const auto formula = [&](const std::vector<Doubles>& in) {
    Doubles out(B * H * W * C);
    for (Size place = 0; place < B * H * W * C; ++place) {
      const Size c = place % C, x = place / C % W, y = place / C / W % H, b = place / C / W / H;
      for (Size dy = -K / 2; dy <= K / 2; ++dy)
        for (Size dx = -K / 2; dx <= K / 2; ++dx) {
          const Size e = smaller(std::abs(dy), std::abs(dx)),
                     d = larger(std::abs(dy), std::abs(dx));
          const Size tap = e * 3 - e * (e - 1) / 2 + d - e;
          for (Size from = 0; from < C; ++from)
            out[place] +=
                in[1][(tap * C + from) * C + c] * at(in[0], H, W, C, b, y + dy, x + dx, from);
          if (d <= 1)
            out[place] += in[2][(b * C + c) * 9 + (dy + 1) * 3 + dx + 1] *
                          at(in[0], H, W, C, b, y + dy, x + dx, c);
        }
    }
    return out;
  };
  Floats out(B * H * W * C), weights = random(B * H * W * C);
  std::vector<Floats> gradients = {Floats(TAPS * C * C), Floats(B * C * 9)};
  const EscTiles tiles = {B, C, H, W, 4, 8};
  const EscTensor x = tensor_of(inputs[0], H, W, C), result = tensor_of(out, H, W, C),
                  grad_out = tensor_of(weights, H, W, C);
  esc_convolve(vector_width, THREADS, K, &tiles, &x, inputs[1].data(), inputs[2].data(), &result);
  expect("convolution", vector_width,
         relative_error(out, formula({wide(inputs[0]), wide(inputs[1]), wide(inputs[2])})), 2e-6);
  esc_convolve_backward(vector_width, THREADS, K, &tiles, &x, &grad_out, gradients[0].data(),
                        gradients[1].data());
  expect_gradients("convolution's gradients", vector_width, {inputs[1], inputs[2]}, gradients,
                   weights, [&](const std::vector<Doubles>& in) {
                     return formula({wide(inputs[0]), in[0], in[1]});
                   });

  Doubles depthwise(B * H * W * C);  // Taps of 0 leave each image's own kernels.
  depthwise = formula({wide(inputs[0]), Doubles(TAPS * C * C), wide(inputs[2])});
  esc_convolve_depthwise(vector_width, THREADS, 3, &tiles, &x, inputs[2].data(), &result);
  expect("depthwise convolution", vector_width, relative_error(out, depthwise), 2e-6);
  Floats own(B * C * 9);
  esc_convolve_depthwise_backward(vector_width, THREADS, 3, &tiles, &x, &grad_out, own.data());
  expect("its gradients", vector_width, relative_error(own, wide(gradients[1])), 2e-6);
}

void check_conv_ffn(int vector_width) {
  constexpr Size B = 2, C = 16, HIDDEN = 32, H = 9, W = 13, K = 3;
  // x, proj, proj_bias, dwc, dwc_bias, aggr, aggr_bias
  std::vector<Floats> inputs = {
      random(B * H * W * C), random(C * HIDDEN), random(HIDDEN), random(K * K * HIDDEN),
      random(HIDDEN),        random(HIDDEN * C), random(C)};
  const auto gelu = [](double x) { return x / 2 * (1 + std::erf(x / std::sqrt(2.))); };
  const auto formula = [&](const std::vector<Doubles>& in) {
    Doubles hidden(B * H * W * HIDDEN), out(B * H * W * C);
    for (Size i = 0; i < B * H * W * HIDDEN; ++i) {
      double sum = in[2][i % HIDDEN];
      for (Size c = 0; c < C; ++c)
        sum += in[0][i / HIDDEN * C + c] * in[1][c * HIDDEN + i % HIDDEN];
      hidden[i] = gelu(sum);
    }
    for (Size pixel = 0; pixel < B * H * W; ++pixel) {
      const Size x = pixel % W, y = pixel / W % H, b = pixel / W / H;
      for (Size c = 0; c < C; ++c) out[pixel * C + c] = in[6][c];
      for (Size h = 0; h < HIDDEN; ++h) {
        double sum = in[4][h];
        for (Size tap = 0; tap < K * K; ++tap)
          sum += in[3][tap * HIDDEN + h] *
                 at(hidden, H, W, HIDDEN, b, y + tap / K - 1, x + tap % K - 1, h);
        const double mixed = hidden[pixel * HIDDEN + h] + gelu(sum);
        for (Size c = 0; c < C; ++c) out[pixel * C + c] += mixed * in[5][h * C + c];
      }
    }
    return out;
  };
  const auto turned = [](const Floats& matrix, Size rows, Size columns) {
    Floats out(matrix.size());
    for (Size i = 0; i < rows * columns; ++i) out[i % columns * rows + i / columns] = matrix[i];
    return out;
  };
  const Floats proj_turned = turned(inputs[1], C, HIDDEN),
               aggr_turned = turned(inputs[5], HIDDEN, C);
  Floats dwc_turned(K * K * HIDDEN);
  for (Size i = 0; i < K * K * HIDDEN; ++i)
    dwc_turned[i] = inputs[3][(K * K - 1 - i / HIDDEN) * HIDDEN + i % HIDDEN];
  const EscConvFfn ffn = {inputs[1].data(),
                          inputs[2].data(),
                          inputs[3].data(),
                          inputs[4].data(),
                          inputs[5].data(),
                          inputs[6].data(),
                          proj_turned.data(),
                          dwc_turned.data(),
                          aggr_turned.data(),
                          nullptr,
                          nullptr,
                          HIDDEN,
                          K};
  Floats out(B * H * W * C), weights = random(B * H * W * C);
  std::vector<Floats> gradients = {Floats(B * H * W * C)};
  const EscTiles tiles = {B, C, H, W, 4, 8};
  const EscTensor x = tensor_of(inputs[0], H, W, C), result = tensor_of(out, H, W, C),
                  grad_out = tensor_of(weights, H, W, C), grad_x = tensor_of(gradients[0], H, W, C);
  esc_conv_ffn(vector_width, THREADS, &tiles, &x, &ffn, &result);
  std::vector<Doubles> in;
  for (const Floats& input : inputs) in.push_back(wide(input));
  expect("ConvFFN", vector_width, relative_error(out, formula(in)), 2e-6);
  Floats sums;
  for (std::size_t i = 1; i < inputs.size(); ++i) sums.resize(sums.size() + inputs[i].size());
  esc_conv_ffn_backward(vector_width, THREADS, &tiles, &x, &ffn, &grad_out, &grad_x, sums.data());
  auto from = sums.begin();
  for (std::size_t i = 1; i < inputs.size(); from += inputs[i++].size())
    gradients.push_back(Floats(from, from + inputs[i].size()));
  expect_gradients("ConvFFN's gradients", vector_width, inputs, gradients, weights, formula);
}

int main() {
  for (int width = 4; width <= esc_widest(); width *= 2) {
    check_attention(width);
    check_convolution(width);
    check_conv_ffn(width);
  }
  std::puts(failed ? "FAILED" : "all is well");
  return failed;
}
