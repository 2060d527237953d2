"""Registered with BasicSR on import."""

from esc_arch.models import esc_model  # noqa: F401
