"""A place to build a network in, to see whether its options fit."""

import contextlib
import functools
import io
import itertools
import random
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

MAX_BUILD_CALLS = 5_000_000
"""Function calls after which a network counts as too large to build; ESC-XL takes about 60,000."""


class Blocked(PermissionError):
    """Building a network tried to write, download or start something."""


class TooLarge(BaseException):
    """Building a network took too many steps."""


_sandboxed = False
_WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "socket.connect", "subprocess.Popen"}


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _sandboxed:
        return
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & 3
    if writes or event in _WRITES or event == "socket.getaddrinfo":
        raise Blocked(event)


@functools.lru_cache(maxsize=1)
def _install_audit_hook() -> None:
    # Python cannot take an audit hook away again: it is switched by `_sandboxed` instead.
    sys.addaudithook(_audit)


@contextlib.contextmanager
def sandbox() -> Iterator[None]:
    """Let code run that writes nothing, opens no connection, prints nothing and ends."""
    global _sandboxed
    _install_audit_hook()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    calls = itertools.count()

    def count(frame: Any, event: str, argument: Any) -> None:
        if next(calls) > MAX_BUILD_CALLS:
            raise TooLarge

    profiler = sys.getprofile()
    silence = io.StringIO()
    with (
        contextlib.redirect_stdout(silence),
        contextlib.redirect_stderr(silence),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        _sandboxed = True
        sys.setprofile(count)
        try:
            yield
        finally:
            sys.setprofile(profiler)
            _sandboxed = False
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])
