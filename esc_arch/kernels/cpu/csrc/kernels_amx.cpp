// AMX with AVX-512's bfloat16: compiled with the flags of kernels_avx512.cpp and -mavx512bf16. Its
// instructions are written in assembly, for which compilers want no flag.
#if defined(__AVX512BF16__) && defined(__AVX512DQ__) && defined(__linux__) && defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "shapes.h"

namespace {

#include "ring.h"

namespace width16 {
#define WIDTH 16
#include "vectors.h"
}  // namespace width16

#include "amx.h"
#include "amx_window.h"
#include "amx_attention.h"
#include "amx_conv_attn.h"
#include "amx_conv_ffn.h"

constexpr AmxKernels AMX_KERNELS = {amx_is_usable, attend, attend_backward, conv_attn, conv_ffn};

}  // namespace

const AmxKernels* esc_kernels_amx() { return &AMX_KERNELS; }
#else
#include "shapes.h"

const AmxKernels* esc_kernels_amx() { return nullptr; }
#endif
