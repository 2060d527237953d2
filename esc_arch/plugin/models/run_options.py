"""What a run was asked for, kept in its training states: a resumed run tells what has changed."""

import fnmatch
from collections.abc import Iterator, Mapping
from typing import Any

from esc_arch.errors import printable

# Where a run goes and how it is watched, not what it trains; and what may be longer when resumed.
_LEFT_OUT = {"name", "path", "val", "logger", "dist_params", "num_gpu", "card"}
_LEFT_OUT |= {"is_train", "dist", "rank", "world_size", "auto_resume", "root_path", "seed_drawn"}
_LEFT_OUT_OF_TRAIN = {"total_iter", "accumulate_steps"}
# How data is loaded, and what BasicSR adds; the batch counts as a whole.
_LEFT_OUT_OF_DATA = {"phase", "scale", "num_worker_per_gpu", "prefetch_mode", "num_prefetch_queue"}
_LEFT_OUT_OF_DATA |= {"pin_memory", "persistent_workers", "batch_size_per_gpu", "batch_size"}
# Of these the training state decides, see `resuming`.
_OF_THE_STATE = ("train:optim_*:*", "train:scheduler:*")
_MANY = 8


def run_options(opt: Mapping[str, Any]) -> dict[str, Any]:
    """What decides about the course of a run, by the option's path, as plain values.

    Args:
        opt: The options, as they were parsed.
    """
    data = opt.get("datasets") or {}
    kept = {
        **_without(opt, _LEFT_OUT),
        "train": _without(opt["train"], _LEFT_OUT_OF_TRAIN),
        "datasets": {key: _without(each, _LEFT_OUT_OF_DATA) for key, each in data.items()},
        "val": {"metrics": (opt.get("val") or {}).get("metrics") or {}},
    }
    if opt.get("seed_drawn"):
        kept.pop("manual_seed", None)
    batch = data.get("train", {}).get("batch_size_per_gpu")
    if batch is not None:
        devices = opt["world_size"] if opt.get("dist") else max(opt.get("num_gpu", 1), 1)
        kept["images an iteration"] = batch * devices
    return dict(_leaves(kept))


def _without(section: Mapping[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key not in keys}


def _leaves(section: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}:")
        else:
            yield f"{above}{key}", _plain(value)


def _plain(value: Any) -> Any:
    """A value that a file can hold without code."""
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if value is None or type(value) in (bool, int, float, str) else str(value)


def changed_options(saved: Any, now: Mapping[str, Any]) -> dict[str, str]:
    """What a run is resumed with that is not as it was.

    Args:
        saved: What its training state kept of `run_options`; anything, where it is a stranger's.
        now: The options now.

    Returns:
        By path what was and what is, as text; nothing where that is not known.
    """
    if not isinstance(saved, Mapping):
        return {}
    before = {path: _plain(value) for path, value in saved.items() if isinstance(path, str)}
    return {
        path: f"{_shown(before, path)} -> {_shown(now, path)}"
        for path in {**now, **before}
        if before and before.get(path) != now.get(path)
        if path.endswith(":type")
        or not any(fnmatch.fnmatchcase(path, pattern) for pattern in _OF_THE_STATE)
    }


def _shown(options: Mapping[str, Any], path: str) -> str:
    value = options.get(path)
    text = "none" if value is None else printable(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def in_one_line(changed: Mapping[str, str]) -> str:
    """The changes as text."""
    parts = [f"{printable(path)} {change}" for path, change in changed.items()]
    more = [f"{len(parts) - _MANY} more"] if len(parts) > _MANY else []
    return ", ".join([*parts[:_MANY], *more])


def measured_otherwise(
    changed: Mapping[str, str], saved: Mapping[str, Any], now: Mapping[str, Any]
) -> set[str]:
    """Metrics of the validation whose older values are of another measure.

    Args:
        changed: Of `changed_options`.
        saved: The options before.
        now: The options now.
    """
    start = "val:metrics:"
    names = [
        {path.split(":")[2] for path in each if isinstance(path, str) and path.startswith(start)}
        for each in (changed, saved, now)
    ]
    # One that is added or left out is no other measure.
    return set.intersection(*names)
