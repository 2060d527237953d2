"""How errors show values: always on one line, never long."""

import difflib
from collections.abc import Iterable
from typing import Any


def show(value: Any) -> str:
    """A value as an error shows it."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return "a huge number"
    return text if len(text) <= 80 else f"{text[:60]}..."


def one_line(text: Any) -> str:
    """Text without line breaks, cut where it is long."""
    line = " ".join(str(text).split())
    return line if len(line) <= 300 else f"{line[:300]}..."


def did_you_mean(name: Any, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The end of an error: the known name that was probably meant, or nothing.

    Args:
        name: What the user wrote.
        known: What there is.
        cutoff: How much alike they must be, 0 to 1 (difflib).
    """
    known = sorted(known) if isinstance(known, set) else list(known)
    written = str(name)[:100]
    # Names are short: difflib takes ESC for less like ECS than ECBSR is.
    letters = sorted(written.lower())
    close = [other for other in known if sorted(other.lower()) == letters]
    if not close:
        likeness = {
            other: difflib.SequenceMatcher(None, other.lower(), written.lower()).ratio()
            for other in known
        }
        # Of several as close, the one named first.
        best = max(likeness, key=likeness.__getitem__, default=None)
        close = [best] if best is not None and likeness[best] >= cutoff else []
    return f"; did you mean {close[0]}?" if close else ""
