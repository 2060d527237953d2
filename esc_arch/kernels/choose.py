"""What runs: the one place that decides between the formulas of `ops` and kernels.

A network calls functions of `esc_arch.ops` and knows nothing of this. Each of these operations has
a formula; a kernel computes the same on one kind of device, and is called in its place where it
takes what it is given. A kernel gets tensors on its device, in one of its dtypes, and, for layers
(convolutions as the network made them), their weights:

| operation                 | arguments of a kernel                                                |
|---------------------------|----------------------------------------------------------------------|
| `conv_ffn`                | x (B, C, H, W), proj (hidden, C, 1, 1), proj_bias (hidden,),         |
|                           | dwc (hidden, 1, k, k), dwc_bias (hidden,), aggr (C, hidden, 1, 1),   |
|                           | aggr_bias (C,)                                                       |
| `conv_attn`               | x (B, C, H, W), large_kernel (pdim, pdim, K, K), conv, whose         |
|                           | `conv.kernels(x[:, :pdim])` makes (B, pdim, 3, 3), aggr (C, C, 1, 1),|
|                           | aggr_bias (C,)                                                       |
| `long_range_dynamic_conv` | x (B, C, H, W), large_kernel (C, C, K, K), kernels (B, C, 3, 3)      |
| `separable_dynamic_conv`  | x (B, C, H, W), kernels (B, C, K, K)                                 |
| `feature_attention`       | q, k, v (B, C, H, W), bias_table (heads, (2w - 1)^2), window_size    |

and returns (B, C, H, W). Within networks features have their channels last in memory (a kernel may
rely on no strides); zero padding; any H and W, windows of attention completed by reflection at the
bottom and the right, see the formulas. Shapes fit each other when a kernel is asked (see
`ops.faults`). To register one:

    @choose.register("conv_ffn", "cuda", dtypes=(torch.float16, torch.bfloat16))
    def conv_ffn(x, proj, proj_bias, dwc, dwc_bias, aggr, aggr_bias): ...

    @choose.register("feature_attention", "cuda", name="Triton", takes=takes)
    def attention(q, k, v, bias_table, window_size): ...

The last one registered for an operation and a device is asked first. A kernel of attention can be
asked for by its name as `attn_type`, once it is in `ops.attention.KERNELS`. What a kernel calls
must be an operator of torch.library, with a fake, gradients and checks of shapes, so that
torch.compile holds it in its graphs; `register` itself may be called at import only.

Formulas run where nothing of a kernel may be seen: in traces and exports, in derivatives that
kernels do not have, and for layers that are wrapped, replaced, listened to or set otherwise.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as any_module

from esc_arch.errors import UserError
from esc_arch.ops import attention, faults, fusible
from esc_arch.ops.autocast import autocast_dtype
from esc_arch.ops.derivatives import only_formulas_differentiate

Takes = Callable[..., bool]

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# How each operation's arguments must fit.
FAULTS: dict[str, Callable[..., str | None]] = {
    "conv_ffn": faults.conv_ffn_fault,
    "conv_attn": faults.conv_attn_layers_fault,
    "long_range_dynamic_conv": faults.conv_fault,
    "separable_dynamic_conv": faults.depthwise_fault,
    "feature_attention": faults.attention_fault,
}

# What a kernel of attention lacks where it was asked for by name and cannot run.
NEEDS: dict[str, str] = {
    "Fused": "it needs the CPU, float32 or narrower, and a C++ compiler at installation",
    "Triton": "it needs a CUDA GPU, Triton, float32 or narrower, windows of 2 to 96 and heads of "
    "at most 64 channels",
}

# Before PyTorch 2.7 nothing tells an export from torch.compile, and 2.7 and 2.8 call both one; they
# then see formulas.
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


@dataclass(frozen=True)
class Kernel:
    """What may stand for an operation.

    Attributes:
        run: Computes it.
        name: The `attn_type` it is asked for by, if it is one of attention.
        dtypes: Dtypes it takes, one for all tensors: autocast's, where that is on. For attention
            those of q, k and v; the table may have another.
        takes: Tells from its arguments whether it can compute them. Attention's is asked before
            there are q, k and v: with features of their shape, the table, the window's size and
            their dtype.
        differentiable: Whether gradients pass through it.
    """

    run: Callable[..., Tensor]
    name: str
    dtypes: Sequence[torch.dtype]
    takes: Takes
    differentiable: bool


_kernels: dict[tuple[str, str], tuple[Kernel, ...]] = {}
_off = 0


def register(
    operation: str,
    device: str,
    *,
    name: str = "Fused",
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16),
    takes: Takes = lambda *_: True,
    differentiable: bool = True,
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Make a kernel known, see above.

    Args:
        operation: One of those in the table.
        device: Type of the devices it runs on, as `torch.device.type`.
        name: See `Kernel`, as the others.
        dtypes: See `Kernel`.
        takes: See `Kernel`.
        differentiable: See `Kernel`.
    """
    if operation not in FAULTS:
        raise ValueError(f"operation is {operation!r}; it must be one of {', '.join(FAULTS)}")

    def add(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
        kernel = Kernel(run, name, dtypes, takes, differentiable)
        _kernels[operation, device] = (kernel, *_kernels.get((operation, device), ()))
        return run

    return add


@contextlib.contextmanager
def switched_off() -> Iterator[None]:
    """Let formulas run, and torch's own operations, whatever kernels there are."""
    global _off
    _off += 1
    try:
        yield
    finally:
        _off -= 1


def are_off() -> bool:
    """Tell whether no kernel may run now, whatever it is given."""
    return _off > 0 or torch.jit.is_tracing() or _is_exporting() or only_formulas_differentiate()


def choose(operation: str, args: tuple[Any, ...]) -> Callable[[], Tensor] | None:
    """Return what computes an operation, or None where its formula does.

    Raises:
        UserError: A kernel is asked for by name and cannot run.
    """
    if operation in ("feature_attention", "self_attention"):
        return _choose_attention(operation, args)
    if operation not in FAULTS or are_off():
        return None
    given = _with_weights(args)
    if given is None or FAULTS[operation](*given) is not None:
        return None
    for kernel in _kernels_for(operation, given[0]):
        ready = _as_computed(kernel, given)
        if ready is not None and kernel.takes(*ready):
            return partial(kernel.run, *ready)
    return None


def _choose_attention(operation: str, args: tuple[Any, ...]) -> Callable[[], Tensor] | None:
    *given, bias_table, window_size, name = args
    if are_off() or name not in ("Auto", *attention.KERNELS):
        return None
    # Queries, keys and values have the shape of the features that they are made of.
    x = given[0]
    shaped = (x, x, x) if operation == "self_attention" else given
    kernels = _kernels_for("feature_attention", x)
    dtype = x.dtype
    if operation == "self_attention":
        dtype = autocast_dtype(x.device.type) or dtype
    if faults.attention_fault(*shaped, bias_table, window_size) is not None:
        return None
    for kernel in kernels:
        if (
            name in ("Auto", kernel.name)
            and dtype in kernel.dtypes
            and _can_read(kernel, (*given, bias_table))
            and kernel.takes(x, bias_table, window_size, dtype)
        ):
            return partial(_attend, kernel, given, bias_table, window_size)
    if name != "Auto":
        raise UserError(f"attn_type {name!r} cannot run here: {NEEDS[name]}; use 'Auto'")
    return None


def _attend(kernel: Kernel, given: list[Any], bias_table: Tensor, window_size: int) -> Tensor:
    if len(given) == 2:
        x, to_qkv = given
        given = to_qkv(x).chunk(3, dim=1)
    return kernel.run(*given, bias_table, window_size)


def _kernels_for(operation: str, x: Any) -> tuple[Kernel, ...]:
    return _kernels.get((operation, x.device.type), ()) if isinstance(x, Tensor) else ()


def _with_weights(args: tuple[Any, ...]) -> list[Any] | None:
    """Put weights in the places of convolutions; None if a layer must be called itself."""
    given: list[Any] = []
    for arg in args:
        if not isinstance(arg, nn.Module):
            given.append(arg)
            continue
        if not fusible.is_replaceable(arg) or _is_heard(arg):
            return None
        if not isinstance(arg, nn.Conv2d):
            given.append(arg)
            continue
        size = arg.weight.shape[-1]
        as_made = arg.stride == (1, 1) and arg.dilation == (1, 1) and arg.padding_mode == "zeros"
        if arg.bias is None or not as_made or arg.padding != (size // 2, size // 2):
            return None
        given += [arg.weight, arg.bias]
    return given


def _is_heard(layer: nn.Module) -> bool:
    """Tell whether somebody listens when a layer is called."""
    return bool(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or any_module._global_forward_hooks
        or any_module._global_forward_pre_hooks
        or any_module._global_backward_hooks
        or any_module._global_backward_pre_hooks
        or "forward" in layer.__dict__
    )


def _can_read(kernel: Kernel, given: Sequence[Any]) -> bool:
    """Tell whether a kernel may be given these, whatever their dtypes."""
    tensors = [arg for arg in given if isinstance(arg, Tensor)]
    device = tensors[0].device
    if any(t.device != device or t.numel() == 0 or not _is_plain(t) for t in tensors):
        return False
    return kernel.differentiable or not torch.is_grad_enabled() or not _want_gradients(given)


def _as_computed(kernel: Kernel, given: list[Any]) -> list[Any] | None:
    """Cast as autocast would; None if the kernel cannot take what is given."""
    if not _can_read(kernel, given):
        return None
    x = given[0]
    dtypes = [arg.dtype for arg in given if isinstance(arg, Tensor)]
    wanted = autocast_dtype(x.device.type)
    if wanted is not None:
        if wanted not in kernel.dtypes or any(d not in (torch.float32, wanted) for d in dtypes):
            return None
        return [arg.to(wanted) if isinstance(arg, Tensor) else arg for arg in given]
    return given if x.dtype in kernel.dtypes and all(d == x.dtype for d in dtypes) else None


def _is_plain(tensor: Tensor) -> bool:
    """Tell whether a tensor is none that computes in ways of its own, as quantised weights do."""
    return type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided


def _want_gradients(given: list[Any]) -> bool:
    return any(
        arg.requires_grad
        if isinstance(arg, Tensor)
        else isinstance(arg, nn.Module) and any(p.requires_grad for p in arg.parameters())
        for arg in given
    )


@register("feature_attention", "cuda", name="Flex", dtypes=FLOATING)
def _flex(*args: Any) -> Tensor:
    return attention.attend_in_windows(attention.flex_or_sdpa, *args)


fusible.set_chooser(choose)
