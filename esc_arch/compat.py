"""BasicSR 1.4.2 on today's PyTorch: one named patch a defect, applied only where it is present."""

import importlib.util
import sys


def torchvision_functional_tensor() -> None:
    """BasicSR imports `torchvision.transforms.functional_tensor`, removed in torchvision 0.17.

    Upstream: https://github.com/XPixelGroup/BasicSR/issues/711
    """
    name = "torchvision.transforms.functional_tensor"
    if importlib.util.find_spec(name) is None:
        import torchvision.transforms.functional

        sys.modules[name] = torchvision.transforms.functional


def apply() -> None:
    """Apply every patch whose defect is present. Safe to call more than once."""
    torchvision_functional_tensor()
