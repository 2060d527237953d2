"""The errors that users can cause, and text of unknown origin made fit for a line."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A value given by the user is wrong.

    The message is one line that names the option, the value it has, and what would be right; or a
    line for each of several. The `basicsr` command prints it without a traceback and ends with
    status 2.

    Args:
        *lines: What is not printable in them is escaped: names come from files, too.

    Attributes:
        lines: The lines.
    """

    def __init__(self, *lines: object) -> None:
        self.lines = [printable(line) for line in lines]
        super().__init__(*self.lines)

    def __str__(self) -> str:
        return "\n".join(self.lines)


def printable(text: object) -> str:
    """Text from a file or a file name with all that is not printable escaped.

    Control characters could forge lines or move the cursor; a name that is not UTF-8 has
    characters that no terminal takes.

    Args:
        text: Anything; its `str()` is used.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in str(text)
    )


@contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
    """Tell in one line of a file on a disk that fails, or on a share that goes away.

    Args:
        path: The file that is read within.

    Raises:
        UserError: In place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def nearest_first(written: object, known: Iterable[str], most: int = 8) -> str:
    """The end of an error about a name that is not known: those that are, the most alike first.

    Args:
        written: What the user wrote.
        known: The names that there are.
        most: How many of them to show.
    """
    import difflib

    def unlikeness(name: str) -> tuple[float, str]:
        return -difflib.SequenceMatcher(None, name.lower(), word).ratio(), name

    word = str(written)[:100].lower()
    names = sorted(set(known), key=unlikeness)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"there are {', '.join(names[:most])}{more}"
