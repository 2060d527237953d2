"""What torch's FLOP counter counts for operators: as for their formulas, two a multiply-add.

Counting is set up once torch's counter is imported, which nothing else needs.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
import wrapt

Shape = Sequence[int]


def _pixels(x: Shape) -> int:
    return x[0] * x[2] * x[3]


def conv_ffn(x: Shape, proj: Shape, proj_bias: Shape, dwc: Shape, *_: Any, **__: Any) -> int:
    """A ConvFFN."""
    return 2 * _pixels(x) * proj[0] * (2 * x[1] + prod(dwc[2:]))


def conv_ffn_backward(grad_out: Shape, *shapes: Any, **_: Any) -> int:
    """Its gradients."""
    return 2 * conv_ffn(*shapes)


def conv_attn(x: Shape, large_kernel: Shape, *_: Any, **__: Any) -> int:
    """A ConvAttn."""
    return 2 * _pixels(x) * (prod(large_kernel) + 9 * large_kernel[0] + x[1] ** 2)


def symmetric_conv(x: Shape, taps: Shape, kernels: Shape, size: int, **_: Any) -> int:
    """A convolution with the large kernel and an image's own."""
    return 2 * _pixels(x) * x[1] * (x[1] * size**2 + 9)


def symmetric_conv_weight(x: Shape, grad_out: Shape, size: int, **_: Any) -> int:
    """The gradients of both kernels."""
    return symmetric_conv(x, (), (), size)


def depthwise_conv(x: Shape, kernels: Shape, **_: Any) -> int:
    """A depthwise convolution."""
    return 2 * prod(x) * prod(kernels[2:])


def depthwise_conv_weight(x: Shape, grad_out: Shape, size: int, **_: Any) -> int:
    """The gradients of its weights."""
    return 2 * prod(x) * size**2


def _products(q: Shape, window_size: int) -> int:
    windows = q[0] * -(-q[2] // window_size) * -(-q[3] // window_size)
    return 2 * windows * window_size**4 * q[1]


def window_attention(q: Shape, k: Shape, v: Shape, table: Shape, size: int, **_: Any) -> int:
    """Attention in windows, completed at the edges."""
    return 2 * _products(q, size)


def window_attention_backward(q: Shape, *shapes: Any, **_: Any) -> int:
    """Its gradients."""
    return 4 * _products(q, shapes[-1])


def rest_of_conv_attn(x: Shape, convolved: Shape, *_: Any, **__: Any) -> int:
    """What follows the large kernel in a ConvAttn."""
    return 2 * _pixels(x) * (9 * convolved[1] + x[1] ** 2)


def rest_of_conv_attn_backward(grad_out: Shape, *shapes: Any, **_: Any) -> int:
    """Its gradients."""
    return 2 * rest_of_conv_attn(*shapes)


def register(counted: Mapping[str, Callable[..., int]]) -> None:
    """Make counts known.

    Args:
        counted: By the names of our operators, which are there: a function of their arguments, with
            shapes in place of tensors.
    """

    @wrapt.when_imported("torch.utils.flop_counter")
    def _register(flop_counter: Any) -> None:
        for name, count in counted.items():
            # PyTorch 2.4's `register_flop_formula` takes no operators of libraries.
            operator = getattr(torch.ops.esc, name)
            flop_counter.flop_registry[operator] = flop_counter.shape_wrapper(count)
