"""Checks of network options: each error names the option, its value and what would be right."""

from esc_arch.errors import UserError


def require_positive_int(**options: int) -> None:
    """Check options that count something.

    Args:
        **options: Values by name.

    Raises:
        UserError: One is not an integer of at least 1.
    """
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name} is {value!r}; it must be an integer of at least 1")


def require_odd(**options: int) -> None:
    """Check sides of kernels.

    Args:
        **options: Values by name.

    Raises:
        UserError: One is not an odd integer of at least 1.
    """
    require_positive_int(**options)
    for name, value in options.items():
        if value % 2 == 0:
            raise UserError(f"{name} is {value}; it must be odd")


def require_ratio(dim: int, **options: float) -> None:
    """Check options that give hidden channels over `dim`.

    Args:
        dim: Number of channels.
        **options: Values by name.

    Raises:
        UserError: One is not a number, leaves no hidden channel, or is above 1000, where a network
            would not fit any memory.
    """
    for name, value in options.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 1 <= dim * value <= 1000 * dim:
            raise UserError(f"{name} is {value!r}; it must be a number from 1 / dim to 1000")


def require_bool(**options: bool) -> None:
    """Check switches.

    Args:
        **options: Values by name.

    Raises:
        UserError: One is neither true nor false.
    """
    for name, value in options.items():
        if not isinstance(value, bool):
            raise UserError(f"{name} is {value!r}; it must be true or false")
