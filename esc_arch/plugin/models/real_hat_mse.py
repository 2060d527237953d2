"""The first stage of ESC-Real under the name that the authors' option files use."""

from typing import Any, ClassVar

from basicsr.models.realesrnet_model import RealESRNetModel

from esc_arch.plugin.models.esc_model import ESCModel


class RealHATMSEModel(ESCModel, RealESRNetModel):
    """First stage: ESCModel on the pairs that BasicSR's RealESRNetModel makes.

    Beyond the options of both: `gt_usm` may be absent (false).
    """

    option_defaults: ClassVar = {"gt_usm": False}

    def __init__(self, opt: dict[str, Any]) -> None:
        """Build as ESCModel does, and what makes the pairs.

        Args:
            opt: The parsed option file.
        """
        for name, value in self.option_defaults.items():
            opt.setdefault(name, value)
        super().__init__(opt)
