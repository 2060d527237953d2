// Window attention on the CPU in float32: what esc_arch/ops/fused_attention.py calls.
//
// Plain functions on pointers and strides, one thread each: the caller shares windows and heads out
// among threads. The same source is compiled for several instruction sets, and the best that the
// machine has is chosen when it runs.

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

namespace {

constexpr float LOG2_E = 1.44269504f;

// (pixels, D) with any strides.
struct Strided {
  float* data;
  long pixel, dim;
  float& operator()(int i, int d) const { return data[i * pixel + d * dim]; }
};

// Aligned memory that lives as long as this.
class Scratch {
 public:
  float* floats(int count) { return static_cast<float*>(bytes(sizeof(float) * count)); }
  int* ints(int count) { return static_cast<int*>(bytes(sizeof(int) * count)); }

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

namespace width4 {
#define WIDTH 4
#include "window_attention.h"
#undef WIDTH
}  // namespace width4

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define HAS_WIDER
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace width8 {
#define WIDTH 8
#include "window_attention.h"
#undef WIDTH
}  // namespace width8
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma,prefer-vector-width=512")
namespace width16 {
#define WIDTH 16
#include "window_attention.h"
#undef WIDTH
}  // namespace width16
#pragma GCC pop_options
#endif

}  // namespace

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

// A tensor (windows, heads, pixels, D) and its strides in elements.
struct EscTensor {
  float* data;
  long strides[4];

  // One window and head, of which `task` counts all.
  Strided part(long task, int heads) const {
    return {data + task / heads * strides[0] + task % heads * strides[1], strides[2], strides[3]};
  }
};

void esc_window_attention_forward(int width, int heads, int window, int dim, long begin, long end,
                                  const EscTensor* q, const EscTensor* k, const EscTensor* v,
                                  const float* table, const EscTensor* out, float* log_sums) {
  auto* forward = width4::forward;
#ifdef HAS_WIDER
  if (width == 8) forward = width8::forward;
  if (width == 16) forward = width16::forward;
#endif
  const long table_size = (2L * window - 1) * (2 * window - 1);
  for (long task = begin; task < end; ++task) {
    forward(window, dim, q->part(task, heads), k->part(task, heads), v->part(task, heads),
            table + task % heads * table_size, out->part(task, heads),
            log_sums + task * window * window);
  }
}

// `grad_table` is (heads, (2 w - 1)^2 + 16).
void esc_window_attention_backward(int width, int heads, int window, int dim, long begin, long end,
                                   const EscTensor* q, const EscTensor* k, const EscTensor* v,
                                   const float* table, const EscTensor* out, const float* log_sums,
                                   const EscTensor* grad_out, const EscTensor* grad_q,
                                   const EscTensor* grad_k, const EscTensor* grad_v,
                                   float* grad_table) {
  auto* backward = width4::backward;
#ifdef HAS_WIDER
  if (width == 8) backward = width8::backward;
  if (width == 16) backward = width16::backward;
#endif
  const long table_size = (2L * window - 1) * (2 * window - 1);
  for (long task = begin; task < end; ++task) {
    backward(window, dim, q->part(task, heads), k->part(task, heads), v->part(task, heads),
             table + task % heads * table_size, out->part(task, heads),
             log_sums + task * window * window, grad_out->part(task, heads),
             grad_q->part(task, heads), grad_k->part(task, heads), grad_v->part(task, heads),
             grad_table + task % heads * (table_size + 16));
  }
}

}  // extern "C"
