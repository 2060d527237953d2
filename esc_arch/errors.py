"""The errors that users can cause."""


class UserError(ValueError):
    """A value given by the user is wrong.

    The message is one line that names the option, the value it has, and what would be right. The
    `basicsr` command prints it without a traceback and ends with status 2.
    """
