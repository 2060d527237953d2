// AVX-512: compiled with -mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma.
#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define WIDTH 16
#include "all_kernels.h"

const Kernels* esc_kernels_avx512() { return &ALL_KERNELS; }
#else
#include "shapes.h"

const Kernels* esc_kernels_avx512() { return nullptr; }
#endif
