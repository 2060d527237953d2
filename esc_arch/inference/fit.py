"""How much memory is free, and how much a network needs for a pixel."""

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Of what is free, so much is used: other processes grow, and pictures wait before and behind.
USABLE = 0.5
# More than any network of the family needs in float32; where this fits, nothing is measured.
MOST_BYTES_PER_PIXEL = 32_000
# What operators need inside, beside their results.
_HIDDEN = 1.5
_PROBE = 96


def free_memory(device: torch.device, root: Path = Path("/")) -> int | None:
    """Bytes that this process can still get, or None where nothing tells.

    Args:
        device: On which device. Of the CPU's memory, what the process's control groups leave (as
            in containers and SLURM jobs) counts as well as what the machine has.
        root: Where `proc` and `sys` are.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + kept
    if device.type != "cpu":
        return None
    return min([*_of_machine(root / "proc/meminfo"), *_of_groups(root)], default=None)


def _of_machine(meminfo: Path) -> Iterator[int]:
    for line in _lines(meminfo):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _of_groups(root: Path) -> Iterator[int]:
    """What each control group that the process is in leaves; the first version's and today's."""
    for line in _lines(root / "proc/self/cgroup"):
        number, kinds, group = line.split(":", 2)
        if number == "0":
            base, limit, used = root / "sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in kinds.split(","):
            base = root / "sys/fs/cgroup/memory"
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        here = base / group.lstrip("/")
        for folder in [here, *here.parents]:
            values = [*_lines(folder / limit), *_lines(folder / used)]
            if len(values) == 2 and all(value.isdecimal() for value in values):
                # Files that are cached, and not in use, are given up for new memory.
                cached = sum(
                    int(line.split()[1])
                    for line in _lines(folder / "memory.stat")
                    if line.startswith(("inactive_file ", "total_inactive_file "))
                )
                yield max(int(values[0]) - max(int(values[1]) - cached, 0), 0)
            if folder == base:
                break


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def bytes_per_pixel(network: nn.Module) -> float:
    """How much memory the network needs for an LR pixel, measured on a small picture."""
    weight = next(network.parameters())
    lq = torch.rand(1, 3, _PROBE, _PROBE, device=weight.device, dtype=weight.dtype)
    with torch.inference_mode(), _LiveTensors() as live:
        network(lq)
    return _HIDDEN * live.most / _PROBE**2


class _LiveTensors(TorchDispatchMode):
    """Adds up the memory of the tensors that operators make, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.most = self._now = 0
        self._sizes: dict[int, int] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else torch's compiler is imported, which takes 100 MB where memory is what is short.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                key = storage._cdata
                if key not in self._sizes:
                    self._sizes[key] = storage.nbytes()
                    self._now += storage.nbytes()
                    self.most = max(self.most, self._now)
                    weakref.finalize(storage, self._gone, key)
        return result

    def _gone(self, key: int) -> None:
        self._now -= self._sizes.pop(key, 0)
