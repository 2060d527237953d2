"""The random generators of Python, NumPy and torch: read, set, and kept as they are."""

import contextlib
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from basicsr.utils.dist_util import get_dist_info

# Of the Mersenne Twister.
_WORDS = 624


@contextlib.contextmanager
def random_states_kept() -> Iterator[None]:
    """Within it the generators of Python, NumPy and torch may be used; after it they are as before.

    Torch's on the CPU only.
    """
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])


def random_states_of_all_processes() -> list[dict[str, Any]]:
    """Read the generators, the current GPU's among them. All processes must call it.

    Returns:
        One a process, by rank, of types that `checkpoint_io.load_state` loads.
    """
    _, world_size = get_dist_info()
    states = [_random_states()] * world_size
    if world_size > 1:
        torch.distributed.all_gather_object(states, states[0])
    return states


def set_random_states(states: Sequence[Mapping[str, Any]]) -> bool:
    """Set the generators of this process.

    Args:
        states: What `random_states_of_all_processes` returned.

    Returns:
        Whether that was of as many processes as there are now; otherwise nothing is set.

    Raises:
        ValueError: They are none, as are other exceptions.
    """
    rank, world_size = get_dist_info()
    if len(states) != world_size:
        return False
    state = states[rank]
    version, words, gauss = state["python"]
    name, keys, position, has_gauss, cached = state["numpy"]
    # NumPy reads its words from there, wherever that may be.
    if type(position) is not int or not 0 <= position <= _WORDS or keys.shape != (_WORDS,):
        raise ValueError("NumPy's random state is none")
    if not all(given is None or type(given) is float for given in (gauss, cached)):
        raise ValueError("a random number is none")
    random.setstate((version, tuple(words), gauss))
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.random.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    return True


def _random_states() -> dict[str, Any]:
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.random.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state
