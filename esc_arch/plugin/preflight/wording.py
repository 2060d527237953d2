"""How findings show values and names: always on one line, never long, with hints that are right."""

import difflib
from collections.abc import Iterable
from typing import Any

_SUFFIXES = ("Model", "Loss", "Dataset")


def show(value: Any) -> str:
    """A value as a finding shows it."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return "a huge number"
    return text if len(text) <= 80 else f"{text[:60]}..."


def one_line(text: Any) -> str:
    """Text on one line, cut where it is long, with control characters escaped."""
    words = " ".join(str(text).split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)
    return line if len(line) <= 300 else f"{line[:300]}..."


def meant_key(key: str, known: Iterable[str], likeness: float = 0.8) -> str:
    """The end of a finding: the known key that was probably meant, or nothing.

    Args:
        key: What the user wrote.
        known: Keys that are read, and not there already.
        likeness: How much alike they must be, 0 to 1 (difflib).
    """
    written = key[:100].lower()
    best, best_likeness = None, likeness
    for other in sorted(known):
        alike = difflib.SequenceMatcher(None, other.lower(), written).ratio()
        # `y_channel` for `test_y_channel`, but not `type` for `optim_type`.
        if "_" in written and (other.endswith(f"_{written}") or other.startswith(f"{written}_")):
            alike = max(alike, 0.9)
        if alike >= best_likeness and (best is None or alike > best_likeness):
            best, best_likeness = other, alike
    return f"; did you mean {best}?" if best else ""


def meant_type(name: str, known: Iterable[str]) -> str:
    """The end of a finding: the registered name that was surely meant, or nothing.

    Names of other repositories are often close to one here (HATModel, SRModel; L2Loss, L1Loss).
    So only letter case, two letters changed about, and a letter too few or too many count, the
    latter in long names or in what all such names end with.
    """
    written = name[:100].lower()
    for other in known:
        correct = other.lower()
        swaps = (
            written[:n] + written[n + 1] + written[n] + written[n + 2 :]
            for n in range(len(written) - 1)
        )
        if written == correct or correct in swaps:
            return f"; did you mean {other}?"
    for other in known:
        correct = other.lower()
        if abs(len(correct) - len(written)) != 1:
            continue
        short, long = sorted((written, correct), key=len)
        place = next((n for n, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), -1)
        stem = next((other.removesuffix(s) for s in _SUFFIXES if other.endswith(s)), other)
        in_suffix = place >= len(stem) or place == -1
        if (in_suffix or len(stem) >= 6) and short[place:] == long[place + 1 :]:
            return f"; did you mean {other}?"
        if place == -1 and long.startswith(short):
            return f"; did you mean {other}?"
    return ""
