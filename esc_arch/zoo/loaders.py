"""Which state dicts are ours, for the libraries that load networks of all kinds."""

from collections.abc import Mapping
from typing import Any

from esc_arch.zoo.foreign import META

TYPES = ("ESC", "ESCFP", "ESCReal", "ESCRealM")
# No other network has all of these.
_KEYS = (
    "blocks.0.attn.to_qkv.weight",
    "blocks.0.convffns.0.dwc.weight",
    "blocks.0.pconvs.0.aggr.weight",
    "last.weight",
)
_BIASES = ("relative_position_bias", "rpe_bias", "flashbias_q")


def network_type(state_dict: Mapping[str, Any]) -> str | None:
    """The network of ours that a state dict belongs to, by its keys; None for those of others."""
    if not all(key in state_dict for key in _KEYS):
        return None
    if not any(f"blocks.0.attn.{bias}" in state_dict for bias in _BIASES):
        return None
    if "lk_channel" in state_dict:
        return "ESCFP"
    if "plk_filter" not in state_dict:
        return None
    if not any(key.startswith("skip.") for key in state_dict):
        return "ESC" if "to_img.weight" in state_dict else None
    places = {key.split(".")[1] for key in state_dict if key.startswith("to_img.")}
    places.discard(META.split(".")[1])
    own = places in ({"1", "4", "6", "8"}, {"offset", "scope", "init_pos", "end_conv"})
    return "ESCReal" if own else "ESCRealM"
