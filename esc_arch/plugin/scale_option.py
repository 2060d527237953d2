"""The scale of a network, which trainers name differently or take from the top of their files."""

import inspect
from collections.abc import Mapping, MutableMapping
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY


def name_the_scale(options: Mapping[str, Any]) -> None:
    """Give `network_g` its `upscaling_factor`, in place.

    neosr and traiNNer-redux call it `scale`, and fill it in from the file's own `scale`; so is it
    here for their networks. The networks of the paper must have it, but may call it `scale`.

    Args:
        options: An option file; whatever is wrong with it is left as it is.
    """
    network_g = options.get("network_g")
    if not isinstance(network_g, MutableMapping):
        return
    name = network_g.get("type")
    network = ARCH_REGISTRY._obj_map.get(name) if isinstance(name, str) else None
    if not getattr(network, "__module__", "").startswith("esc_arch.archs."):
        return
    keywords = inspect.signature(network).parameters
    if "upscaling_factor" not in keywords or "upscaling_factor" in network_g:
        return
    if "scale" in network_g:
        network_g["upscaling_factor"] = network_g.pop("scale")
    elif "scale" in keywords and "scale" in options:
        network_g["upscaling_factor"] = options["scale"]
