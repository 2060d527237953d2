"""Data sets, registered with BasicSR on import, and what prepares their files."""

from esc_arch.data import downsample_dataset  # noqa: F401
