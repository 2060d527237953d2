"""Which network a file holds, from the names and shapes of its tensors alone."""

import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from esc_arch.archs import NETWORKS
from esc_arch.errors import UserError, printable
from esc_arch.zoo.foreign import META, UnknownScale, read_real_world


def identify(
    state_dict: Mapping[str, Tensor], source: str = "the file", scale: int | None = None
) -> dict[str, Any]:
    """Find the option block of a network from the names and shapes of its tensors.

    Args:
        state_dict: The network's tensors by name; the values are not looked at.
        source: What to call it in an error.
        scale: By how much it upscales, for the few networks of others of which nothing tells that.

    Returns:
        The `network_g` block that builds a network with exactly these tensors. Options that do
        not show in them (`attn_type`, but for FlashBias) are left out, as is `use_ln: false`.

    Raises:
        UserError: The tensors are another network's, or some are missing or have other shapes.
    """
    shapes = {name: tuple(value.shape) for name, value in state_dict.items() if name != META}
    try:
        network_g = _read_options(shapes)
        if _is_real_world(shapes):
            network_g |= read_real_world(state_dict, shapes, source, scale)
        built = build_on_meta(network_g).state_dict()
    except UnknownScale:
        raise
    except KeyError as error:
        if not any(name.startswith("blocks.0.convffns.") for name in shapes):
            raise _not_ours(shapes, source) from None
        raise UserError(
            f"{source}: looks like a network of the ESC family, but it lacks '{error.args[0]}'"
        ) from None
    except (LookupError, ValueError, ArithmeticError, TypeError, RuntimeError):
        raise _not_ours(shapes, source) from None
    expected = {name: tuple(value.shape) for name, value in built.items() if name != META}
    missing = [name for name in expected if name not in shapes]
    unknown = [name for name in shapes if name not in expected]
    for problem, names in (("lacks", missing), ("has no place for", unknown)):
        if names:
            subject = "it" if problem == "lacks" else "the network"
            raise UserError(
                f"{source}: looks like {network_g['type']}, but {subject} {problem} "
                f"{len(names)} of its {len(expected if names is missing else shapes)} tensors, "
                f"such as '{printable(names[0])}'"
            )
    for name, shape in shapes.items():
        if shape != expected[name]:
            raise UserError(
                f"{source}: looks like {network_g['type']}, but '{printable(name)}' has the shape "
                f"{list(shape)} in place of {list(expected[name])}"
            )
    return network_g


def _not_ours(shapes: Mapping[str, tuple[int, ...]], source: str) -> UserError:
    known = ", ".join(printable(name) for name in list(shapes)[:2]) or "none"
    return UserError(
        f"{source}: not a network of the ESC family: its {len(shapes)} tensors are others "
        f"({known}, ...)"
    )


def _read_options(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The option block, taken from single tensors; a KeyError or IndexError means another one."""
    real = _is_real_world(shapes)
    factored = "lk_channel" in shapes
    large_kernel = shapes["lk_spatial" if factored else "plk_filter"]
    dim = shapes["proj.1.weight" if "proj.1.weight" in shapes else "proj.weight"][0]
    flashbias = shapes.get("blocks.0.attn.flashbias_q")
    if flashbias is None:
        num_heads, table = shapes["blocks.0.attn.relative_position_bias"]
        window_size = (math.isqrt(table) + 1) // 2
    else:
        num_heads, pixels, _ = flashbias
        window_size = math.isqrt(pixels)
    network_g = {
        "type": "ESCReal" if real else "ESCFP" if factored else "ESC",
        "dim": dim,
        "pdim": large_kernel[0],
        "kernel_size": large_kernel[-1],
        "n_blocks": _count(shapes, r"blocks\.(\d+)\."),
        "conv_blocks": _count(shapes, r"blocks\.0\.convffns\.(\d+)\."),
        "window_size": window_size,
        "num_heads": num_heads,
        "exp_ratio": _clean_ratio(dim, shapes["blocks.0.convffns.0.proj.weight"][0]),
    }
    if not real:
        network_g["upscaling_factor"] = math.isqrt(shapes["to_img.weight"][0] // 3)
    if network_g["type"] == "ESC" and "blocks.0.lns.0.weight" in shapes:
        network_g["use_ln"] = True
    if flashbias is not None:
        network_g |= {"attn_type": "FlashBias", "flashbias_rank": flashbias[2]}
    return network_g


def _is_real_world(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return any(name.startswith("skip.") for name in shapes)


def _count(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> int:
    """How many different numbers there are; a gap among them shows later as tensors missing."""
    return len({match[1] for name in shapes if (match := re.match(pattern, name))})


def _clean_ratio(dim: int, hidden: int) -> float | int:
    """The plainest number with int(dim * number) == hidden."""
    exact = Fraction(hidden, dim)
    if exact.denominator == 1:
        return exact.numerator
    if 100 % exact.denominator == 0:
        return hidden / dim
    for digits in range(1, 16):
        ratio = math.ceil(exact * 10**digits) / 10**digits
        if int(dim * ratio) == hidden:
            return ratio
    raise ValueError(f"no ratio gives {hidden} of {dim}")


class _WithoutValues(TorchFunctionMode):
    """Leaves out all that fills tensors with values.

    On `meta` these run through Python decompositions, for which torch imports its compiler and
    SymPy: 2 s and 200 MB for nothing.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func in (torch.randn, torch.rand):
            return torch.empty(*args, **kwargs)
        # t_ changes the shape, which orthogonal initialisation counts on.
        fills = name.endswith("_") and not name.endswith("__")
        if fills and name not in ("requires_grad_", "t_"):
            return args[0] if args else kwargs["tensor"]
        if name.strip("_") in ("mul", "rmul", "add", "radd", "sub", "rsub", "truediv", "div"):
            tensor, other = args if isinstance(args[0], Tensor) else args[::-1]
            if isinstance(other, (int, float)):
                return torch.empty(tensor.shape)
        return func(*args, **kwargs)


def build_on_meta(network_g: Mapping[str, Any]) -> nn.Module:
    """Build a network without memory for its parameters, for their names and shapes."""
    options = dict(network_g)
    with torch.device("meta"), _WithoutValues():
        return NETWORKS[options.pop("type")](**options)
