"""Options that this package adds to models and data sets of others, who may mean else by them."""

from typing import Any

from esc_arch.errors import UserError


def own_value(path: str, value: Any, reader: Any, default: Any = None) -> Any:
    """The value of an option of this package's, checked by the rule that preflight has for it.

    Args:
        path: Of the option, `train:warmup`.
        value: What the options say; None where they do not.
        reader: The model or data set. Where a plugin's code reads the key, it may have any value.
        default: What holds where there is none, or none of ours.

    Raises:
        UserError: The value cannot be used, and nobody else reads it.
    """
    # Here, for preflight knows models by what these are made of.
    from esc_arch.plugin.preflight.known import is_known, keys_of_plugins
    from esc_arch.plugin.preflight.table import rule_of

    parts = tuple(path.split(":"))
    wanted = None if value is None else rule_of(parts)(value)
    if wanted and not is_known(parts[-1], keys_of_plugins(reader)):
        raise UserError(f"{': '.join(parts)}: {value!r}: {wanted}")
    return default if value is None or wanted else value
