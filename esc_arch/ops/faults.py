"""What is wrong with the shapes of an operation's arguments: None, or one line that says it.

Formulas and kernels have these checks in common. A kernel reads memory by the sizes it is told, and
so must never be called where one of these finds a fault.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def refuse_fault(find: Callable[..., str | None], *args: Any) -> None:
    """Raise what a check finds.

    Args:
        find: One of the checks below.
        *args: Its arguments.

    Raises:
        ValueError: There is a fault.
    """
    # To a trace, sizes are results; it serves other sizes, too.
    fault = None if torch.jit.is_tracing() else find(*args)
    if fault is not None:
        raise ValueError(fault)


def shape_fault(name: str, tensor: Tensor, wanted: Sequence[int]) -> str | None:
    """Check a tensor's shape."""
    if tuple(tensor.shape) == tuple(wanted):
        return None
    return f"{name} has shape {tuple(tensor.shape)}; it must be {tuple(wanted)}"


def same_shape_fault(name: str, tensor: Tensor, other: Tensor) -> str | None:
    """Check that a tensor has the shape of features x, and that these are features."""
    return _features_fault("x", other) or shape_fault(name, tensor, other.shape)


def _features_fault(name: str, tensor: Tensor) -> str | None:
    if tensor.ndim != 4:
        return f"{name} has shape {tuple(tensor.shape)}; it must be (B, C, H, W)"
    return None


def _kernel_fault(name: str, tensor: Tensor) -> str | None:
    if tensor.ndim != 4 or tensor.shape[2] != tensor.shape[3] or tensor.shape[3] % 2 == 0:
        return f"{name} has shape {tuple(tensor.shape)}; it must end in (K, K), K odd"
    return None


def _first(*faults: str | None) -> str | None:
    for fault in faults:
        if fault is not None:
            return fault
    return None


def table_fault(bias_table: Tensor, heads: int, window_size: int) -> str | None:
    """Check a table of biases (heads, (2w - 1)^2)."""
    return shape_fault("bias_table", bias_table, (heads, (2 * window_size - 1) ** 2))


def attention_fault(
    q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int
) -> str | None:
    """Check the arguments of `feature_attention`."""
    if window_size < 1:
        return f"window_size is {window_size}; it must be at least 1"
    if bias_table.ndim != 2 or bias_table.shape[1] != (2 * window_size - 1) ** 2:
        shape, values = tuple(bias_table.shape), (2 * window_size - 1) ** 2
        return f"bias_table has shape {shape}; windows of {window_size} need (heads, {values})"
    heads = bias_table.shape[0]
    if q.ndim != 4 or heads == 0 or q.shape[1] % heads:
        return f"q has shape {tuple(q.shape)}; it must be (B, C, H, W), C a multiple of {heads}"
    return _first(shape_fault("k", k, q.shape), shape_fault("v", v, q.shape))


def conv_fault(x: Tensor, large_kernel: Tensor, kernels: Tensor | None = None) -> str | None:
    """Check the arguments of `long_range_dynamic_conv`."""
    fault = _first(_features_fault("x", x), _kernel_fault("large_kernel", large_kernel))
    if fault is not None:
        return fault
    channels = x.shape[1]
    fault = shape_fault("large_kernel", large_kernel, (channels, channels, *large_kernel.shape[2:]))
    if fault is None and kernels is not None:
        fault = shape_fault("kernels", kernels, (x.shape[0], channels, 3, 3))
    return fault


def taps_fault(x: Tensor, taps: Tensor, kernels: Tensor, count: int) -> str | None:
    """Check the arguments of a convolution with `count` distinct taps."""
    fault = _features_fault("x", x)
    if fault is not None:
        return fault
    batch, channels = x.shape[:2]
    return _first(
        shape_fault("taps", taps, (count, channels, channels)),
        shape_fault("kernels", kernels, (batch, channels, 3, 3)),
    )


def conv_attn_fault(x: Tensor, large_kernel: Tensor) -> str | None:
    """Check the tensors of `conv_attn`."""
    fault = _first(_features_fault("x", x), _kernel_fault("large_kernel", large_kernel))
    if fault is not None:
        return fault
    pdim = large_kernel.shape[0]
    if large_kernel.shape[1] != pdim or not 1 <= pdim <= x.shape[1]:
        return (
            f"large_kernel has shape {tuple(large_kernel.shape)}; "
            f"it must be (pdim, pdim, K, K), pdim at most {x.shape[1]}"
        )
    return None


def depthwise_fault(x: Tensor, kernels: Tensor) -> str | None:
    """Check the arguments of `separable_dynamic_conv`."""
    fault = _first(_features_fault("x", x), _kernel_fault("kernels", kernels))
    if fault is not None:
        return fault
    return shape_fault("kernels", kernels, (*x.shape[:2], *kernels.shape[2:]))


def linear_fault(name: str, weight: Tensor, bias: Tensor, out: int, channels: int) -> str | None:
    """Check a 1x1 convolution from `channels` to `out`."""
    return _first(
        shape_fault(name, weight, (out, channels, 1, 1)),
        shape_fault(f"{name}_bias", bias, (out,)),
    )


def conv_ffn_fault(
    x: Tensor,
    proj: Tensor,
    proj_bias: Tensor,
    dwc: Tensor,
    dwc_bias: Tensor,
    aggr: Tensor,
    aggr_bias: Tensor,
) -> str | None:
    """Check the weights of a ConvFFN."""
    fault = _first(_features_fault("x", x), _kernel_fault("dwc", dwc))
    if fault is not None:
        return fault
    if proj.ndim != 4:
        return f"proj has shape {tuple(proj.shape)}; it must be (hidden, C, 1, 1)"
    channels, hidden = x.shape[1], proj.shape[0]
    return _first(
        linear_fault("proj", proj, proj_bias, hidden, channels),
        shape_fault("dwc", dwc, (hidden, 1, *dwc.shape[2:])),
        shape_fault("dwc_bias", dwc_bias, (hidden,)),
        linear_fault("aggr", aggr, aggr_bias, channels, hidden),
    )


def conv_attn_layers_fault(
    x: Tensor, large_kernel: Tensor, conv: object, aggr: Tensor, aggr_bias: Tensor
) -> str | None:
    """Check the tensors and weights of `conv_attn`."""
    fault = conv_attn_fault(x, large_kernel)
    return fault or linear_fault("aggr", aggr, aggr_bias, x.shape[1], x.shape[1])
