"""What traiNNer-redux and neosr call and shape differently in networks of the ESC family."""

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from esc_arch.archs.upsamplers import TRAINNER_UPSAMPLERS
from esc_arch.errors import UserError, printable
from esc_arch.ops.bias import relative_position_bias

Shapes = Mapping[str, tuple[int, ...]]

META = "to_img.MetaUpsample"
"""traiNNer-redux's notes on the upsampler: version, kind, scale, channels. No weight."""

_MOBILE = ".rpe_bias"
_TABLE = ".relative_position_bias"
_UNSHUFFLED_SCALE = 4
_DEFAULT_MID_DIM = 64
_TWO_OR_THREE = (2, 3)
_ANY = tuple(range(2, 65))


class UnknownScale(UserError):
    """The scale shows neither in the tensors nor in notes beside them."""


def with_tables(params: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Undo `to_mobile()`: tables of relative position biases in place of the biases of all pairs.

    Args:
        params: A network's tensors by name.
        where: The file, for the error.

    Raises:
        UserError: Biases are not those of any table.
    """
    found = {}
    for name, value in params.items():
        if not name.endswith(_MOBILE):
            found[name] = value
            continue
        pixels = value.shape[-1]
        window = math.isqrt(pixels)
        if (
            value.dim() != 4
            or value.shape[0] != 1
            or (value.shape[2], window**2) != (pixels, pixels)
        ):
            raise UserError(
                f"{where}: '{printable(name)}' has the shape {list(value.shape)}; "
                "[1, heads, window^2, window^2] is needed"
            )
        dense = value[0].view(-1, window, window, window, window)
        # The query is the window's last pixel for positions before it, and the first for others.
        axis = torch.arange(2 * window - 1)
        query = (window - 1 - axis).clamp(min=0)
        key = (axis - (window - 1)).clamp(min=0)
        table = dense[:, query[:, None], query, key[:, None], key].flatten(1)
        if not torch.equal(relative_position_bias(table, window), value[0]):
            raise UserError(
                f"{where}: '{printable(name)}' depends on more than relative positions; no table "
                "gives it"
            )
        found[name.removesuffix(_MOBILE) + _TABLE] = table
    return found


def read_real_world(
    state_dict: Mapping[str, Any], shapes: Shapes, source: str, scale: int | None
) -> dict[str, Any]:
    """The options in which real-world networks differ, from the shapes of their tails.

    Args:
        state_dict: The network's tensors; of the values only `META`'s are looked at, and these
            only where shapes do not tell.
        shapes: The shapes of the others.
        source: What to call the file in an error.
        scale: What to believe where neither tells.

    Returns:
        `type`, `upscaling_factor` and the options of the upsampler.

    Raises:
        UnknownScale: `scale` is needed.
    """
    tail = {k.removeprefix("to_img."): v for k, v in shapes.items() if k.startswith("to_img.")}
    if "offset.weight" in tail:
        factor = math.isqrt(tail["offset.weight"][0] // 8)
        return {"type": "ESCReal", "upscaling_factor": factor, "use_dysample": True}
    notes = _Notes(state_dict.get(META))
    unshuffle = 1
    if "proj.1.weight" in shapes:
        unshuffle = math.isqrt(shapes["proj.1.weight"][1] // 3)
    upsampler, factor, mid_dim = _read_tail(tail, notes)
    if isinstance(factor, tuple):
        allowed = factor
        factor = _UNSHUFFLED_SCALE if unshuffle > 1 else notes.scale_of(allowed) or scale
        if unshuffle == 1 and factor not in allowed:
            shown = "2 or 3" if allowed == _TWO_OR_THREE else "any number"
            raise UnknownScale(
                f"{source}: by how much it upscales ({shown}) does not show in its tensors, since "
                f"'{META}' is missing or wrong; give the scale: --scale N"
            )
    if upsampler is None:
        # Whatever lacks of the network of the paper is then told by name.
        return {"type": "ESCReal", "upscaling_factor": 4}
    options = {"type": "ESCRealM", "upsampler": upsampler}
    if unshuffle > 1:
        options["unshuffle_mod"] = True
    if mid_dim is None and notes.mid_dim != _DEFAULT_MID_DIM:
        mid_dim = notes.mid_dim
    if mid_dim is not None:
        options["mid_dim"] = mid_dim
    return {**options, "upscaling_factor": factor // unshuffle}


class _Notes:
    """What `META` says, as far as it can be."""

    def __init__(self, value: Any) -> None:
        self.values: list[int] | None = None
        # Converted files may hold it in any type.
        if isinstance(value, Tensor) and value.device.type != "meta" and value.shape == (7,):
            self.values = [round(number) for number in value.double().tolist()]

    @property
    def upsampler(self) -> str | None:
        index = -1 if self.values is None else self.values[1]
        return TRAINNER_UPSAMPLERS[index] if 0 <= index < len(TRAINNER_UPSAMPLERS) else None

    @property
    def mid_dim(self) -> int:
        return _DEFAULT_MID_DIM if self.values is None else max(self.values[5], 1)

    def scale_of(self, allowed: Collection[int]) -> int | None:
        scale = None if self.values is None else self.values[2]
        return scale if scale in allowed else None


def _read_tail(
    tail: Shapes, notes: _Notes
) -> tuple[str | None, int | tuple[int, ...] | None, int | None]:
    """The upsampler, its scale (several where shapes fit each of them) and its inner channels.

    The upsampler is None where it is ESCReal's own, or none that is known.
    """
    for name, shape in tail.items():
        if re.fullmatch(r"[02]\.offset\.weight", name):
            return "dysample", math.isqrt(shape[0] // 8), shape[1]
        if match := re.fullmatch(r"([02])\.conv_offset\.0\.weight", name):
            return "lda", _ANY, tail[f"{match[1]}.proj_q.weight"][1]
    attentions = sum(name.endswith(".conv.0.weight") for name in tail)
    if attentions:
        factor = _TWO_OR_THREE if attentions == 1 else 2**attentions
        return "pa_up", factor, tail["2.conv.0.weight"][0]
    places = [int(m[1]) for name in tail if (m := re.fullmatch(r"(\d+)\.weight", name))]
    places.sort()
    shapes = [tail[f"{place}.weight"] for place in places]
    if places == [0]:
        rows = shapes[0][0]
        if rows == 3:
            return notes.upsampler or "conv", 1, None
        return "pixelshuffledirect", math.isqrt(rows // 3), None
    if places in ([0, 1], [0, 2, 3]) and shapes[-1] == (3, 3, 3, 3):
        factor = 4 if len(places) == 3 else 2 if shapes[0][-1] == 4 else 3
        return "transpose+conv", factor, None
    steps = len(places) - 2
    if places == [2 * i for i in range(steps + 2)] and steps >= 1:
        mid_dim = shapes[0][0]
        return "pixelshuffle", 3 if shapes[1][0] == 9 * mid_dim else 2**steps, mid_dim
    if places == [*range(0, 3 * steps + 1, 3), 3 * steps + 2] and steps >= 1:
        return "nearest+conv", _TWO_OR_THREE if steps == 1 else 2**steps, None
    steps = len(places) - 1
    if places == [*range(1, 3 * steps, 3), 3 * steps] and steps >= 1:
        return "up+conv", 2**steps, None
    doublings = steps // 2
    pairs = [5 * i + k for i in range(doublings) for k in (1, 3)]
    if places == [*pairs, 5 * doublings] and steps >= 1:
        return "up+conv+conv", 2**doublings, None
    return None, None, None
