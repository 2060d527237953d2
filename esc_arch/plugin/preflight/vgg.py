"""Whether the VGG network of a perceptual loss has the layers and the weights that it needs."""

import os
import urllib.error
import urllib.request
from typing import Any

from esc_arch.plugin.preflight.report import Path, Report
from esc_arch.plugin.preflight.table import is_number
from esc_arch.plugin.preflight.wording import meant_key, show


def check(report: Report, path: Path) -> None:
    """Check the layers that a perceptual loss names, and that VGG's weights are to be had.

    Args:
        report: The options.
        path: The loss.
    """
    from basicsr.archs.vgg_arch import NAMES, VGG_PRETRAIN_PATH, insert_bn

    options = report.section(*path)
    kind = options.get("vgg_type", "vgg19")
    plain = kind.replace("_bn", "") if isinstance(kind, str) else None
    if plain not in NAMES:
        known = ", ".join(f"{name}, {name}_bn" for name in NAMES)
        report.error((*path, "vgg_type"), f"must be one of {known}, not {show(kind)}")
        return
    layers = insert_bn(NAMES[plain]) if "bn" in kind else NAMES[plain]
    weights = options.get("layer_weights")
    if not isinstance(weights, dict):
        place = (*path, "layer_weights")
        report.error(place, f"must be a section, layer: weight, not {show(weights)}")
        return
    criterion = options.get("criterion", "l1")
    if criterion not in ("l1", "fro"):
        report.error((*path, "criterion"), f"must be l1 or fro, not {show(criterion)}")
    for layer, weight in weights.items():
        if not is_number(weight):
            report.error(
                (*path, "layer_weights", str(layer)), f"must be a number, not {show(weight)}"
            )
        if layer not in layers:
            hint = meant_key(str(layer), layers) or f"; it has {', '.join(layers[-5:])} and others"
            report.error((*path, "layer_weights", str(layer)), f"no such layer in {kind}{hint}")
    if not os.path.exists(VGG_PRETRAIN_PATH):
        _check_download(report, path, kind, VGG_PRETRAIN_PATH)


def _check_download(report: Report, path: Path, kind: str, wanted: str) -> None:
    import torch.hub
    import torchvision.models

    address = torchvision.models.get_model_weights(kind)["IMAGENET1K_V1"].url
    name = address.rpartition("/")[2]
    kept = os.path.join(torch.hub.get_dir(), "checkpoints", name)
    if os.path.exists(kept):
        return
    # BasicSR looks at one file only, whatever the type.
    places = f"{wanted} and {kept}" if name == os.path.basename(wanted) else kept
    if _answers(address):
        report.warn((*path, "vgg_type"), f"{kind}'s weights will be downloaded to {kept}")
    else:
        report.error(
            (*path, "vgg_type"),
            f"{kind}'s weights are neither there nor to be downloaded; looked for at {places}; "
            f"bring {address} to one of these places from a machine with a network",
        )


def _answers(address: str) -> bool:
    request: Any = urllib.request.Request(address, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=5):
            return True
    except (OSError, ValueError, urllib.error.URLError):
        return False
