"""ESC for spandrel, the library by which chaiNNer, ComfyUI and others load networks.

import esc_arch.spandrel
esc_arch.spandrel.install()
model = spandrel.ModelLoader().load_from_file("ESC_light_X2.pth")
"""

from typing import Any

from torch import Tensor, nn

from esc_arch.archs import NETWORKS
from esc_arch.errors import UserError
from esc_arch.ops.windows import pad_to_multiple
from esc_arch.zoo.foreign import with_tables
from esc_arch.zoo.identify import identify
from esc_arch.zoo.loaders import TYPES, network_type

try:
    from spandrel import (
        MAIN_REGISTRY,
        Architecture,
        ArchSupport,
        ImageModelDescriptor,
        ModelTiling,
        StateDict,
    )
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "spandrel":
        raise
    raise UserError("esc_arch.spandrel needs spandrel: pip install spandrel") from None


class ESCArchitecture(Architecture[nn.Module]):
    """One of the networks; its options are read from the state dict.

    Args:
        name: A key of `esc_arch.archs.NETWORKS`.
    """

    def __init__(self, name: str) -> None:
        super().__init__(id=name, detect=lambda state: network_type(state) == name)

    def load(self, state_dict: StateDict) -> ImageModelDescriptor[nn.Module]:
        """Build the network that the tensors belong to, and load them.

        Raises:
            UserError: Tensors are missing, or have shapes that do not fit.
        """
        params: dict[str, Any] = with_tables(state_dict, "the state dict")
        options = identify(params, "the state dict")
        network = NETWORKS[options["type"]](**{k: v for k, v in options.items() if k != "type"})
        scale = options["upscaling_factor"]
        upsampler = options.get("upsampler", "dysample" if options.get("use_dysample") else None)
        return ImageModelDescriptor(
            network,
            params,
            architecture=self,
            purpose="Restoration" if scale == 1 else "SR",
            tags=[
                f"{options['dim']}dim",
                f"{options['n_blocks']}nb",
                f"{options['window_size']}ws",
                *([upsampler] if upsampler else []),
            ],
            supports_half=True,
            supports_bfloat16=True,
            scale=scale,
            input_channels=3,
            output_channels=3,
            # ConvAttn makes kernels from the mean of all that it is given.
            tiling=ModelTiling.DISCOURAGED,
            call_fn=_upscale_padded,
        )


def _upscale_padded(network: nn.Module, image: Tensor) -> Tensor:
    """As in the paper's evaluation, and as `basicsr upscale`: padded to whole windows."""
    height, width = (side * network.upscaling_factor for side in image.shape[-2:])
    return network(pad_to_multiple(image, network.window_size))[..., :height, :width]


def install(*, ignore_duplicates: bool = True) -> list[ArchSupport]:
    """Make spandrel load networks of the ESC family.

    Args:
        ignore_duplicates: Keep architectures of the same names that are there already, such as
            from an earlier call; otherwise they are an error of spandrel's.

    Returns:
        What was added.
    """
    supports = [ArchSupport.from_architecture(ESCArchitecture(name)) for name in TYPES]
    return MAIN_REGISTRY.add(*supports, ignore_duplicates=ignore_duplicates)
