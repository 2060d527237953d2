"""BasicSR's own options: types and ranges, what its loop reads, and what must be there.

Plugins add to the tables: `table.RULES.append(("train:teacher_weight", table.number(0)))`. Rules
hold for keys that something reads, see `known`; the first that fits counts.
"""

import fnmatch
import math
import re
import unicodedata
from collections.abc import Callable
from typing import Any

from esc_arch.plugin.preflight.report import Path

Rule = Callable[[Any], str | None]
"""Takes a value and says what it must be, or None if it is right."""

MAX_NAME_BYTES = 180
"""File systems take 255; BasicSR adds the time, and what it archives a folder as."""


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, and no truth value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def number(low: float = -math.inf, high: float = math.inf, above: bool = False) -> Rule:
    """Rule: a number between two others, and not the lower one itself if `above`."""
    limits = []
    if low != -math.inf:
        limits.append(f"above {low}" if above else f"at least {low}")
    if high != math.inf:
        limits.append(f"at most {high}")
    wanted = ("must be a number " + " and ".join(limits)).rstrip()

    def rule(value: Any) -> str | None:
        right = is_number(value) and low <= value <= high and not (above and value == low)
        return None if right else wanted

    return rule


class Whole:
    """Rule: a whole number; 2.0 and BasicSR's own `!!float 5e3` are whole numbers too."""

    is_whole = True

    def __init__(self, low: int, high: int = 2**53) -> None:
        self.low, self.high = low, high

    def __call__(self, value: Any) -> str | None:
        limits = f"at least {self.low}" if self.high == 2**53 else f"from {self.low} to {self.high}"
        right = is_number(value) and self.low <= value <= self.high and value == int(value)
        return None if right else f"must be a whole number {limits}"


def truth(value: Any) -> str | None:
    """Rule: true or false, or what BasicSR, which tests for truth, takes for that."""
    right = isinstance(value, bool) or value is None or value in (0, 1)
    return None if right else "must be true or false"


def anything(value: Any) -> str | None:
    """Rule: any value; whoever reads it checks it."""
    return None


def text(value: Any) -> str | None:
    """Rule: text that is not empty."""
    return None if isinstance(value, str) and value.strip() else "must be text"


def is_plain(value: str) -> bool:
    """Whether text moves no cursor and turns no line about; joiners, of some scripts, are plain."""
    joined = value.translate({0x200C: None, 0x200D: None})
    return not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in joined)


def name(value: Any) -> str | None:
    """Rule: text that can name a folder."""
    if type(value) in (int, float, bool):
        return "must be text that can name a folder; put it in quotes"
    right = isinstance(value, str) and re.fullmatch(r"[^/\\\0\n]+", value) and value.strip(". ")
    if not right or not is_plain(value):
        return "must be text that can name a folder, without a slash or control characters"
    size = len(value.encode("utf-8", "surrogatepass"))
    if size > MAX_NAME_BYTES:
        return f"is too long for a folder: {size} bytes in UTF-8, at most {MAX_NAME_BYTES} fit"
    return None


def folder(value: Any) -> str | None:
    """Rule: text that can name a folder, or one within another."""
    parts = value.split("/") if isinstance(value, str) else [value]
    return next(filter(None, map(name, parts)), None)


def place(value: Any) -> str | None:
    """Rule: where a folder may be."""
    right = isinstance(value, str) and value.strip() and is_plain(value)
    return None if right else "must be the path of a folder, without control characters"


def suffix(value: Any) -> str | None:
    """Rule: what can end the name of a file."""
    return None if type(value) in (int, float) else name(value)


def section(value: Any) -> str | None:
    """Rule: a mapping."""
    return None if isinstance(value, dict) else "must be a section, key: value"


def list_of(item: Rule, length: int | None = None, what: str = "numbers") -> Rule:
    """Rule: a list whose parts follow another rule."""

    def rule(value: Any) -> str | None:
        right = isinstance(value, list | tuple) and (length is None or len(value) == length)
        if right and not any(item(part) for part in value):
            return None
        return f"must be a list of {f'{length} ' if length else ''}{what}"

    return rule


def span(value: Any) -> str | None:
    """Rule: two numbers, the lower first."""
    right = isinstance(value, list | tuple) and len(value) == 2 and all(map(is_number, value))
    return None if right and value[0] <= value[1] else "must be two numbers, [low, high]"


def iterations(value: Any) -> str | None:
    """Rule: an iteration, a list of them, or none."""
    values = value if isinstance(value, list | tuple) else [value]
    right = value is None or not any(map(Whole(1), values))
    return None if right else "must be an iteration, or a list of them"


def one_of(*choices: Any) -> Rule:
    """Rule: one of some values."""
    wanted = "must be one of " + ", ".join("~" if c is None else str(c) for c in choices)
    return lambda value: (
        None if any(value == c and type(value) is type(c) for c in choices) else wanted
    )


def or_false(rule: Rule) -> Rule:
    """Rule: another rule, or what says that there is to be nothing of it."""
    return lambda value: None if value is None or value is False else rule(value)


def or_null(rule: Rule) -> Rule:
    """Rule: another rule, or nothing."""

    def optional(value: Any) -> str | None:
        return None if value is None or (value == "" and rule is not section) else rule(value)

    optional.is_whole = isinstance(rule, Whole)
    return optional


def template(value: Any) -> str | None:
    """Rule: a template of file names. It is not filled in here: `{:>3000000000}` would be."""
    fields = re.findall(r"\{[^}]*\}", value) if isinstance(value, str) else []
    rest = re.sub(r"\{[^}]*\}", "", value) if fields else "{"
    plain = all(re.fullmatch(r"\{0?(:[<>^]?\d{0,2}s?)?\}", field) for field in fields)
    if plain and not set(rest) & set("{}"):
        return None
    return "must be text with {} for the file name, such as '{}x2'"


def _num_gpu(value: Any) -> str | None:
    right = value == "auto" or Whole(0)(value) is None
    return None if right else "must be auto or a whole number at least 0"


_num_gpu.is_whole = True


def _norm(value: Any) -> str | None:
    wanted = number(0, above=True)(value)
    return wanted and f"{wanted}, the largest norm of all gradients"


_FORMS = ("", "generalized_", "plateau_")
_KERNELS = [f"{form}{kind}" for form in _FORMS for kind in ("iso", "aniso")]

_GROUPS: tuple[tuple[Rule, str], ...] = (
    (name, "name"),
    (text, "model_type dist_params:backend datasets:train:name datasets:*:type"),
    (text, "train:optim_*:type train:scheduler:type"),
    (or_null(text), "datasets:*:color path:param_key_* path:pretrain_network_* path:resume_state"),
    (or_null(text), "logger:wandb:project logger:wandb:resume_id"),
    (section, "datasets datasets:* datasets:*:io_backend network_* path logger val:metrics:*"),
    (section, "train train:optim_* train:scheduler"),
    (or_null(section), "val val:metrics tile val:tile dist_params logger:wandb card"),
    (or_false(section), "train:*_opt"),
    (anything, "network_*:window_size"),
    (truth, "find_unused_parameters high_order_degradation *gt_usm compile train:compile"),
    (truth, "datasets:*:use_hflip datasets:*:use_rot datasets:*:pin_memory"),
    (truth, "datasets:*:persistent_workers path:strict_load_* train:use_grad_clip"),
    (truth, "val:save_img val:pbar val:metrics:*:test_y_channel logger:use_tb_logger"),
    (_num_gpu, "num_gpu"),
    (or_null(Whole(0, 2**32 - 65537)), "manual_seed"),
    (or_null(Whole(1)), "datasets:*:gt_size datasets:*:scale logger:keep_checkpoints"),
    (Whole(1), "scale gt_size queue_size datasets:*:num_prefetch_queue val:val_freq"),
    (Whole(1), "train:total_iter train:net_d_iters train:max_bad_steps train:accumulate_steps"),
    (Whole(1), "tile:tile_size val:tile:tile_size logger:print_freq logger:save_checkpoint_freq"),
    (Whole(0), "tile:tile_pad val:tile:tile_pad train:net_d_init_iters"),
    (Whole(-1), "train:warmup_iter"),
    (Whole(1, 65535), "dist_params:port"),
    (Whole(1, 65536), "datasets:*:batch_size_per_gpu datasets:*:batch_size"),
    (Whole(0, 4096), "datasets:*:num_worker_per_gpu val:metrics:*:crop_border"),
    (number(0), "train:optim_*:weight_decay train:optim_*:momentum"),
    (number(0), "train:scheduler:eta_min train:mesa_opt:start_ratio"),
    (number(0, above=True), "datasets:*:dataset_enlarge_ratio train:optim_*:lr"),
    (number(0, above=True), "train:scheduler:gamma"),
    (number(0, 1), "datasets:*:*sinc_prob* gaussian_noise_prob* gray_noise_prob*"),
    (number(0, 1), "second_blur_prob train:ema_decay"),
    (or_false(_norm), "train:grad_clip train:gradient_clip"),
    (span, "datasets:*:blur_sigma* datasets:*:bet?g_range* datasets:*:betap_range*"),
    (span, "resize_range* noise_range* poisson_scale_range* jpeg_range*"),
    (list_of(number(0), 3), "resize_prob*"),
    (list_of(number(0)), "datasets:*:kernel_prob* train:scheduler:restart_weights"),
    (list_of(one_of(*_KERNELS), what=f"kernels: {', '.join(_KERNELS)}"), "datasets:*:kernel_list*"),
    (or_null(list_of(number())), "datasets:*:mean datasets:*:std"),
    (list_of(number(0, 1 - 2**-53), what="numbers from 0 to below 1"), "train:optim_*:betas"),
    (list_of(Whole(0), what="iterations"), "train:scheduler:milestones train:scheduler:restarts"),
    (list_of(Whole(1), what="iterations"), "train:scheduler:periods"),
    (iterations, "train:reset_momentum_iter"),
    (folder, "datasets:*:name"),
    (or_null(suffix), "val:suffix"),
    (or_null(place), "path:experiments_root"),
    (template, "datasets:*:filename_tmpl"),
    (one_of(None, "cpu", "cuda"), "datasets:*:prefetch_mode"),
    (one_of("stop", "skip"), "datasets:*:on_bad_sample"),
    (one_of("state", "options"), "path:resume_schedule"),
    (one_of(None, "exact"), "train:warmup"),
    (one_of(False, True, None, "bfloat16", "float16"), "use_amp train:use_amp"),
    (one_of("higher", "lower"), "val:metrics:*:better"),
)

RULES: list[tuple[str, Rule]] = [
    (pattern, rule) for rule, patterns in _GROUPS for pattern in patterns.split()
]

FREE_TEXT = ("name", "*:name", "val:suffix", "logger:wandb:*", "path:*", "datasets:*:data*")
"""Where text that looks like a number is right."""

LOOP_KEYS: dict[Path, frozenset[str]] = {
    section: frozenset(keys.split())
    for section, keys in {
        (): "name model_type scale num_gpu manual_seed datasets path train val logger dist_params",
        ("datasets", "*"): "name type io_backend batch_size_per_gpu batch_size num_worker_per_gpu "
        "dataset_enlarge_ratio prefetch_mode num_prefetch_queue pin_memory persistent_workers "
        "on_bad_sample",
        ("path",): "resume_state resume_schedule experiments_root ignore_resume_networks",
        ("train",): "total_iter warmup_iter accumulate_steps",
        ("val",): "val_freq save_img metrics",
        ("logger",): "print_freq save_checkpoint_freq use_tb_logger wandb",
        ("logger", "wandb"): "project resume_id",
        ("dist_params",): "backend port",
    }.items()
}
"""What is read of each section by BasicSR's loop, or by this package's around it."""

AROUND = frozenset("accumulate_steps batch_size on_bad_sample resume_schedule".split())
"""Those of `LOOP_KEYS` that BasicSR does not know."""

IO_BACKENDS: dict[str, dict[str, Rule]] = {
    "disk": {},
    # Data sets set two more. `map_size` and the like, which lmdb takes, change the user's files.
    "lmdb": {"readahead": truth, "lock": truth},
}
"""Keys of each `io_backend` beside `type`."""

_PAIRS = ("dataroot_gt", "dataroot_lq", "io_backend")
_PATCHES = ("gt_size", "use_hflip", "use_rot")
_BLUR = ("blur_kernel_size", "kernel_list", "kernel_prob", "blur_sigma", "betag_range")
_BLUR += ("betap_range", "sinc_prob")
_NOISE = ("resize_prob", "resize_range", "gaussian_noise_prob", "noise_range")
_NOISE += ("poisson_scale_range", "gray_noise_prob", "jpeg_range")

DATA_REQUIRED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "PairedImageDataset": (_PAIRS, _PATCHES),
    "RealESRGANPairedDataset": (_PAIRS, _PATCHES),
    "DownsampleImageDataset": (("dataroot_gt", "io_backend"), _PATCHES),
    "SingleImageDataset": (("dataroot_lq", "io_backend"), ()),
    "RealESRGANDataset": (
        ("dataroot_gt", "io_backend", "use_hflip", "use_rot", "final_sinc_prob", *_BLUR)
        + tuple(f"{key}2" for key in _BLUR),
        (),
    ),
    "FFHQDataset": (("dataroot_gt", "io_backend", "use_hflip", "mean", "std"), ()),
    "REDSDataset": ((*_PAIRS, "num_frame", "meta_info_file", "val_partition", *_PATCHES), ()),
    "Vimeo90KDataset": ((*_PAIRS, "num_frame", "meta_info_file", *_PATCHES), ()),
}
"""What each of BasicSR's data sets, and of their subclasses, must have: always, to train on."""

MODEL_REQUIRED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "SRModel": (("network_g",), ("train:optim_g", "train:scheduler", "train:scheduler:type")),
    "SRGANModel": ((), ("network_d", "train:optim_d", "train:gan_opt")),
    "RealESRNetModel": ((), ("gt_usm",)),
    "RealESRGANModel": ((), ("l1_gt_usm", "percep_gt_usm", "gan_gt_usm")),
    "StyleGAN2Model": (("network_g",), ("network_d", "train:optim_g", "train:optim_d")),
}
"""The same for models; what they need for their own degradation is in `DEGRADATION`."""

DEGRADATION = ("scale", "gt_size", "second_blur_prob", *_NOISE, *(f"{key}2" for key in _NOISE))


def matches(path: Path, pattern: str) -> bool:
    """Whether a path fits a pattern, key by key; `*` stands for any text within one key.

    A key that is no text, as YAML's `~` and `2` are none, fits nothing.
    """
    parts = pattern.split(":")
    return len(parts) == len(path) and all(
        isinstance(key, str) and fnmatch.fnmatchcase(key, part)
        for key, part in zip(path, parts, strict=True)
    )


def rule_of(path: Path) -> Rule | None:
    """The rule for an option, if there is one."""
    return next((rule for pattern, rule in RULES if matches(path, pattern)), None)


def homes_of(path: Path) -> list[str]:
    """Sections that an option belongs to, where it does not to its own; `*` stands for any."""
    *section, key = path
    own = loop_keys(tuple(section))
    if key in ("name", "type") or key in own or rule_of(path) is not None:
        return []
    homes = [":".join(where) for where, keys in LOOP_KEYS.items() if key in keys]
    for pattern, _ in RULES:
        above, _, last = pattern.rpartition(":")
        if last != "*" and fnmatch.fnmatchcase(key, last) and not fnmatch.fnmatchcase("", last):
            homes.append(above)
    return list(dict.fromkeys(homes))


def loop_keys(section: Path) -> frozenset[str]:
    """The keys of a section that BasicSR's loop reads, or this package's around it."""
    return LOOP_KEYS.get(
        ("datasets", "*") if section[:1] == ("datasets",) else section, frozenset()
    )
