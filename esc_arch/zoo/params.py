"""One network's tensors out of whatever a checkpoint wraps them in."""

import os
import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from esc_arch.errors import UserError, printable
from esc_arch.zoo.content import check_count
from esc_arch.zoo.foreign import with_tables

# Best first: the averaged weights of BasicSR and its relatives, then the plain ones.
PARAM_KEYS = ("params_ema", "params")
_SPELLINGS = {"params_ema": ("params_ema", "params-ema"), "params": ("params",)}
# What trainers put around the tensors of a network, and in front of their names.
_WRAPPERS = (
    *("model_state_dict", "state_dict", "model", "net_g", "netG", "generator", "net"),
    *("network_g", "network", "weights", "g"),
)
# Names of averaged networks, such as `ema_state_dict`.
_AVERAGED = re.compile(r"(?:^|[_.-])ema(?:$|[_.-])", re.IGNORECASE)
# Of several networks in one mapping, of a Lightning module or of a .safetensors file that another
# was flattened into, those that are the generator's and the averaged ones, the best first.
_GENERATORS = (
    *("ema_model.", "model_ema.", "net_g_ema.", "generator_ema.", "params_ema."),
    *("net_g.", "netG.", "generator.", "params."),
)
_PREFIXES = (*_GENERATORS, "model.", "net.")
# What torch puts into names where it wraps a network or a part of one.
_OF_TORCH = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_DEEPEST = 8
# Times that weights may be shared by layers.
_MOST_SHARES = 8


def select_params(
    state: Mapping[str, Any], path: str | os.PathLike, param_key: str | None = "params"
) -> dict[str, Tensor]:
    """Pick one network's tensors out of a checkpoint, as BasicSR's `param_key_g` does.

    Args:
        state: What `load_state` returned.
        path: The file, for the error.
        param_key: `params`, `params_ema`, ...; where it is absent, the other of these two, or what
            lies under a wrapper of another trainer, or a file that holds the tensors directly.
            None takes the file as it is.

    Returns:
        Names to tensors, without prefixes such as the `module.` of DataParallel.

    Raises:
        UserError: There are no such tensors in the file, or one of them is not whole and finite.
    """
    where = printable(path)
    found = _find(state, param_key, set())
    if found is None:
        keys = ", ".join(printable(key) for key in list(state)[:5])
        deepest = _deepest_keys(state)
        if deepest and all(isinstance(key, bytes) for key in deepest):
            raise UserError(
                f"{where}: the names of its tensors are bytes, not text; save it anew with names "
                "as str"
            )
        raise UserError(
            f"{where}: has no tensors under '{param_key}' (it has: {keys or 'nothing'})"
        )
    check_count(len(found), path)
    params = _without_prefixes(found)
    for name, value in params.items():
        check_plain(value, f"{where}: '{name}'")
    _check_shares(params.values(), where)
    for name, value in params.items():
        shown = f"{where}: '{printable(name)}'"
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise UserError(
                f"{shown} has values that are not finite (NaN or infinite); the training that "
                "wrote it broke down before: take an older checkpoint"
            )
    return with_tables(params, where)


def param_keys(state: Mapping[str, Any]) -> list[str]:
    """Which of `params` and `params_ema` a checkpoint has; `params` where it has neither."""
    present = [key for key in PARAM_KEYS[::-1] if any(name in state for name in _SPELLINGS[key])]
    return present or ["params"]


def load_weights(
    network: nn.Module, weights: Mapping[str, Tensor], path: str | os.PathLike, strict: bool = True
) -> str | None:
    """Load tensors into a network.

    Args:
        network: The network; may be without memory for its weights (on `meta`).
        weights: What `select_params` returned.
        path: The file, for the error.
        strict: Whether names must be the same on both sides.

    Returns:
        A line to tell where the weights were of another scale and the network resized them.

    Raises:
        UserError: They do not fit.
    """
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    try:
        network.load_state_dict(weights, strict=strict)
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines()[1:]]
        shown = " ".join(reasons[:2]) + (" ..." if len(reasons) > 2 else "")
        shown = _other_options(network, weights) or printable(shown)
        raise UserError(
            f"{printable(path)}: does not fit {type(network).__name__} with these options: {shown}"
        ) from None
    resized = [
        name for name, shape in shapes.items() if name in weights and weights[name].shape != shape
    ]
    if not resized:
        return None
    name = resized[0]
    return (
        f"{printable(path)}: weights of another scale: '{name}' and {len(resized) - 1} more were "
        f"resized from {list(weights[name].shape)} to {list(shapes[name])}"
    )


def _other_options(network: nn.Module, weights: Mapping[str, Tensor]) -> str | None:
    """In which options a file's network of this family is another than the one it is for."""
    from esc_arch.zoo.identify import identify

    try:
        theirs, ours = identify(weights), identify(network.state_dict())
    except UserError:
        return None
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    if not names:
        return None
    of_file, of_network = (
        ", ".join(f"{name}: {options.get(name, 'none')}" for name in names)
        for options in (theirs, ours)
    )
    return f"the file's are {of_file} in place of {of_network}"


def _find(
    state: Mapping[Any, Any], param_key: str | None, seen: set[int], deepest: int = _DEEPEST
) -> Mapping[str, Tensor] | None:
    """The innermost mapping of tensors, by the key that is asked for or by those of trainers.

    `seen` has those that were looked into: a file may hold one in many places, or in itself.
    """
    if _is_flat(state):
        return state
    if param_key is None or deepest == 0 or id(state) in seen:
        return None
    seen.add(id(state))
    inner = [key for key, value in state.items() if isinstance(value, Mapping)]
    averaged = [key for key in inner if isinstance(key, str) and _AVERAGED.search(key)]
    wanted = (param_key, *_SPELLINGS.get(param_key, ()))
    others = [name for key in PARAM_KEYS[::-1] for name in _SPELLINGS[key]]
    known = [key for key in (*wanted, *others, *averaged, *_WRAPPERS) if key in inner]
    # A name that is not known counts where it stands alone.
    for key in known or (inner if len(inner) == 1 else ()):
        if (found := _find(state[key], param_key, seen, deepest - 1)) is not None:
            return found
    return None


def _is_flat(state: Mapping[Any, Any]) -> bool:
    return bool(state) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    )


def _deepest_keys(state: Mapping[Any, Any]) -> list[Any]:
    for _ in range(_DEEPEST):
        inner = [value for value in state.values() if isinstance(value, Mapping)]
        if not inner:
            break
        state = inner[0]
    return list(state)


def _without_prefixes(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # What torch's averaged models count beside the weights.
    params = {name: value for name, value in params.items() if name != "n_averaged"}
    found = {}
    for name, value in params.items():
        found[".".join(part for part in name.split(".") if part not in _OF_TORCH)] = value
    found = found if len(found) == len(params) else params
    for prefix in _GENERATORS:
        own = {name: value for name, value in found.items() if name.startswith(prefix)}
        if own:
            found = own
            break
    while prefix := next((p for p in _PREFIXES if all(n.startswith(p) for n in found)), None):
        found = {name.removeprefix(prefix): value for name, value in found.items()}
        if not found:
            break
    return found


def _check_shares(tensors: Collection[Tensor], where: str) -> None:
    """Refuse tensors that many times over are the same part of a file.

    Raises:
        UserError: They claim far more together than the file holds.
    """
    held = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
    claimed = sum(each.numel() * each.element_size() for each in tensors)
    if claimed > _MOST_SHARES * sum(held.values()):
        raise UserError(
            f"{where}: its {len(tensors)} tensors claim {claimed:,} bytes together but the file "
            f"holds {sum(held.values()):,}"
        )


def check_plain(value: Tensor, shown: str) -> None:
    """Refuse what torch loads from a file and nothing here can use.

    Args:
        value: The tensor.
        shown: Where it was found, for the error.

    Raises:
        UserError: It is no plain tensor of real numbers, or claims more than it holds.
    """
    if value.layout != torch.strided or value.is_nested or value.device.type != "cpu":
        raise UserError(f"{shown} is not a plain tensor; a network's are")
    if value.is_quantized or value.is_complex():
        raise UserError(f"{shown} is of {value.dtype}; a network's tensors are floats")
    if value.is_floating_point() and value.element_size() < 2:
        raise UserError(f"{shown} is of {value.dtype}; save it in float16, bfloat16 or float32")
    # Strides of 0 let a file of some bytes ask for terabytes.
    held = value.untyped_storage().nbytes()
    if value.numel() * value.element_size() > held:
        raise UserError(
            f"{shown} claims {value.numel():,} values but the file holds {held:,} bytes of it"
        )
