"""What all processes of a training must agree on before they go on from a state."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from basicsr.utils.dist_util import get_dist_info

from esc_arch.errors import UserError


def same_everywhere(load_resume_state: Callable[[dict], dict | None]) -> Callable:
    """Refuse to resume where the processes do not find the same state."""

    @functools.wraps(load_resume_state)
    def load(opt: dict[str, Any]) -> dict[str, Any] | None:
        state = load_resume_state(opt)
        rank, world_size = get_dist_info()
        if world_size > 1:
            iterations = [None] * world_size
            torch.distributed.all_gather_object(iterations, state["iter"] if state else 0)
            if len(set(iterations)) > 1:
                raise UserError(
                    f"rank {rank} would go on from iteration {iterations[rank]}, others from "
                    f"{', '.join(str(i) for i in sorted(set(iterations) - {iterations[rank]}))}: "
                    "all machines must see the same experiments folder; start the command in one "
                    "that they share, or copy the experiment to each"
                )
        return state

    return load
