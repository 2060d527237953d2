// The networks' own operations on the CPU: what esc_arch/kernels/cpu/library.py calls.
//
// Plain functions on pointers and strides. Tasks (windows and heads, or tiles of images) are shared
// out among OpenMP's threads, which are torch's own where both use one runtime. The same source is
// compiled for several instruction sets, and the best that the machine has is chosen when it runs.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define HAS_WIDER
#include <immintrin.h>
#endif

#if defined(HAS_WIDER) && defined(__linux__) && __GNUC__ >= 11
#define HAS_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr float LOG2_E = 1.44269504f;
typedef std::uint16_t bfloat16;  // Its bits.

// One image of a batch in channels_last: the channels of a pixel lie side by side.
template <class Value>
struct ImageOf {
  Value* data;
  long row_stride, pixel_stride;
  int height, width, channels;
  Value* pixel(int row, int column) const { return data + row * row_stride + column * pixel_stride; }
};
using Image = ImageOf<float>;

// Part of an image that one task computes.
struct Tile {
  int row, row_end, column, column_end;
};

template <class Number>
Number smaller(Number a, Number b) {
  return a < b ? a : b;
}
template <class Number>
Number larger(Number a, Number b) {
  return a > b ? a : b;
}
inline int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

// A pixel of an image that is continued beyond its end by reflection, again and again.
inline int reflect(int position, int size) {
  if (position < size) return position;
  if (size == 1) return 0;
  position %= 2 * (size - 1);
  return position < size ? position : 2 * (size - 1) - position;
}

// One window of one head's channels; `rows` and `columns` of it lie in the image, the others in its
// padding by reflection.
template <class Value>
struct WindowOf {
  Value* data;
  long dim_stride, row_stride, column_stride;
  int size, rows, columns, row, column, height, width;

  Value* pixel(int y, int x) const {
    return data + reflect(row + y, height) * row_stride + reflect(column + x, width) * column_stride;
  }
  Value& operator()(int y, int x, int d) const { return pixel(y, x)[d * dim_stride]; }
};
using Window = WindowOf<float>;

// While this lives, numbers below 1e-38 are zero: weights that small do not count, but a processor
// takes a hundred times as long for each.
class TinyIsZero {
 public:
#ifdef HAS_WIDER
  TinyIsZero() : before(_mm_getcsr()) { _mm_setcsr(before | FLUSH | READ_AS_ZERO); }
  ~TinyIsZero() { _mm_setcsr(before); }

 private:
  static constexpr unsigned FLUSH = 0x8000, READ_AS_ZERO = 0x0040;
  const unsigned before;
#endif
};

// Calls work(task, thread) for all tasks; which thread does which is always the same, so that sums
// by thread are.
template <class Work>
void share_out(int threads, long tasks, const Work& work) {
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long task = 0; task < tasks; ++task) {
    const TinyIsZero tiny_is_zero;
    work(task, omp_get_thread_num());
  }
#else
  const TinyIsZero tiny_is_zero;
  for (long task = 0; task < tasks; ++task) work(task, 0);
#endif
}

// Aligned memory that lives as long as this.
class Scratch {
 public:
  template <class Value>
  Value* array(long count) {
    return static_cast<Value*>(bytes(sizeof(Value) * count));
  }

 private:
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::vector<std::unique_ptr<void, Free>> memory;

  void* bytes(std::size_t count) {
    memory.emplace_back(std::aligned_alloc(64, (count + 63) / 64 * 64));
    return memory.back().get();
  }
};

// Weights of a ConvFFN, its hidden channels padded by zeros to a multiple of 16; "turned" is what the
// gradient of what came in is made with.
struct EscConvFfn {
  const float *proj, *proj_bias;  // (C, hidden), (hidden)
  const float *dwc, *dwc_bias;    // (K, K, hidden), (hidden)
  const float *aggr, *aggr_bias;  // (hidden, C), (C)
  const float *proj_turned, *dwc_turned, *aggr_turned;  // (hidden, C), (K, K, hidden), (C, hidden)
  const bfloat16 *proj_tiles, *aggr_tiles;              // See amx_conv_ffn.h.
  int hidden, kernel_size;
};

#include "ring.h"

namespace width4 {
#define WIDTH 4
#include "vectors.h"
#include "window_attention.h"
#include "depthwise.h"
#include "large_kernel.h"
#include "conv_ffn.h"
#undef WIDTH
}  // namespace width4

#ifdef HAS_WIDER
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace width8 {
#define WIDTH 8
#include "vectors.h"
#include "window_attention.h"
#include "depthwise.h"
#include "large_kernel.h"
#include "conv_ffn.h"
#undef WIDTH
}  // namespace width8
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma,prefer-vector-width=512")
namespace width16 {
#define WIDTH 16
#include "vectors.h"
#include "window_attention.h"
#include "depthwise.h"
#include "large_kernel.h"
#include "conv_ffn.h"
#undef WIDTH
}  // namespace width16
#pragma GCC pop_options
#endif

#ifdef HAS_AMX
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,fma,prefer-vector-width=512")
namespace amx {
#include "amx.h"
#include "amx_attention.h"
#include "amx_conv_attn.h"
#include "amx_conv_ffn.h"
}  // namespace amx
#pragma GCC pop_options
#endif

}  // namespace

// One of a function's versions.
#ifdef HAS_WIDER
#define BEST(width, function) \
  (width == 16 ? width16::function : width == 8 ? width8::function : width4::function)
#else
#define BEST(width, function) width4::function
#endif

// A tensor of four dimensions and its strides in elements.
struct EscTensor {
  void* data;
  long strides[4];
};

// Feature maps (B, heads * D, H, W), cut into windows.
struct EscWindows {
  int batch, heads, dim, height, width, size;

  int rows() const { return (height + size - 1) / size; }
  int columns() const { return (width + size - 1) / size; }
  long count() const { return long(batch) * rows() * columns() * heads; }
  int head(long task) const { return task % heads; }
  template <class Value = float>
  WindowOf<Value> of(const EscTensor& tensor, long task) const {
    const long window = task / heads;
    const int row = window / columns() % rows() * size, column = window % columns() * size;
    Value* data = static_cast<Value*>(tensor.data) +
                  window / columns() / rows() * tensor.strides[0] +
                  head(task) * dim * tensor.strides[1];
    return {data, tensor.strides[1], tensor.strides[2], tensor.strides[3], size,
            smaller(size, height - row), smaller(size, width - column), row, column, height, width};
  }
};

// A batch of images (B, C, H, W), cut into tiles.
struct EscTiles {
  int batch, channels, height, width, tile_height, tile_width;

  int rows() const { return (height + tile_height - 1) / tile_height; }
  int columns() const { return (width + tile_width - 1) / tile_width; }
  long count() const { return long(batch) * rows() * columns(); }
  int image(long task) const { return task / (rows() * columns()); }
  template <class Value = float>
  ImageOf<Value> image_of(const EscTensor& tensor, long task) const {
    Value* data = static_cast<Value*>(tensor.data) + image(task) * tensor.strides[0];
    return {data, tensor.strides[2], tensor.strides[3], height, width, channels};
  }
  Tile tile(long task) const {
    const int row = task / columns() % rows() * tile_height;
    const int column = task % columns() * tile_width;
    return {row, smaller(row + tile_height, height), column, smaller(column + tile_width, width)};
  }
};

extern "C" {

// Floats in a vector of the best instruction set that this machine has.
int esc_widest() {
#ifdef HAS_WIDER
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    return 16;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 8;
#endif
  return 4;
}

// Whether the functions in bfloat16, esc_amx_..., can run.
int esc_amx_is_usable() {
#ifdef HAS_AMX
  return amx::amx_is_usable();
#else
  return false;
#endif
}

// `table` is (heads, (2 w - 1)^2), `log_sums` (B, windows, heads, w * w).
void esc_window_attention_forward(int width, int threads, const EscWindows* windows,
                                  const EscTensor* q, const EscTensor* k, const EscTensor* v,
                                  const float* table, const EscTensor* out, float* log_sums) {
  auto* forward = BEST(width, forward);
  const long pixels = long(windows->size) * windows->size;
  const long table_size = (2L * windows->size - 1) * (2 * windows->size - 1);
  share_out(threads, windows->count(), [&](long task, int) {
    forward(windows->dim, windows->of(*q, task), windows->of(*k, task), windows->of(*v, task),
            table + windows->head(task) * table_size, windows->of(*out, task),
            log_sums + task * pixels);
  });
}

// The same in bfloat16 but for `table` and `log_sums`; heads have up to 16 channels, side by side.
void esc_amx_window_attention_forward(int threads, const EscWindows* windows, const EscTensor* q,
                                      const EscTensor* k, const EscTensor* v, const float* table,
                                      const EscTensor* out, float* log_sums) {
#ifdef HAS_AMX
  const long pixels = long(windows->size) * windows->size;
  const long table_size = (2L * windows->size - 1) * (2 * windows->size - 1);
  share_out(threads, windows->count(), [&](long task, int) {
    amx::TileForward forward(windows->dim, windows->of<bfloat16>(*k, task),
                             windows->of<bfloat16>(*v, task),
                             table + windows->head(task) * table_size);
    forward.run(windows->of<bfloat16>(*q, task), windows->of<bfloat16>(*out, task),
                log_sums + task * pixels);
  });
#endif
}

// Windows must be whole. `grad_tables` is (threads, heads, (2 w - 1)^2 + 16); what is past a table's
// end gets zeros.
void esc_window_attention_backward(int width, int threads, const EscWindows* windows,
                                   const EscTensor* q, const EscTensor* k, const EscTensor* v,
                                   const float* table, const EscTensor* out, const float* log_sums,
                                   const EscTensor* grad_out, const EscTensor* grad_q,
                                   const EscTensor* grad_k, const EscTensor* grad_v,
                                   float* grad_tables) {
  auto* backward = BEST(width, backward);
  const long pixels = long(windows->size) * windows->size;
  const long table_size = (2L * windows->size - 1) * (2 * windows->size - 1);
  share_out(threads, windows->count(), [&](long task, int thread) {
    const int head = windows->head(task);
    backward(windows->dim, windows->of(*q, task), windows->of(*k, task), windows->of(*v, task),
             table + head * table_size, windows->of(*out, task), log_sums + task * pixels,
             windows->of(*grad_out, task), windows->of(*grad_q, task), windows->of(*grad_k, task),
             windows->of(*grad_v, task),
             grad_tables + (long(thread) * windows->heads + head) * (table_size + 16));
  });
}

// The same in bfloat16 but for `table`, `log_sums` and `grad_tables`.
void esc_amx_window_attention_backward(int threads, const EscWindows* windows, const EscTensor* q,
                                       const EscTensor* k, const EscTensor* v, const float* table,
                                       const EscTensor* out, const float* log_sums,
                                       const EscTensor* grad_out, const EscTensor* grad_q,
                                       const EscTensor* grad_k, const EscTensor* grad_v,
                                       float* grad_tables) {
#ifdef HAS_AMX
  const long pixels = long(windows->size) * windows->size;
  const long table_size = (2L * windows->size - 1) * (2 * windows->size - 1);
  share_out(threads, windows->count(), [&](long task, int thread) {
    const int head = windows->head(task);
    const auto of = [&](const EscTensor* tensor) { return windows->of<bfloat16>(*tensor, task); };
    amx::TileBackward backward(windows->dim, of(k), of(v), table + head * table_size);
    backward.run(of(q), of(out), log_sums + task * pixels, of(grad_out), of(grad_q), of(grad_k),
                 of(grad_v),
                 grad_tables + (long(thread) * windows->heads + head) * (table_size + 16));
  });
#endif
}

// `taps` is (taps, C in, C out), `kernels` (B, C, 3, 3).
void esc_convolve(int width, int threads, int kernel_size, const EscTiles* tiles,
                  const EscTensor* x, const float* taps, const float* kernels,
                  const EscTensor* out) {
  auto* convolve = BEST(width, convolve);
  share_out(threads, tiles->count(), [&](long task, int) {
    const int image = tiles->image(task);
    convolve(kernel_size, tiles->image_of(*x, task), tiles->tile(task), taps,
             kernels + image * 9L * tiles->channels, tiles->image_of(*out, task));
  });
}

// `taps` is (taps, convolved, convolved), `kernels` (B, convolved, 3, 3), `aggr` (C in, C out) with C
// a multiple of 16.
void esc_conv_attn(int width, int threads, int kernel_size, const EscTiles* tiles,
                   const EscTensor* x, int convolved, const float* taps, const float* kernels,
                   const float* aggr, const float* aggr_bias, const EscTensor* skip,
                   const EscTensor* out) {
  auto* conv_attn = BEST(width, conv_attn);
  share_out(threads, tiles->count(), [&](long task, int) {
    conv_attn(kernel_size, convolved, tiles->image_of(*x, task), tiles->tile(task), taps,
              kernels + tiles->image(task) * 9L * convolved, aggr, aggr_bias,
              tiles->image_of(*skip, task), tiles->image_of(*out, task));
  });
}

// All of ConvAttn in bfloat16, see amx_conv_attn.h; `taps` is (B, ...).
void esc_amx_conv_attn(int threads, int kernel_size, const EscTiles* tiles, const EscTensor* x,
                       const bfloat16* taps, const bfloat16* aggr, const float* aggr_bias,
                       const EscTensor* skip, const EscTensor* out) {
#ifdef HAS_AMX
  const long kernel = long(kernel_size) * ((kernel_size + 1) / 2) * amx::TILE_VALUES;
  share_out(threads, tiles->count(), [&](long task, int) {
    amx::conv_attn(kernel_size, tiles->image_of<bfloat16>(*x, task), tiles->tile(task),
                   taps + tiles->image(task) * kernel, aggr, aggr_bias,
                   tiles->image_of<bfloat16>(*skip, task), tiles->image_of<bfloat16>(*out, task));
  });
#endif
}

// Each thread's own sums: `grad_taps` (threads, taps, C in, C out), `grad_kernels` (threads, B, C,
// 3, 3).
void esc_convolve_backward(int width, int threads, int kernel_size, const EscTiles* tiles,
                           const EscTensor* x, const EscTensor* grad_out, float* grad_taps,
                           float* grad_kernels) {
  auto* backward = BEST(width, convolve_backward);
  const long side = kernel_size / 2 + 1, channels = tiles->channels;
  share_out(threads, tiles->count(), [&](long task, int thread) {
    backward(kernel_size, tiles->image_of(*x, task), tiles->tile(task),
             tiles->image_of(*grad_out, task),
             grad_taps + thread * (side * (side + 1) / 2) * channels * channels,
             grad_kernels + (long(thread) * tiles->batch + tiles->image(task)) * 9 * channels);
  });
}

// `kernels` is (B, C, K, K).
void esc_convolve_depthwise(int width, int threads, int kernel_size, const EscTiles* tiles,
                            const EscTensor* x, const float* kernels, const EscTensor* out) {
  auto* convolve = BEST(width, convolve_depthwise);
  const long kernel = long(kernel_size) * kernel_size * tiles->channels;
  share_out(threads, tiles->count(), [&](long task, int) {
    convolve(kernel_size, tiles->image_of(*x, task), tiles->tile(task),
             kernels + tiles->image(task) * kernel, tiles->image_of(*out, task));
  });
}

// Each thread's own sums: `grad_kernels` (threads, B, C, K, K).
void esc_convolve_depthwise_backward(int width, int threads, int kernel_size,
                                     const EscTiles* tiles, const EscTensor* x,
                                     const EscTensor* grad_out, float* grad_kernels) {
  auto* backward = BEST(width, convolve_depthwise_backward);
  const long kernel = long(kernel_size) * kernel_size * tiles->channels;
  share_out(threads, tiles->count(), [&](long task, int thread) {
    backward(kernel_size, tiles->image_of(*x, task), tiles->tile(task),
             tiles->image_of(*grad_out, task),
             grad_kernels + (long(thread) * tiles->batch + tiles->image(task)) * kernel);
  });
}

// C is a multiple of 16.
void esc_conv_ffn(int width, int threads, const EscTiles* tiles, const EscTensor* x,
                  const EscConvFfn* weights, const EscTensor* out) {
  auto* conv_ffn = BEST(width, conv_ffn);
  share_out(threads, tiles->count(), [&](long task, int) {
    conv_ffn(tiles->image_of(*x, task), tiles->tile(task), *weights, tiles->image_of(*out, task));
  });
}

void esc_amx_conv_ffn(int threads, const EscTiles* tiles, const EscTensor* x,
                      const EscConvFfn* weights, const EscTensor* out) {
#ifdef HAS_AMX
  share_out(threads, tiles->count(), [&](long task, int) {
    amx::conv_ffn(tiles->image_of<bfloat16>(*x, task), tiles->tile(task), *weights,
                  tiles->image_of<bfloat16>(*out, task));
  });
#endif
}

// `grads` is (threads, as many as all weights but the turned ones have), in the order of EscConvFfn.
void esc_conv_ffn_backward(int width, int threads, const EscTiles* tiles, const EscTensor* x,
                           const EscConvFfn* weights, const EscTensor* grad_out,
                           const EscTensor* grad_x, float* grads) {
  auto* backward = BEST(width, conv_ffn_backward);
  const long hidden = weights->hidden, channels = tiles->channels, size = weights->kernel_size;
  const long count = 2 * channels * hidden + (size * size + 2) * hidden + channels;
  share_out(threads, tiles->count(), [&](long task, int thread) {
    backward(tiles->image_of(*x, task), tiles->tile(task), *weights,
             tiles->image_of(*grad_out, task), tiles->image_of(*grad_x, task),
             grads + thread * count);
  });
}

}  // extern "C"
