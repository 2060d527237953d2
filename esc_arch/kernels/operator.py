"""Operators of torch.library, without what `torch.library.custom_op` loads at the first call.

That is torch's compiler: two seconds and a hundred megabytes, in a process that upscales a picture.
"""

from collections.abc import Callable
from typing import Any

import torch

try:
    from torch.library import infer_schema
except ImportError:  # Before PyTorch 2.5.
    from torch._library.infer_schema import infer_schema


def operator(name: str, *devices: str) -> Callable[[Callable[..., Any]], Any]:
    """Make an operator of a function that changes none of its arguments.

    Its fake and gradients are registered by `torch.library.register_fake` and `register_autograd`.

    Args:
        name: `namespace::name`.
        devices: Types of the devices that the function runs on.

    Returns:
        A decorator of a function with type hints, which returns the operator's overload.
    """

    def define(function: Callable[..., Any]) -> Any:
        schema = infer_schema(function, mutates_args=())
        torch.library.define(name, schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.impl(name, devices, function)
        namespace, _, short = name.partition("::")
        return getattr(getattr(torch.ops, namespace), short).default

    return define
