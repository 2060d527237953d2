"""The scale of a network, which trainers name differently or take from the top of their files."""

import inspect
from collections.abc import Mapping, MutableMapping
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY


def name_the_scale(options: Mapping[str, Any]) -> None:
    """Give `network_g` its `upscaling_factor`, in place.

    neosr and traiNNer-redux call it `scale`, and fill it in from the file's own `scale`; so is it
    here for their networks. The networks of the paper must have it, but may call it `scale`, or
    `upscale` as SwinIR, HAT and most others do. Whole numbers may be written as 4.0.

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
    for keyword, value in network_g.items():
        is_whole = keyword in keywords and keywords[keyword].annotation in (int, "int")
        if (is_whole or keyword == "upscale") and type(value) is float and value.is_integer():
            network_g[keyword] = int(value)
    if "upscaling_factor" not in keywords or "upscaling_factor" in network_g:
        return
    for other in ("scale", "upscale"):
        if other in network_g:
            network_g["upscaling_factor"] = network_g.pop(other)
            return
    if "scale" in keywords and "scale" in options:
        network_g["upscaling_factor"] = options["scale"]
