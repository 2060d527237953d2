"""Registers the package before any test imports BasicSR, which does not import without it."""

import esc_arch  # noqa: F401
