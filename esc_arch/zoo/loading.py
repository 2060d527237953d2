"""Checkpoints of the ESC family: what network a file holds, and that network ready to run."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from esc_arch.errors import UserError, printable
from esc_arch.zoo.card import card_of
from esc_arch.zoo.foreign import META
from esc_arch.zoo.identify import build_on_meta, identify
from esc_arch.zoo.params import PARAM_KEYS, param_keys, select_params
from esc_arch.zoo.store import read_file


@dataclass(frozen=True)
class Checkpoint:
    """A file's network.

    Attributes:
        path: The file.
        network_g: The option block that builds the network.
        params: The tensors under `params`, `params_ema` or both. A file of bare tensors has them
            under `params`.
        metadata: Its card, and other text that a .safetensors file carries beside its tensors.
    """

    path: Path
    network_g: dict[str, Any]
    params: dict[str, dict[str, Tensor]]
    metadata: dict[str, str]

    @property
    def best(self) -> dict[str, Tensor]:
        """The averaged weights (EMA) where there are any, as in the paper's evaluation."""
        return next(self.params[key] for key in PARAM_KEYS if key in self.params)

    @property
    def parameters(self) -> int:
        """Number of parameters of the network; buffers do not count."""
        return sum(value.numel() for value in build_on_meta(self.network_g).parameters())


def read_checkpoint(path: str | os.PathLike, scale: int | None = None) -> Checkpoint:
    """Read a file and find out what network it holds.

    Args:
        path: A .pth as BasicSR saves it, a file of bare tensors, a .safetensors, or what other
            trainers write; the content decides.
        scale: By how much it upscales, for the few files of which nothing tells that.

    Returns:
        Its network and tensors.

    Raises:
        UserError: One line: the file is missing, damaged, or holds something else.
    """
    path = Path(path)
    state, metadata = read_file(path)
    shown = printable(path)
    if "optimizers" in state and "schedulers" in state:
        raise UserError(
            f"{shown}: is a training state, which has no network in it; the networks of a run are "
            "in its models folder"
        )
    keys = param_keys(state)
    metadata = metadata or card_of(state)
    params = {key: select_params(state, path, key) for key in keys}
    networks = [
        identify(tensors, f"{shown}{f' ({key})' if len(keys) > 1 else ''}", scale)
        for key, tensors in params.items()
    ]
    for tensors in params.values():
        for name, value in tensors.items():
            if not value.is_floating_point() and name != META:
                raise UserError(f"{shown}: '{name}' is of {value.dtype}; a network's are floats")
    if any(network != networks[0] for network in networks):
        raise UserError(f"{shown}: params and params_ema are of different networks")
    return Checkpoint(path, networks[0], params, metadata)


def load_network(
    path: str | os.PathLike,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[nn.Module, dict[str, Any]]:
    """Build the network that a file holds, for evaluation, with its best weights.

    Args:
        path: As for `read_checkpoint`.
        device: Where to put it.
        dtype: What to compute in.

    Returns:
        The network in evaluation mode without gradients, and its option block.

    Raises:
        UserError: As `read_checkpoint`.
    """
    checkpoint = read_checkpoint(path)
    return build_network(checkpoint, device, dtype), checkpoint.network_g


def build_network(
    checkpoint: Checkpoint, device: str | torch.device, dtype: torch.dtype
) -> nn.Module:
    """The network of a checkpoint with its best weights, in evaluation mode without gradients."""
    network = build_on_meta(checkpoint.network_g)
    network.load_state_dict(checkpoint.best, strict=True, assign=True)
    return network.eval().requires_grad_(False).to(device, dtype)
