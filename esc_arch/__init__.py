"""ESC super-resolution networks (ICCV 2025), by themselves and as a BasicSR plugin.

Importing this package costs nothing: not even torch is imported. Networks, models and data sets are
registered with BasicSR when BasicSR is imported, before or after.
"""

from typing import TYPE_CHECKING, Any

from esc_arch.plugin.registration import watch_for_basicsr

if TYPE_CHECKING:
    from esc_arch.inference.load import load as load
    from esc_arch.inference.upscaler import Upscaler as Upscaler

__all__ = ["Upscaler", "load"]

watch_for_basicsr()


def __getattr__(name: str) -> Any:
    if name == "load":
        from esc_arch.inference.load import load

        return load
    if name == "Upscaler":
        from esc_arch.inference.upscaler import Upscaler

        return Upscaler
    raise AttributeError(f"module 'esc_arch' has no attribute '{name}'")
