"""Data sets, registered with BasicSR on import."""

from esc_arch.data import downsample_dataset  # noqa: F401
