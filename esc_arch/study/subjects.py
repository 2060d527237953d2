"""Networks to look at: from an option file, a checkpoint, or a block of options."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from esc_arch.errors import UserError, nearest_first
from esc_arch.ops.windows import pad_to_multiple
from esc_arch.study.complexity import count_parameters
from esc_arch.zoo.loading import load_network
from esc_arch.zoo.local import resolve
from esc_arch.zoo.params import select_params
from esc_arch.zoo.store import load_state


@dataclass(frozen=True)
class Subject:
    """A network to analyse.

    Attributes:
        label: What to call it.
        network: In evaluation mode, without gradients of its own.
        network_g: Its option block.
        weights: The file its weights are from; None if it is untrained.
    """

    label: str
    network: nn.Module
    network_g: dict[str, Any]
    weights: str | None

    @property
    def parameters(self) -> int:
        """Number of learned values."""
        return count_parameters(self.network)

    def __call__(self, x: Tensor) -> Tensor:
        """Super-resolve as BasicSR's test does with ESCModel: padded to whole windows, cropped.

        Args:
            x: (B, 3, H, W), RGB in [0, 1].

        Returns:
            (B, 3, s * H, s * W).

        Raises:
            UserError: The network cannot take pictures of this size, or in colour.
        """
        # BasicSR's SwinIR keeps its window size to itself.
        window_size = self.network_g.get("window_size", getattr(self.network, "window_size", 1))
        padded = pad_to_multiple(x, window_size if isinstance(window_size, int) else 1)
        try:
            out = self.network(padded)
        except (RuntimeError, AssertionError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            size = f"{x.shape[-1]}x{x.shape[-2]}"
            raise UserError(f"{self.label}: cannot take a {size} RGB picture: {reason}") from error
        scale = out.shape[-1] // padded.shape[-1]
        return out[..., : scale * x.shape[-2], : scale * x.shape[-1]]


def subject_from_options(path: str) -> Subject:
    """Read the network, and the weights at `pretrain_network_g`, of an option file.

    Args:
        path: The file, for training or for testing.

    Raises:
        UserError: The file, the network or the weights cannot be used.
    """
    options = read_option_file(path, "-opt")
    network_g = options["network_g"]
    network = _build(network_g, f"-opt {path}: network_g")
    paths = options.get("path") or {}
    weights = paths.get("pretrain_network_g")
    if weights is not None:
        file = resolve(weights)
        state = select_params(load_state(file), file, paths.get("param_key_g", "params"))
        try:
            network.load_state_dict(state, strict=paths.get("strict_load_g", True))
        except RuntimeError as error:
            raise UserError(
                f"{file}: not the weights of network_g in {path}: {_one_line(error)}"
            ) from None
        weights = str(file)
    return Subject(Path(path).stem, network, network_g, weights)


def subject_from_checkpoint(name_or_path: str) -> Subject:
    """Find the network that a checkpoint of the ESC family holds.

    Args:
        name_or_path: A file, or the name of a published or shipped checkpoint.

    Raises:
        UserError: There is none, or it holds something else.
    """
    path = resolve(name_or_path)
    network, network_g = load_network(path)
    return Subject(path.stem, network, network_g, str(path))


def subject_from_yaml(text: str) -> Subject:
    """Build a network with random weights (seed 0).

    Args:
        text: Its option block, `{type: ESC, dim: 64, ...}`.

    Raises:
        UserError: The text is no such block, or the network cannot be built.
    """
    try:
        network_g = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--network {text}: not YAML: {_one_line(error)}") from None
    if not isinstance(network_g, dict) or "type" not in network_g:
        raise UserError(f"--network {text}: must be an option block, {{type: ESC, dim: 64, ...}}")
    network = _build(network_g, "--network")
    return Subject(f"{network_g['type']} (untrained)", network, network_g, None)


def read_option_file(path: str, flag: str) -> dict[str, Any]:
    """Read an option file that has a network.

    Args:
        path: The file.
        flag: What the user gave it with, for messages.

    Returns:
        The options, `network_g` a dictionary among them.

    Raises:
        UserError: It cannot be read, or has no network.
    """
    try:
        options = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{flag} {path}: {_one_line(error)}; a YAML file is needed") from None
    if not isinstance(options, dict) or not isinstance(options.get("network_g"), dict):
        raise UserError(f"{flag} {path}: has no section network_g")
    return options


def _build(network_g: dict[str, Any], source: str) -> nn.Module:
    options = dict(network_g)
    kind = options.pop("type", None)
    if kind not in ARCH_REGISTRY:
        names = nearest_first(kind, ARCH_REGISTRY.keys())
        raise UserError(f"{source}: type: {kind!r}: no such network is registered; {names}")
    torch.manual_seed(0)
    try:
        network = ARCH_REGISTRY.get(kind)(**options)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{source}: {kind}: {_one_line(error)}") from None
    return network.eval().requires_grad_(False)


def _one_line(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
