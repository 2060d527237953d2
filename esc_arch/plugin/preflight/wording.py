"""How findings show values and names: always on one line, never long, with hints that are right."""

import difflib
import os
from collections.abc import Container, Iterable
from typing import Any

_SUFFIXES = ("Model", "Loss", "Dataset")


def unshared(value: Any) -> Any:
    """A copy in which nothing is there by reference only."""
    if isinstance(value, dict):
        return type(value)((key, unshared(part)) for key, part in value.items())
    return [unshared(part) for part in value] if isinstance(value, list) else value


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


def meant_key(
    key: str, known: Iterable[str], likeness: float = 0.8, taken: Container[str] = ()
) -> str:
    """The end of a finding: the known key that was probably meant, or nothing.

    Args:
        key: What the user wrote.
        known: Keys that are read.
        likeness: How much alike they must be, 0 to 1 (difflib).
        taken: Keys that are there already; where one of them is the most alike, none was meant.
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
    return f"; did you mean {best}?" if best and best not in taken else ""


def meant_type(name: str, known: Iterable[str]) -> str:
    """The end of a finding: the registered name that was surely meant, or nothing.

    Names of other repositories are often close to one here (HATModel, SRModel; L2Loss, L1Loss).
    So only letter case, two letters changed about, and a letter too few or too many count, the
    latter in long names or in what all such names end with.
    """
    written = name[:100].lower()
    # AdamW for adamw, not Adam.
    for other in sorted(known, key=lambda each: each.lower() != written):
        correct = other.lower()
        start = len(os.path.commonprefix([written, correct]))
        end = len(os.path.commonprefix([written[start:][::-1], correct[start:][::-1]]))
        # What is left between the beginning and the end that both have.
        rests = written[start : len(written) - end], correct[start : len(correct) - end]
        stem = next((other.removesuffix(s) for s in _SUFFIXES if other.endswith(s)), other)
        is_swap = len(rests[0]) == 2 and rests[0] == rests[1][::-1]
        is_letter = {len(rest) for rest in rests} == {0, 1}
        if written == correct or is_swap or (is_letter and (start >= len(stem) or len(stem) > 5)):
            return f"; did you mean {other}?"
    return ""
