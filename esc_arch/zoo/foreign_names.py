"""Networks that two trainers have in common, under the names of either."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from esc_arch.archs.upsamplers import TRAINNER_UPSAMPLERS
from esc_arch.errors import UserError
from esc_arch.zoo.foreign import META
from esc_arch.zoo.identify import build_on_meta

# ESCReal's DySample stands alone, traiNNer-redux's is the first of a sequence.
_OURS, _THEIRS = "to_img.", "to_img.0."

Named = tuple[dict[str, Any], dict[str, Tensor]]


def to_basicsr(network_g: Mapping[str, Any], params: Mapping[str, Tensor]) -> Named:
    """Take the paper's network where a network of traiNNer-redux is the same.

    Args:
        network_g: Its option block, of any network that is read here.
        params: Its tensors by name.

    Returns:
        Both under the names of the paper; as they were, where the paper has no such network.
    """
    same = network_g.get("upsampler") == "dysample" and network_g["mid_dim"] == network_g["dim"]
    if not same or network_g.get("unshuffle_mod"):
        return dict(network_g), dict(params)
    others = ("upsampler", "mid_dim")
    options = {key: value for key, value in network_g.items() if key not in others}
    return (
        {**options, "type": "ESCReal", "use_dysample": True},
        {
            name.replace(_THEIRS, _OURS) if name.startswith(_THEIRS) else name: value
            for name, value in params.items()
            if name != META
        },
    )


def to_trainner(network_g: Mapping[str, Any], params: Mapping[str, Tensor], source: str) -> Named:
    """Write a network as traiNNer-redux does.

    Args:
        network_g: Its option block.
        params: Its tensors by name.
        source: The file, for the error.

    Returns:
        Both as `ESCRealM` has them, with the notes that traiNNer-redux keeps on the upsampler.

    Raises:
        UserError: traiNNer-redux has no such network.
    """
    options = dict(network_g)
    named = dict(params)
    if options.pop("use_dysample", False):
        options |= {"type": "ESCRealM", "upsampler": "dysample", "mid_dim": options["dim"]}
        named = {
            name.replace(_OURS, _THEIRS) if name.startswith(_OURS) else name: value
            for name, value in params.items()
        }
    upsampler = options.get("upsampler")
    if upsampler not in TRAINNER_UPSAMPLERS or options.get("attn_type") == "FlashBias":
        kind = options.get("attn_type") or upsampler or options["type"]
        raise UserError(
            f"{source}: traiNNer-redux has no such network ({kind}); it has ESCReal with "
            f"use_dysample, and ESCRealM with {', '.join(TRAINNER_UPSAMPLERS)}"
        )
    named[META] = build_on_meta(options).state_dict()[META]
    return options, named
