// AVX2 and FMA: compiled with -mavx2 -mfma.
#if defined(__AVX2__) && defined(__FMA__)
#define WIDTH 8
#include "all_kernels.h"

const Kernels* esc_kernels_avx2() { return &ALL_KERNELS; }
#else
#include "shapes.h"

const Kernels* esc_kernels_avx2() { return nullptr; }
#endif
