// Every kernel for vectors of WIDTH floats; included once by each file that has an instruction set.

#include "shapes.h"

namespace {

#include "ring.h"
#include "vectors.h"
#include "window_attention.h"
#include "depthwise.h"
#include "large_kernel.h"
#include "conv_ffn.h"

constexpr Kernels ALL_KERNELS = {
    attend,
    attend_backward,
    convolve,
    convolve_backward,
    conv_attn,
    convolve_depthwise,
    convolve_depthwise_backward,
    conv_ffn,
    conv_ffn_backward,
};

}  // namespace
