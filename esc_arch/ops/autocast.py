"""Autocast on any device: torch's own functions fail where it has none, as on MPS before 2.5."""

import contextlib
from contextlib import AbstractContextManager

import torch

_DEVICES = tuple(
    device
    for device in ("cpu", "cuda", "mps", "xpu", "hpu", "xla", "mtia")
    if torch.amp.is_autocast_available(device)
)


def autocast_dtype(device: str) -> torch.dtype | None:
    """Return what autocast computes in on a type of devices; None where it is off."""
    if device in _DEVICES and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def without_autocast(device: str) -> AbstractContextManager:
    """Switch autocast off on a type of devices, where they have it."""
    if device in _DEVICES:
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()
