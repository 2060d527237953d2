"""How errors show values: always on one line, never long."""

import difflib
from collections.abc import Iterable
from typing import Any


def show(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return "a huge number"
    return text if len(text) <= 80 else f"{text[:60]}..."


def one_line(text: Any) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= 300 else f"{line[:300]}..."


def did_you_mean(name: Any, known: Iterable[str], cutoff: float = 0.6) -> str:
    close = difflib.get_close_matches(str(name)[:100], list(known), n=1, cutoff=cutoff)
    return f"; did you mean {close[0]}?" if close else ""
