// How images, windows and weights lie in memory, and what every file of the kernels needs.
//
// Each file is compiled with the flags of one instruction set, and the linker keeps one copy of a
// function that several of them define, maybe one that this machine cannot run. So nothing here may
// become such a function: what belongs to no class is in an anonymous namespace, methods are always
// inlined, and templates of the standard library are used in none but the files that no flags are
// given to (a test looks at the object files).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <math.h>

#ifdef __SSE__
#include <immintrin.h>
#endif

#define ESC_INLINE inline __attribute__((always_inline))

// Clang unrolls loops of a fixed length by itself, and knows no such pragma of GCC's.
#define ESC_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define UNROLL(count) ESC_PRAGMA(clang loop unroll(full))
#define UNROLL_BY(count) ESC_PRAGMA(clang loop unroll_count(count))
#else
#define UNROLL(count) ESC_PRAGMA(GCC unroll count)
#define UNROLL_BY(count) ESC_PRAGMA(GCC unroll count)
#endif

typedef std::int64_t Size;       // Counts and strides: products of an int overflow.
typedef std::uint16_t bfloat16;  // Its bits.

// Throws std::bad_alloc.
[[noreturn]] void esc_out_of_memory();

namespace {

constexpr float LOG2_E = 1.44269504f;
// By how much what scores cannot exceed may exceed the largest of them: 2^-100 is still a float.
constexpr float SAFE_EXCESS = 100;

template <class Number>
ESC_INLINE Number smaller(Number a, Number b) {
  return a < b ? a : b;
}
template <class Number>
ESC_INLINE Number larger(Number a, Number b) {
  return a > b ? a : b;
}
ESC_INLINE Size round_up(Size value, Size multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// A pixel of an image that is continued beyond its end by reflection, again and again.
ESC_INLINE Size reflect(Size position, Size size) {
  if (position < size) return position;
  if (size == 1) return 0;
  position %= 2 * (size - 1);
  return position < size ? position : 2 * (size - 1) - position;
}

// Aligned memory that lives as long as this.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  ~Scratch() {
    while (last) {
      Block* before = last->before;
      free(last);
      last = before;
    }
  }

  template <class Value>
  Value* array(Size count) {
    void* memory = nullptr;
    if (posix_memalign(&memory, HEADER, HEADER + sizeof(Value) * count)) esc_out_of_memory();
    last = new (memory) Block{last};
    return reinterpret_cast<Value*>(static_cast<char*>(memory) + HEADER);
  }

 private:
  struct Block {
    Block* before;
    ESC_INLINE static void* operator new(std::size_t, void* place) { return place; }
  };
  static constexpr Size HEADER = 64;
  Block* last = nullptr;
};

}  // namespace

// One image of a batch in channels_last: the channels of a pixel lie side by side.
template <class Value>
struct ImageOf {
  Value* data;
  Size row_stride, pixel_stride, height, width, channels;

  ESC_INLINE Value* pixel(Size row, Size column) const {
    return data + row * row_stride + column * pixel_stride;
  }
};
typedef ImageOf<float> Image;

// Part of an image that one task computes.
struct Tile {
  Size row, row_end, column, column_end;
};

// One window of one head's channels; `rows` and `columns` of it lie in the image, the others in its
// padding by reflection.
template <class Value>
struct WindowOf {
  Value* data;
  Size dim_stride, row_stride, column_stride;
  Size size, rows, columns, row, column, height, width;

  ESC_INLINE Value* pixel(Size y, Size x) const {
    return data + reflect(row + y, height) * row_stride +
           reflect(column + x, width) * column_stride;
  }
  ESC_INLINE Value& operator()(Size y, Size x, Size d) const { return pixel(y, x)[d * dim_stride]; }
};
typedef WindowOf<float> Window;

// Weights of a ConvFFN, its hidden channels padded by zeros to a multiple of 16; "turned" is what
// the gradient of what came in is made with.
struct EscConvFfn {
  const float *proj, *proj_bias;                        // (C, hidden), (hidden)
  const float *dwc, *dwc_bias;                          // (K, K, hidden), (hidden)
  const float *aggr, *aggr_bias;                        // (hidden, C), (C)
  const float *proj_turned, *dwc_turned, *aggr_turned;  // (hidden, C), (K, K, hidden), (C, hidden)
  const bfloat16 *proj_tiles, *aggr_tiles;              // See amx_conv_ffn.h.
  Size hidden, kernel_size;
};

// The kernels of one instruction set, each for one task: see the headers named.
struct Kernels {
  // window_attention.h
  void (*attend)(Size dim, const Window& q, const Window& k, const Window& v, const float* table,
                 const Window& out, float* log_sums);
  void (*attend_backward)(Size dim, const Window& q, const Window& k, const Window& v,
                          const float* table, const Window& out, const float* log_sums,
                          const Window& grad_out, const Window& grad_q, const Window& grad_k,
                          const Window& grad_v, float* grad_table);
  // large_kernel.h
  void (*convolve)(Size kernel_size, const Image& image, const Tile& tile, const float* taps,
                   const float* kernel, const Image& out);
  void (*convolve_backward)(Size kernel_size, const Image& image, const Tile& tile,
                            const Image& grad_out, float* grad_taps, float* grad_kernel);
  void (*conv_attn)(Size kernel_size, Size convolved, const Image& image, const Tile& tile,
                    const float* taps, const float* kernel, const float* aggr,
                    const float* aggr_bias, const Image& skip, const Image& out);
  // depthwise.h
  void (*convolve_depthwise)(Size size, const Image& image, const Tile& tile, const float* kernel,
                             const Image& out);
  void (*convolve_depthwise_backward)(Size size, const Image& image, const Tile& tile,
                                      const Image& grad_out, float* grad_kernel);
  // conv_ffn.h
  void (*conv_ffn)(const Image& image, const Tile& tile, const EscConvFfn& weights,
                   const Image& out);
  void (*conv_ffn_backward)(const Image& image, const Tile& tile, const EscConvFfn& weights,
                            const Image& grad_out, const Image& grad_x, float* grads);
};

// Values of an operand of a tile product, see amx.h.
constexpr Size AMX_TILE_VALUES = 16 * 32;

typedef ImageOf<bfloat16> HalfImage;
typedef WindowOf<bfloat16> HalfWindow;

// Those in bfloat16 on AMX.
struct AmxKernels {
  bool (*is_usable)();
  void (*attend)(Size dim, const HalfWindow& q, const HalfWindow& k, const HalfWindow& v,
                 const float* table, const HalfWindow& out, float* log_sums);
  void (*attend_backward)(Size dim, const HalfWindow& q, const HalfWindow& k, const HalfWindow& v,
                          const float* table, const HalfWindow& out, const float* log_sums,
                          const HalfWindow& grad_out, const HalfWindow& grad_q,
                          const HalfWindow& grad_k, const HalfWindow& grad_v, float* grad_table);
  void (*conv_attn)(Size kernel_size, const HalfImage& image, const Tile& tile,
                    const bfloat16* taps, const bfloat16* aggr, const float* aggr_bias,
                    const HalfImage& skip, const HalfImage& out);
  void (*conv_ffn)(const HalfImage& image, const Tile& tile, const EscConvFfn& weights,
                   const HalfImage& out);
};

// Null where the compiler made none.
const Kernels* esc_kernels_baseline();
const Kernels* esc_kernels_avx2();
const Kernels* esc_kernels_avx512();
const AmxKernels* esc_kernels_amx();
