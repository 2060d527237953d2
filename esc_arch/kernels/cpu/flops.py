"""What torch's FLOP counter counts for the operators: as for their formulas, two a multiply-add.

Counting is set up once torch's counter is imported, which nothing else needs.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import wrapt

# They define the operators, which must be there first.
from esc_arch.kernels.cpu import (  # noqa: F401
    fused_attention,
    fused_conv_attn,
    fused_conv_ffn,
    fused_depthwise,
)

Shape = Sequence[int]


def _pixels(x: Shape) -> int:
    return x[0] * x[2] * x[3]


def _conv_ffn(x: Shape, proj: Shape, proj_bias: Shape, dwc: Shape, *_: Any, **__: Any) -> int:
    return 2 * _pixels(x) * proj[0] * (2 * x[1] + prod(dwc[2:]))


def _conv_ffn_backward(grad_out: Shape, *shapes: Any, **_: Any) -> int:
    return 2 * _conv_ffn(*shapes)


def _conv_attn(x: Shape, large_kernel: Shape, *_: Any, **__: Any) -> int:
    return 2 * _pixels(x) * (prod(large_kernel) + 9 * large_kernel[0] + x[1] ** 2)


def _symmetric_conv(x: Shape, taps: Shape, kernels: Shape, size: int, **_: Any) -> int:
    return 2 * _pixels(x) * x[1] * (x[1] * size**2 + 9)


def _symmetric_conv_weight(x: Shape, grad_out: Shape, size: int, **_: Any) -> int:
    return _symmetric_conv(x, (), (), size)


def _depthwise_conv(x: Shape, kernels: Shape, **_: Any) -> int:
    return 2 * prod(x) * prod(kernels[2:])


def _depthwise_conv_weight(x: Shape, grad_out: Shape, size: int, **_: Any) -> int:
    return 2 * prod(x) * size**2


def _products(q: Shape, window_size: int) -> int:
    windows = q[0] * -(-q[2] // window_size) * -(-q[3] // window_size)
    return 2 * windows * window_size**4 * q[1]


def _window_attention(q: Shape, k: Shape, v: Shape, table: Shape, size: int, **_: Any) -> int:
    return 2 * _products(q, size)


def _window_attention_backward(q: Shape, *shapes: Any, **_: Any) -> int:
    return 4 * _products(q, shapes[-1])


_COUNTED = {
    "conv_ffn": _conv_ffn,
    "conv_ffn_backward": _conv_ffn_backward,
    "conv_attn": _conv_attn,
    "symmetric_conv": _symmetric_conv,
    "symmetric_conv_weight": _symmetric_conv_weight,
    "depthwise_conv": _depthwise_conv,
    "depthwise_conv_weight": _depthwise_conv_weight,
    "window_attention": _window_attention,
    "window_attention_backward": _window_attention_backward,
}


@wrapt.when_imported("torch.utils.flop_counter")
def _register(flop_counter: Any) -> None:
    for name, count in _COUNTED.items():
        # PyTorch 2.4's `register_flop_formula` takes no operators of libraries.
        operator = getattr(torch.ops.esc, name)
        flop_counter.flop_registry[operator] = flop_counter.shape_wrapper(count)
