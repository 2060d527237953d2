"""Pretrained weights as the authors' option files ask for them."""

from torch import nn


class AveragedWeights:
    """Mixin, in front of a model with `Checkpointing`.

    With `use_ema: true` (top level) pretrained weights are the file's `params_ema`, whatever
    `param_key_g` says.
    """

    def load_network(
        self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = "params"
    ) -> None:
        """Load weights, see `Checkpointing`; with `use_ema: true` the averaged ones."""
        if self.opt.get("use_ema") and param_key is not None:
            param_key = "params_ema"
        super().load_network(net, load_path, strict, param_key)
