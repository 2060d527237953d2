"""Weights that a run starts from."""

from collections.abc import Mapping
from typing import Any

import torch
from basicsr.utils import get_root_logger
from torch import nn

from esc_arch.errors import UserError
from esc_arch.zoo.local import resolve
from esc_arch.zoo.params import load_weights, select_params
from esc_arch.zoo.store import load_state


class LoadingSafely:
    """Mixin, in front of any of BasicSR's models.

    Files are loaded without running code from them, .safetensors too, and by the key that is asked
    for: BasicSR takes another one without a word.
    """

    def load_network(
        self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = "params"
    ) -> None:
        """Load weights; `path: pretrain_network_*`, `strict_load_*` and `param_key_*` name them.

        Args:
            net: The network, perhaps wrapped for several devices.
            load_path: The checkpoint, or the name of a published or shipped one.
            strict: Whether names must be the same on both sides.
            param_key: Which weights of the file; None for BasicSR's own default, `params`.

        Raises:
            UserError: The file cannot be loaded, or does not fit the network.
        """
        net = self.get_bare_model(net)
        load_path = str(resolve(load_path))
        _warn_of_pickles(load_path)
        state = load_state(load_path)
        param_key = self._key_in(state, "params" if param_key is None else param_key, load_path)
        weights = select_params(state, load_path, param_key)
        # Some files hold the tensors directly, or in what another trainer wraps them in.
        has_key = {param_key, param_key.replace("_", "-")} & set(state)
        taken = param_key if has_key else "the only weights in it"
        get_root_logger().info(f"Loading {type(net).__name__} from {load_path} [{taken}].")
        if not strict:
            # A line each; otherwise it is an error of one line.
            self._print_different_keys_loading(net, weights, strict)
        resized = load_weights(net, weights, load_path, strict)
        # Once, though the averaged network is loaded too.
        if resized and resized != getattr(self, "_said_of_scale", None):
            self._said_of_scale = resized
            get_root_logger().warning(resized)

    @staticmethod
    def _key_in(state: Mapping[str, Any], param_key: str, path: str) -> str:
        """The key that the weights are taken from, where the file has keys of weights at all."""
        spellings = {key: (key, key.replace("_", "-")) for key in ("params", "params_ema")}
        there = [key for key, names in spellings.items() if any(name in state for name in names)]
        if param_key in state or param_key in there:
            return param_key
        if param_key not in spellings:
            raise UserError(
                f"param_key: {param_key!r}: {path} has no weights under it; it has "
                f"{', '.join(there) or 'weights without a key (params will do)'}"
            )
        if not there:
            # Tensors directly, or in what another trainer wraps them in.
            return param_key
        get_root_logger().warning(
            f"{path} has no weights under {param_key}: {there[0]} is taken instead."
        )
        return there[0]


class AveragedWeights:
    """Mixin, in front of a model with `LoadingSafely`.

    With `use_ema: true` (top level) pretrained weights are the file's `params_ema`, whatever
    `param_key_g` says.
    """

    def load_network(
        self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = "params"
    ) -> None:
        """Load weights, see `LoadingSafely`; with `use_ema: true` the averaged ones."""
        if self.opt.get("use_ema") and param_key is not None:
            param_key = "params_ema"
        super().load_network(net, load_path, strict, param_key)


# Below it, CVE-2026-24747 lets a crafted pickle get past `weights_only`.
SAFE_PICKLES = (2, 10)


def _warn_of_pickles(path: str) -> None:
    """Say once that this PyTorch does not keep all code out of .pth files."""
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < SAFE_PICKLES and not path.endswith(".safetensors") and not _warned:
        _warned.append(path)
        get_root_logger().warning(
            f"PyTorch {torch.__version__} can be made to run code by a crafted .pth file: take "
            "weights from strangers as .safetensors, or convert them under PyTorch 2.10 or newer "
            "(basicsr convert safetensors)."
        )


_warned: list[str] = []
