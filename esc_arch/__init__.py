"""ESC for BasicSR: importing this package registers its archs, models and datasets."""

from esc_arch import compat

compat.apply()

from esc_arch import archs, data, models  # noqa: E402, F401
