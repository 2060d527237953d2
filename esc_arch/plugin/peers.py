"""The paper's peers as networks of option files, from the packages that have them."""

import functools
import importlib
import inspect
from typing import Any

from torch import nn

from esc_arch.errors import UserError

# Name -> where its class is; None where no package has it.
_SOURCES: dict[str, str | None] = {
    "ATD": "spandrel.architectures.ATD",
    "OmniSR": "spandrel.architectures.OmniSR",
    "PLKSR": "spandrel.architectures.PLKSR",
    "SRFormer": "spandrel_extra_arches.architectures.SRFormer",
    "HiT_SRF": None,
}


class Peer:
    """A network of others, which stands for its class until somebody builds it.

    Its package is imported only then, for it takes seconds.

    Args:
        name: Name of the network, and of its class.
        module: Where that is; None if in no package.
    """

    def __init__(self, name: str, module: str | None) -> None:
        self.__name__ = self.__qualname__ = name
        self.__doc__ = f"{name}, as {module} has it."
        self._module = module

    @property
    def __signature__(self) -> inspect.Signature:
        signature = inspect.signature(self._class)
        if "use_checkpoint" in signature.parameters:
            return signature
        # Their authors' files have it; here there is nothing that it could change.
        extra = inspect.Parameter("use_checkpoint", inspect.Parameter.KEYWORD_ONLY, default=False)
        return signature.replace(parameters=[*signature.parameters.values(), extra])

    def __call__(self, **options: Any) -> nn.Module:
        """Build it.

        Raises:
            UserError: Its package is not installed, or has not what an option asks for.
        """
        known = inspect.signature(self._class).parameters
        if "use_checkpoint" not in known and options.pop("use_checkpoint", False):
            raise UserError(
                f"use_checkpoint is true; {self.__name__} of spandrel cannot do that: leave it out"
            )
        return self._class(**options)

    @functools.cached_property
    def _class(self) -> type[nn.Module]:
        name = self.__name__
        if self._module is None:
            raise UserError(
                f"{name} is in no package that pip installs; register the authors' class under "
                f"this name (ARCH_REGISTRY.register() of BasicSR) and it is used"
            )
        try:
            return getattr(importlib.import_module(self._module), name)
        except ModuleNotFoundError as error:
            package = self._module.partition(".")[0]
            if (error.name or "").partition(".")[0] not in ("spandrel", "spandrel_extra_arches"):
                raise
            raise UserError(
                f"{name} needs the package {package.replace('_', '-')}: "
                "pip install 'esc-arch[peers]'"
            ) from None


PEERS = {name: Peer(name, module) for name, module in _SOURCES.items()}
