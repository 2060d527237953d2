"""ESC for resselt, the loader of the community's trainers.

import esc_arch.resselt
esc_arch.resselt.install()
network = resselt.load_from_file("ESC_light_X2.pth")
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from esc_arch.archs import NETWORKS
from esc_arch.errors import UserError
from esc_arch.ops.windows import pad_to_multiple
from esc_arch.zoo.foreign import with_tables
from esc_arch.zoo.identify import identify
from esc_arch.zoo.loaders import TYPES, network_type

try:
    import resselt
    from resselt.factory import Architecture
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("resselt", "einops"):
        raise
    raise UserError("esc_arch.resselt needs resselt and einops: pip install resselt") from None


class _WholeWindows:
    """Completes windows as the paper's evaluation and `basicsr upscale` do."""

    window_size: int
    upscaling_factor: int

    def forward(self, x: Tensor) -> Tensor:
        height, width = (side * self.upscaling_factor for side in x.shape[-2:])
        return super().forward(pad_to_multiple(x, self.window_size))[..., :height, :width]

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        # resselt hands over what is in the file, in whatever layout that is.
        return super().load_state_dict(with_tables(state_dict, "the state dict"), *args, **kwargs)


# resselt returns networks themselves, and nothing around them that could pad.
_CLASSES = {name: type(name, (_WholeWindows, NETWORKS[name]), {}) for name in TYPES}


class ESCArchitecture(Architecture[nn.Module]):
    """One of the networks; its options are read from the state dict.

    Args:
        name: A key of `esc_arch.archs.NETWORKS`.
    """

    def __init__(self, name: str) -> None:
        super().__init__(uid=name, detect=lambda state: network_type(state) == name)

    def load(self, state_dict: Mapping[str, Any]) -> nn.Module:
        """Build the network that the tensors belong to; resselt then loads them.

        Raises:
            UserError: Tensors are missing, or have shapes that do not fit.
        """
        params = with_tables(state_dict, "the state dict")
        options = identify(params, "the state dict")
        network = _CLASSES[options.pop("type")](**options)
        return self._enhance_model(
            model=network,
            in_channels=3,
            out_channels=3,
            upscale=network.upscaling_factor,
            name=self.id,
        )


def install() -> list[str]:
    """Make resselt load networks of the ESC family; again, it changes nothing.

    Returns:
        The names of the architectures that were added.
    """
    from resselt.archs import internal_registry

    added = [name for name in TYPES if name not in internal_registry]
    for name in added:
        resselt.add(ESCArchitecture(name))
    return added
