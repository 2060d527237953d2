"""Operators of torch.library, without what `torch.library.custom_op` loads at the first call.

That is torch's compiler: two seconds and a hundred megabytes, in a process that upscales a picture.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
import wrapt
from torch import Tensor

from esc_arch.ops.autocast import without_autocast
from esc_arch.ops.derivatives import refuse_forward_mode

try:
    from torch.library import infer_schema
except ImportError:  # Before PyTorch 2.5.
    from torch._library.infer_schema import infer_schema
_state = threading.local()
_library = torch.library.Library("esc", "FRAGMENT")


def are_seen_through() -> bool:
    """Tell whether what runs is the inside of an operator, which a graph is to hold."""
    return getattr(_state, "seen_through", False)


@contextlib.contextmanager
def _seen_through() -> Iterator[None]:
    _state.seen_through = True
    try:
        yield
    finally:
        _state.seen_through = False


def operator(
    name: str, *devices: str, see_through: str = "never"
) -> Callable[[Callable[..., Any]], Any]:
    """Make an operator of a function that changes none of its arguments.

    Its fake and gradients are registered by `torch.library.register_fake` and `register_autograd`.
    It has no derivative in forward mode, and refuses tensors that carry one.

    Args:
        name: `namespace::name`.
        devices: Types of the devices that the function runs on.
        see_through: Which graphs of torch.compile hold what the function does, as those of
            `torch.library.triton_op` do: torch's operations, and Triton's kernels where
            `are_seen_through` has them wrapped. `never`, `fixed`: graphs for one size, or `always`,
            where nothing in the function depends on a size, of which there would be a graph each.
            Before PyTorch 2.6 it is never.

    Returns:
        A decorator of a function with type hints, which returns the operator's overload.
    """

    def define(function: Callable[..., Any]) -> Any:
        schema = infer_schema(function, mutates_args=())
        torch.library.define(name, schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.impl(name, devices, function)
        namespace, _, short = name.partition("::")
        overload = getattr(getattr(torch.ops, namespace), short).default

        def checked(keyset: Any, *args: Any, **kwargs: Any) -> Any:
            refuse_forward_mode(name, *(arg for arg in args if isinstance(arg, Tensor)))
            with torch._C._AutoDispatchBelowADInplaceOrView():
                after = keyset & torch._C._after_ADInplaceOrView_keyset
                return overload.redispatch(after, *args, **kwargs)

        # After autograd, and before torch.func takes what it differentiates out of its wrappers.
        _library.impl(name, checked, "ADInplaceOrView", with_keyset=True)
        if see_through != "never" and hasattr(torch.library, "wrap_triton"):
            _let_graphs_see(name, function, see_through)
        return overload

    return define


def _let_graphs_see(name: str, function: Callable[..., Any], graphs: str) -> None:
    # Nothing else needs the module, which takes a while to import.
    @wrapt.when_imported("torch._subclasses.functional_tensor")
    def _register(functional_tensor: Any) -> None:
        def decompose(mode: Any, op: Any, types: Any, args: Any, kwargs: Any) -> Any:
            tensors = [arg for arg in args if isinstance(arg, Tensor)]
            sizes = [size for tensor in tensors for size in tensor.shape]
            if graphs == "fixed" and any(isinstance(size, torch.SymInt) for size in sizes):
                return mode.__torch_dispatch__(op, types, args, kwargs)
            with mode, without_autocast(tensors[0].device.type), _seen_through():
                return function(*args, **(kwargs or {}))

        mode = functional_tensor.FunctionalTensorMode
        torch.library.register_torch_dispatch(name, mode, decompose)
