"""Calling registered things to see whether their options fit, without a trace and with an end."""

import contextlib
import io
import itertools
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from esc_arch.inference.fit import free_memory
from esc_arch.plugin.preflight.report import Report
from esc_arch.plugin.preflight.wording import unshared

MAX_CALLS = 5_000_000
"""Function calls after which a network counts as too large to build; ESC-XL takes about 60,000."""


def failure(function: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> Exception | None:
    """The error of a call that options describe; None if it works, or is too large to try."""
    try:
        with quietly():
            function(*arguments, **unshared(keywords))
    except (TooLarge, MemoryError, PermissionError):
        pass
    except Exception as error:
        return error
    return None


class TooLarge(BaseException):  # noqa: N818
    """Building took too many steps; no Exception, so that nothing on the way catches it."""


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Let code run that prints nothing, ends, and leaves the random generators as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    calls = itertools.count()

    def count(frame: Any, event: str, argument: Any) -> None:
        number = next(calls)
        # In the middle of torch's own calls an exception would leave its default device changed;
        # where a layer begins nothing is halfway.
        begins = event == "call" and frame.f_code is nn.Module.__init__.__code__
        if number > MAX_CALLS and (begins or number > 2 * MAX_CALLS):
            raise TooLarge

    profiler = sys.getprofile()
    silence = io.StringIO()
    with (
        contextlib.redirect_stdout(silence),
        contextlib.redirect_stderr(silence),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        sys.setprofile(count)
        try:
            yield
        finally:
            sys.setprofile(profiler)
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])


def check_room(report: Report, built: Mapping[str, nn.Module]) -> None:
    """Refuse networks whose weights do not fit into memory, beside their gradients in training."""
    free = free_memory(torch.device("cpu"))
    if free is None:
        return
    for key, network in built.items():
        held = [*network.parameters(), *network.buffers()]
        needed = sum(each.numel() * each.element_size() for each in held)
        needed *= 2 if report.is_train else 1
        if needed > free:
            report.error(
                (key,),
                f"its weights need {needed / 2**30:.3g} GiB of memory, of which "
                f"{free / 2**30:.3g} are free",
            )
