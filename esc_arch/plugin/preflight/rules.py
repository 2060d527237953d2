"""Types and ranges of the options of BasicSR that no source tells."""

import fnmatch
import math
import re
from collections.abc import Callable
from typing import Any

from esc_arch.plugin.preflight.source import Path

Rule = Callable[[Any], str | None]
"""Takes a value and says what it must be, or None if it is right."""


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, and no truth value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _number(low: float = -math.inf, high: float = math.inf, above: bool = False) -> Rule:
    limits = []
    if low != -math.inf:
        limits.append(f"above {low}" if above else f"at least {low}")
    if high != math.inf:
        limits.append(f"at most {high}")
    wanted = "must be a number " + " and ".join(limits)

    def rule(value: Any) -> str | None:
        right = is_number(value) and low <= value <= high and not (above and value == low)
        return None if right else wanted.rstrip()

    return rule


def _whole(low: int, high: int = 2**53) -> Rule:
    limits = f"at least {low}" if high == 2**53 else f"from {low} to {high}"

    def rule(value: Any) -> str | None:
        # BasicSR's own files write 5000 as `!!float 5e3`.
        right = is_number(value) and low <= value <= high and value == int(value)
        return None if right else f"must be a whole number {limits}"

    return rule


def must_be_bool(value: Any) -> str | None:
    """Rule: true or false."""
    return None if isinstance(value, bool) else "must be true or false"


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) and value.strip() else "must be text"


def _name(value: Any) -> str | None:
    right = isinstance(value, str) and re.fullmatch(r"[^/\\\0\n]{1,150}", value)
    if right and value.strip(". "):
        return None
    return "must be text that can name a folder: at most 150 characters, no slash"


def _section(value: Any) -> str | None:
    return None if isinstance(value, dict) else "must be a section, key: value"


def _list_of(item: Rule, length: int | None = None, what: str = "numbers") -> Rule:
    def rule(value: Any) -> str | None:
        right = isinstance(value, list | tuple) and (length is None or len(value) == length)
        if right and not any(item(part) for part in value):
            return None
        return f"must be a list of {f'{length} ' if length else ''}{what}"

    return rule


def _range(value: Any) -> str | None:
    right = isinstance(value, list | tuple) and len(value) == 2 and all(map(is_number, value))
    return None if right and value[0] <= value[1] else "must be two numbers, [low, high]"


def _one_of(*choices: Any) -> Rule:
    wanted = "must be one of " + ", ".join("~" if c is None else str(c) for c in choices)
    return lambda value: (
        None
        if any(value is c or (value == c and type(value) is type(c)) for c in choices)
        else wanted
    )


def _or_null(rule: Rule) -> Rule:
    return lambda value: None if value is None else rule(value)


def _num_gpu(value: Any) -> str | None:
    if value == "auto" or _whole(0)(value) is None:
        return None
    return "must be auto or a whole number at least 0"


def _seed(value: Any) -> str | None:
    return _or_null(_whole(0, 2**32 - 65537))(value)


def is_template(value: Any) -> str | None:
    """Rule: a template of file names."""
    try:
        if isinstance(value, str) and value.format("a") != value.format("b"):
            return None
    except (ValueError, IndexError, KeyError, AttributeError, TypeError):
        pass
    return "must be text with {} for the file name, such as '{}x2'"


_PROBABILITY = _number(0, 1)
_DATASET = "datasets:*:"

RULES: list[tuple[str, Rule]] = [
    ("name", _name),
    ("model_type", _text),
    ("scale", _whole(1)),
    ("num_gpu", _num_gpu),
    ("manual_seed", _seed),
    ("find_unused_parameters", must_be_bool),
    ("datasets", _section),
    ("datasets:*", _section),
    ("network_*", _section),
    ("path", _section),
    ("train", _section),
    ("val", _or_null(_section)),
    ("logger", _section),
    ("dist_params", _section),
    ("dist_params:backend", _text),
    ("dist_params:port", _whole(1, 65535)),
    (_DATASET + "name", _name),
    (_DATASET + "type", _text),
    (_DATASET + "io_backend", _section),
    (_DATASET + "filename_tmpl", is_template),
    (_DATASET + "gt_size", _or_null(_whole(1))),
    (_DATASET + "use_hflip", must_be_bool),
    (_DATASET + "use_rot", must_be_bool),
    (_DATASET + "num_worker_per_gpu", _whole(0, 4096)),
    (_DATASET + "batch_size_per_gpu", _whole(1, 65536)),
    (_DATASET + "dataset_enlarge_ratio", _number(0, above=True)),
    (_DATASET + "prefetch_mode", _one_of(None, "cpu", "cuda")),
    (_DATASET + "num_prefetch_queue", _whole(1)),
    (_DATASET + "pin_memory", must_be_bool),
    (_DATASET + "persistent_workers", must_be_bool),
    (_DATASET + "on_bad_sample", _one_of("stop", "skip")),
    (_DATASET + "mean", _or_null(_list_of(_number()))),
    (_DATASET + "std", _or_null(_list_of(_number()))),
    (_DATASET + "kernel_prob*", _list_of(_number(0))),
    (_DATASET + "kernel_list*", _list_of(_text, what="kernel names")),
    (_DATASET + "*sinc_prob*", _PROBABILITY),
    (_DATASET + "blur_sigma*", _range),
    (_DATASET + "bet?g_range*", _range),
    (_DATASET + "betap_range*", _range),
    ("resize_prob*", _list_of(_number(0), 3)),
    ("resize_range*", _range),
    ("noise_range*", _range),
    ("poisson_scale_range*", _range),
    ("jpeg_range*", _range),
    ("gaussian_noise_prob*", _PROBABILITY),
    ("gray_noise_prob*", _PROBABILITY),
    ("second_blur_prob", _PROBABILITY),
    ("*gt_usm", must_be_bool),
    ("gt_size", _whole(1)),
    ("queue_size", _whole(1)),
    ("high_order_degradation", must_be_bool),
    ("path:strict_load_*", must_be_bool),
    ("path:param_key_*", _or_null(_text)),
    ("path:pretrain_network_*", _or_null(_text)),
    ("path:resume_state", _or_null(_text)),
    ("path:resume_schedule", _one_of("state", "options")),
    ("train:total_iter", _whole(1)),
    ("train:warmup_iter", _whole(-1)),
    ("train:ema_decay", _PROBABILITY),
    ("train:net_d_iters", _whole(1)),
    ("train:net_d_init_iters", _whole(0)),
    ("train:optim_*", _section),
    ("train:optim_*:type", _text),
    ("train:optim_*:lr", _number(0, above=True)),
    ("train:optim_*:weight_decay", _number(0)),
    ("train:optim_*:betas", _list_of(_number(0, 1 - 2**-53), 2, "numbers from 0 to below 1")),
    ("train:scheduler", _section),
    ("train:scheduler:type", _text),
    ("train:scheduler:milestones", _list_of(_whole(0), what="iterations")),
    ("train:scheduler:gamma", _number(0, above=True)),
    ("train:scheduler:periods", _list_of(_whole(1), what="iterations")),
    ("train:scheduler:restarts", _list_of(_whole(0), what="iterations")),
    ("train:scheduler:restart_weights", _list_of(_number(0))),
    ("train:scheduler:eta_min", _number(0)),
    ("train:*_opt", _or_null(_section)),
    ("train:grad_clip", _or_null(_number(0, above=True))),
    ("train:use_grad_clip", must_be_bool),
    ("train:max_bad_steps", _whole(1)),
    ("use_amp", _one_of(False, True, None, "bfloat16", "float16")),
    ("train:use_amp", _one_of(False, True, None, "bfloat16", "float16")),
    ("val:val_freq", _whole(1)),
    ("val:save_img", must_be_bool),
    ("val:pbar", must_be_bool),
    ("val:suffix", _or_null(_name)),
    ("val:metrics", _or_null(_section)),
    ("val:metrics:*", _section),
    ("val:metrics:*:crop_border", _whole(0)),
    ("val:metrics:*:test_y_channel", must_be_bool),
    ("val:metrics:*:better", _one_of("higher", "lower")),
    *(
        (prefix + key, rule)
        for prefix in ("", "val:")
        for key, rule in (
            ("tile", _or_null(_section)),
            ("tile:tile_size", _whole(1)),
            ("tile:tile_pad", _whole(0)),
        )
    ),
    ("logger:print_freq", _whole(1)),
    ("logger:save_checkpoint_freq", _whole(1)),
    ("logger:keep_checkpoints", _or_null(_whole(1))),
    ("logger:use_tb_logger", must_be_bool),
    ("logger:wandb", _or_null(_section)),
    ("logger:wandb:project", _or_null(_text)),
    ("logger:wandb:resume_id", _or_null(_text)),
]

_FREE_TEXT = ("name", "*:name", "val:suffix", "logger:wandb:*", "path:*", _DATASET + "data*")


def matches(path: Path, pattern: str) -> bool:
    """Whether a path fits a pattern, key by key; `*` stands for any text within one key."""
    parts = pattern.split(":")
    return len(parts) == len(path) and all(map(fnmatch.fnmatchcase, path, parts))


def is_free_text(path: Path) -> bool:
    """Whether any text is right at a path, also text that looks like a number."""
    return any(fnmatch.fnmatchcase(":".join(path), pattern) for pattern in _FREE_TEXT)
