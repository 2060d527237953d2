"""The error that a user can cause and can mend, of everything in this package."""

from sr_data.errors import UserError

__all__ = ["UserError"]
