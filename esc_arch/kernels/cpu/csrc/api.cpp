// The networks' own operations on the CPU: what esc_arch/kernels/cpu/library.py calls.
//
// Plain functions on pointers and strides, which return 0, or OUT_OF_MEMORY. Tasks (windows and
// heads, or tiles of images) are shared out among threads. The same source is compiled for several
// instruction sets, and `width` says whose kernels run.

#include <new>
#include <vector>

#include "groups.h"

#define ESC_API extern "C" __attribute__((visibility("default")))

// A tensor of four dimensions and its strides in elements.
struct EscTensor {
  void* data;
  Size strides[4];
};

// Feature maps (B, heads * D, H, W), cut into windows.
struct EscWindows {
  Size batch, heads, dim, height, width, size;

  Size rows() const { return (height + size - 1) / size; }
  Size columns() const { return (width + size - 1) / size; }
  Size count() const { return batch * rows() * columns() * heads; }
  Size head(Size task) const { return task % heads; }
  Size table_size() const { return (2 * size - 1) * (2 * size - 1); }
  template <class Value = float>
  WindowOf<Value> of(const EscTensor& tensor, Size task) const {
    const Size window = task / heads;
    const Size row = window / columns() % rows() * size, column = window % columns() * size;
    Value* data = static_cast<Value*>(tensor.data) +
                  window / columns() / rows() * tensor.strides[0] +
                  head(task) * dim * tensor.strides[1];
    return {data,
            tensor.strides[1],
            tensor.strides[2],
            tensor.strides[3],
            size,
            smaller(size, height - row),
            smaller(size, width - column),
            row,
            column,
            height,
            width};
  }
};

// A batch of images (B, C, H, W), cut into tiles.
struct EscTiles {
  Size batch, channels, height, width, tile_height, tile_width;

  Size rows() const { return (height + tile_height - 1) / tile_height; }
  Size columns() const { return (width + tile_width - 1) / tile_width; }
  Size count() const { return batch * rows() * columns(); }
  Size image(Size task) const { return task / (rows() * columns()); }
  template <class Value = float>
  ImageOf<Value> image_of(const EscTensor& tensor, Size task) const {
    Value* data = static_cast<Value*>(tensor.data) + image(task) * tensor.strides[0];
    return {data, tensor.strides[2], tensor.strides[3], height, width, channels};
  }
  Tile tile(Size task) const {
    const Size row = task / columns() % rows() * tile_height;
    const Size column = task % columns() * tile_width;
    return {row, smaller(row + tile_height, height), column, smaller(column + tile_width, width)};
  }
};

namespace {

constexpr int OUT_OF_MEMORY = 1;

template <class Call>
int guarded(const Call& call) {
  try {
    call();
    return 0;
  } catch (const std::bad_alloc&) {
    return OUT_OF_MEMORY;
  }
}

const Kernels& kernels_of(int width) {
  if (width == 16) return *esc_kernels_avx512();
  return width == 8 ? *esc_kernels_avx2() : *esc_kernels_baseline();
}

// Sums of what each image has its own of, `count` floats: a group keeps them for no image but those
// that its tasks are of.
class ImageSums {
 public:
  ImageSums(const Groups& groups, const EscTiles& tiles, Size count)
      : groups(groups), tiles(tiles), count(count), starts(groups.count + 1) {
    for (Size group = 0; group < groups.count; ++group)
      starts[group + 1] = starts[group] + last(group) - first(group) + 1;
    const Size floats = starts[groups.count] * count;
    sums = scratch.array<float>(floats);
    std::memset(sums, 0, sizeof(float) * floats);
  }
  float* of(Size group, Size image) const {
    return sums + (starts[group] + image - first(group)) * count;
  }
  void add_to(float* totals) const {
    for (Size group = 0; group < groups.count; ++group)
      for (Size image = first(group); image <= last(group); ++image)
        for (Size i = 0; i < count; ++i) totals[image * count + i] += of(group, image)[i];
  }

 private:
  Scratch scratch;
  const Groups& groups;
  const EscTiles& tiles;
  const Size count;
  std::vector<Size> starts;
  float* sums;

  Size first(Size group) const { return tiles.image(groups.first(group)); }
  Size last(Size group) const { return tiles.image(groups.first(group + 1) - 1); }
};

}  // namespace

// Floats in a vector of the best instruction set that this machine has and that was compiled.
ESC_API int esc_widest() {
#ifdef __x86_64__
  if (esc_kernels_avx512() && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    return 16;
  if (esc_kernels_avx2() && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return 8;
#endif
  return 4;
}

// Whether the functions in bfloat16, esc_amx_..., can run.
ESC_API int esc_amx_is_usable() {
  return esc_widest() == 16 && esc_kernels_amx() && esc_kernels_amx()->is_usable();
}

// The sources that this was compiled from, and the sizes of the structures that callers fill in.
ESC_API const char* esc_sources() { return ESC_SOURCES; }
ESC_API const int* esc_structures() {
  static const int sizes[] = {sizeof(EscTensor), sizeof(EscTiles), sizeof(EscWindows),
                              sizeof(EscConvFfn)};
  return sizes;
}

// `table` is (heads, (2 w - 1)^2), `log_sums` (B, windows, heads, w * w).
ESC_API int esc_window_attention_forward(int width, int threads, const EscWindows* windows,
                                         const EscTensor* q, const EscTensor* k, const EscTensor* v,
                                         const float* table, const EscTensor* out,
                                         float* log_sums) {
  const auto attend = kernels_of(width).attend;
  return guarded([&] {
    share_out(threads, windows->count(), [&](Size task) {
      attend(windows->dim, windows->of(*q, task), windows->of(*k, task), windows->of(*v, task),
             table + windows->head(task) * windows->table_size(), windows->of(*out, task),
             log_sums + task * windows->size * windows->size);
    });
  });
}

// The same in bfloat16 but for `table` and `log_sums`; heads have up to 16 channels, side by side.
ESC_API int esc_amx_window_attention_forward(int threads, const EscWindows* windows,
                                             const EscTensor* q, const EscTensor* k,
                                             const EscTensor* v, const float* table,
                                             const EscTensor* out, float* log_sums) {
  const auto attend = esc_kernels_amx()->attend;
  return guarded([&] {
    share_out(threads, windows->count(), [&](Size task) {
      const auto of = [&](const EscTensor* tensor) { return windows->of<bfloat16>(*tensor, task); };
      attend(windows->dim, of(q), of(k), of(v), table + windows->head(task) * windows->table_size(),
             of(out), log_sums + task * windows->size * windows->size);
    });
  });
}

namespace {

template <class Value, class Backward>
int attend_backward(Backward backward, int threads, const EscWindows& windows, const EscTensor& q,
                    const EscTensor& k, const EscTensor& v, const float* table,
                    const EscTensor& out, const float* log_sums, const EscTensor& grad_out,
                    const EscTensor& grad_q, const EscTensor& grad_k, const EscTensor& grad_v,
                    float* grad_table) {
  // What is past a table's end gets zeros.
  const Size padded = windows.table_size() + 16;
  return guarded([&] {
    const Groups groups(windows.count(), windows.heads * padded);
    const GroupSums sums(groups, windows.heads * padded);
    groups.run(threads, [&](Size task, Size group) {
      const Size head = windows.head(task);
      const auto of = [&](const EscTensor& tensor) { return windows.of<Value>(tensor, task); };
      backward(windows.dim, of(q), of(k), of(v), table + head * windows.table_size(), of(out),
               log_sums + task * windows.size * windows.size, of(grad_out), of(grad_q), of(grad_k),
               of(grad_v), sums.of(group) + head * padded);
    });
    sums.add_to(grad_table);
  });
}

}  // namespace

// Windows must be whole. The gradient of the table is added to `grad_table`, (heads, (2 w - 1)^2 +
// 16); what is past a table's end gets zeros.
ESC_API int esc_window_attention_backward(int width, int threads, const EscWindows* windows,
                                          const EscTensor* q, const EscTensor* k,
                                          const EscTensor* v, const float* table,
                                          const EscTensor* out, const float* log_sums,
                                          const EscTensor* grad_out, const EscTensor* grad_q,
                                          const EscTensor* grad_k, const EscTensor* grad_v,
                                          float* grad_table) {
  return attend_backward<float>(kernels_of(width).attend_backward, threads, *windows, *q, *k, *v,
                                table, *out, log_sums, *grad_out, *grad_q, *grad_k, *grad_v,
                                grad_table);
}

// The same in bfloat16 but for `table`, `log_sums` and `grad_table`.
ESC_API int esc_amx_window_attention_backward(int threads, const EscWindows* windows,
                                              const EscTensor* q, const EscTensor* k,
                                              const EscTensor* v, const float* table,
                                              const EscTensor* out, const float* log_sums,
                                              const EscTensor* grad_out, const EscTensor* grad_q,
                                              const EscTensor* grad_k, const EscTensor* grad_v,
                                              float* grad_table) {
  return attend_backward<bfloat16>(esc_kernels_amx()->attend_backward, threads, *windows, *q, *k,
                                   *v, table, *out, log_sums, *grad_out, *grad_q, *grad_k, *grad_v,
                                   grad_table);
}

// `taps` is (taps, C in, C out), `kernels` (B, C, 3, 3).
ESC_API int esc_convolve(int width, int threads, Size kernel_size, const EscTiles* tiles,
                         const EscTensor* x, const float* taps, const float* kernels,
                         const EscTensor* out) {
  const auto convolve = kernels_of(width).convolve;
  return guarded([&] {
    share_out(threads, tiles->count(), [&](Size task) {
      convolve(kernel_size, tiles->image_of(*x, task), tiles->tile(task), taps,
               kernels + tiles->image(task) * 9 * tiles->channels, tiles->image_of(*out, task));
    });
  });
}

// `taps` is (taps, convolved, convolved), `kernels` (B, convolved, 3, 3), `aggr` (C in, C out) with
// C a multiple of 16.
ESC_API int esc_conv_attn(int width, int threads, Size kernel_size, const EscTiles* tiles,
                          const EscTensor* x, Size convolved, const float* taps,
                          const float* kernels, const float* aggr, const float* aggr_bias,
                          const EscTensor* skip, const EscTensor* out) {
  const auto conv_attn = kernels_of(width).conv_attn;
  return guarded([&] {
    share_out(threads, tiles->count(), [&](Size task) {
      conv_attn(kernel_size, convolved, tiles->image_of(*x, task), tiles->tile(task), taps,
                kernels + tiles->image(task) * 9 * convolved, aggr, aggr_bias,
                tiles->image_of(*skip, task), tiles->image_of(*out, task));
    });
  });
}

// All of ConvAttn in bfloat16, see amx_conv_attn.h; `taps` is (B, K, K / 2 rounded up, a tile).
ESC_API int esc_amx_conv_attn(int threads, Size kernel_size, const EscTiles* tiles,
                              const EscTensor* x, const bfloat16* taps, const bfloat16* aggr,
                              const float* aggr_bias, const EscTensor* skip, const EscTensor* out) {
  const auto conv_attn = esc_kernels_amx()->conv_attn;
  const Size kernel = kernel_size * ((kernel_size + 1) / 2) * AMX_TILE_VALUES;
  return guarded([&] {
    share_out(threads, tiles->count(), [&](Size task) {
      const auto of = [&](const EscTensor* t) { return tiles->image_of<bfloat16>(*t, task); };
      conv_attn(kernel_size, of(x), tiles->tile(task), taps + tiles->image(task) * kernel, aggr,
                aggr_bias, of(skip), of(out));
    });
  });
}

// Gradients are added to `grad_taps` (taps, C in, C out) and `grad_kernels` (B, C, 3, 3).
ESC_API int esc_convolve_backward(int width, int threads, Size kernel_size, const EscTiles* tiles,
                                  const EscTensor* x, const EscTensor* grad_out, float* grad_taps,
                                  float* grad_kernels) {
  const auto backward = kernels_of(width).convolve_backward;
  const Size side = kernel_size / 2 + 1, channels = tiles->channels;
  const Size taps = side * (side + 1) / 2 * channels * channels;
  return guarded([&] {
    const Groups groups(tiles->count(), taps);
    const GroupSums taps_sums(groups, taps);
    const ImageSums kernels_sums(groups, *tiles, 9 * channels);
    groups.run(threads, [&](Size task, Size group) {
      backward(kernel_size, tiles->image_of(*x, task), tiles->tile(task),
               tiles->image_of(*grad_out, task), taps_sums.of(group),
               kernels_sums.of(group, tiles->image(task)));
    });
    taps_sums.add_to(grad_taps);
    kernels_sums.add_to(grad_kernels);
  });
}

// `kernels` is (B, C, K, K).
ESC_API int esc_convolve_depthwise(int width, int threads, Size kernel_size, const EscTiles* tiles,
                                   const EscTensor* x, const float* kernels, const EscTensor* out) {
  const auto convolve = kernels_of(width).convolve_depthwise;
  const Size kernel = kernel_size * kernel_size * tiles->channels;
  return guarded([&] {
    share_out(threads, tiles->count(), [&](Size task) {
      convolve(kernel_size, tiles->image_of(*x, task), tiles->tile(task),
               kernels + tiles->image(task) * kernel, tiles->image_of(*out, task));
    });
  });
}

// The gradient is added to `grad_kernels` (B, C, K, K).
ESC_API int esc_convolve_depthwise_backward(int width, int threads, Size kernel_size,
                                            const EscTiles* tiles, const EscTensor* x,
                                            const EscTensor* grad_out, float* grad_kernels) {
  const auto backward = kernels_of(width).convolve_depthwise_backward;
  const Size kernel = kernel_size * kernel_size * tiles->channels;
  return guarded([&] {
    const Groups groups(tiles->count(), kernel);
    const ImageSums sums(groups, *tiles, kernel);
    groups.run(threads, [&](Size task, Size group) {
      backward(kernel_size, tiles->image_of(*x, task), tiles->tile(task),
               tiles->image_of(*grad_out, task), sums.of(group, tiles->image(task)));
    });
    sums.add_to(grad_kernels);
  });
}

// C is a multiple of 16.
ESC_API int esc_conv_ffn(int width, int threads, const EscTiles* tiles, const EscTensor* x,
                         const EscConvFfn* weights, const EscTensor* out) {
  const auto conv_ffn = kernels_of(width).conv_ffn;
  return guarded([&] {
    share_out(threads, tiles->count(), [&](Size task) {
      conv_ffn(tiles->image_of(*x, task), tiles->tile(task), *weights, tiles->image_of(*out, task));
    });
  });
}

ESC_API int esc_amx_conv_ffn(int threads, const EscTiles* tiles, const EscTensor* x,
                             const EscConvFfn* weights, const EscTensor* out) {
  const auto conv_ffn = esc_kernels_amx()->conv_ffn;
  return guarded([&] {
    share_out(threads, tiles->count(), [&](Size task) {
      conv_ffn(tiles->image_of<bfloat16>(*x, task), tiles->tile(task), *weights,
               tiles->image_of<bfloat16>(*out, task));
    });
  });
}

// Gradients are added to `grads`: as many as all weights but the turned ones have, in the order of
// EscConvFfn.
ESC_API int esc_conv_ffn_backward(int width, int threads, const EscTiles* tiles, const EscTensor* x,
                                  const EscConvFfn* weights, const EscTensor* grad_out,
                                  const EscTensor* grad_x, float* grads) {
  const auto backward = kernels_of(width).conv_ffn_backward;
  const Size hidden = weights->hidden, channels = tiles->channels, size = weights->kernel_size;
  const Size count = 2 * channels * hidden + (size * size + 2) * hidden + channels;
  return guarded([&] {
    const Groups groups(tiles->count(), count);
    const GroupSums sums(groups, count);
    groups.run(threads, [&](Size task, Size group) {
      backward(tiles->image_of(*x, task), tiles->tile(task), *weights,
               tiles->image_of(*grad_out, task), tiles->image_of(*grad_x, task), sums.of(group));
    });
    sums.add_to(grads);
  });
}
