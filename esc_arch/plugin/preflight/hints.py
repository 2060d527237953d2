"""What an unread key was probably meant to be, where it belongs, and how much it matters."""

import fnmatch
import inspect
import re
from typing import Any

from basicsr.models.base_model import BaseModel
from basicsr.utils.registry import MODEL_REGISTRY

from esc_arch.errors import UserError
from esc_arch.plugin.models.optimizers import optimizer_class
from esc_arch.plugin.preflight.known import keys_read, parameters_of
from esc_arch.plugin.preflight.report import Path, Report
from esc_arch.plugin.preflight.table import homes_of, loop_keys, rule_of
from esc_arch.plugin.preflight.wording import meant_key

_ELSEWHERE = {
    "pretrain_model_g": "path: pretrain_network_g",
    "pretrain_model_d": "path: pretrain_network_d",
    "pretrained_model": "path: pretrain_network_g",
    "pretrained_netg": "path: pretrain_network_g",
    "pretrained_netd": "path: pretrain_network_d",
    "pretrain_netg": "path: pretrain_network_g",
    "pretrain_netd": "path: pretrain_network_d",
    "clip_grad_norm": "train: grad_clip",
    "gradient_clip": "train: grad_clip",
}
"""What is called otherwise here; only where the file does not have that already."""
_WEIGHTS = (".pth", ".pt", ".ckpt", ".safetensors")


def hint_for(report: Report, path: Path, reader: type | None) -> str:
    """The end of a finding about an unread key: what was probably meant, or where it belongs.

    Args:
        report: The options.
        path: The key.
        reader: The model or data set that does not read it; None where the model is not known.
    """
    *section, key = path
    elsewhere = _ELSEWHERE.get(key.lower())
    if "seed" in key.lower().split("_"):
        elsewhere = "manual_seed at the top level"
    if elsewhere:
        place = tuple(word for word in elsewhere.split(" at ")[0].split(": "))
        return "" if report.get(*place) is not None else f"; here it is {elsewhere}"
    if homes := [home for home in homes_of(path) if _is_read_there(report, home, key, reader)]:
        places = [_place(report, home) for home in homes]
        # Never what is there already.
        taken = any(report.get(*place.split(": "), key) is not None for place in places if place)
        at_top = "" in places and report.get(key) is not None
        names = " or ".join(f"under {place}" if place else "at the top level" for place in places)
        return "" if taken or at_top else f"; it belongs {names}"
    there = report.section(*section)
    known = {"pretrain_network_g"} if reader is None else keys_read(reader, tuple(section))
    known |= loop_keys(tuple(section))
    filled = {k.replace("*", "g", 1) if k.endswith("_*") else k for k in known}
    names = {k for k in filled if re.fullmatch(r"\w+", k) and k != key}
    rules = {":".join((*section, k)) for k in names}
    # Strings that are surely options come first: others may be anything.
    options = {r.split(":")[-1] for r in rules if rule_of(tuple(r.split(":"))) is not None}
    return meant_key(key, options, taken=there) or meant_key(key, names, 0.88, there)


def _is_read_there(report: Report, home: str, key: str, reader: type | None) -> bool:
    """Whether a key is surely read in a section: by the loop, the model, or what is called."""
    section = tuple(home.split(":")) if home else ()
    if home == "train:optim_*":
        try:
            described = parameters_of(optimizer_class(report.get("train", "optim_g", "type")))
        except UserError:
            return False
        return described is not None and key in described[0]
    if key in loop_keys(section) or home == "val:metrics:*":
        return True
    return reader is not None and section[:1] != ("datasets",) and key in keys_read(reader, section)


def _place(report: Report, home: str) -> str:
    """A section as users read it, `train: optim_g` for `train:optim_*`."""
    parts = [part for part in home.split(":") if part]
    for depth, part in enumerate(parts):
        there = [k for k, v in report.section(*parts[:depth]).items() if isinstance(v, dict)]
        fitting = [k for k in there if fnmatch.fnmatchcase(k, part)]
        stem = {"datasets": "train", "metrics": "psnr"}.get(parts[depth - 1] if depth else "", "")
        parts[depth] = fitting[0] if fitting else part.replace("*", stem or "g")
    return ": ".join(parts)


def is_grave(path: Path, value: Any) -> bool:
    """Whether an unread key means that something else is trained than asked for."""
    key, words = path[-1], set(path[-1].lower().split("_"))
    if value is None or value is False or value in ("", {}, []):
        return False
    if words & {"seed", "pretrain", "pretrained"} or key.startswith(("resume_state", "param_key_")):
        return True
    is_loss = any(map(_describes_loss, value if isinstance(value, list) else [value]))
    if is_loss and (key.endswith("_opt") or "losses" in words):
        return True
    if path[0] != "train" and len(path) > 1:
        return False
    if isinstance(value, str) and value.endswith(_WEIGHTS):
        return True
    # Some write `pixel_criterion: l1` and `pixel_weight: 1`, each loss's weight a key of its own.
    is_weight = words & {"weight", "weights"} and type(value) in (int, float)
    return bool(words & {"loss", "losses", "criterion"} or is_weight) and value != 0


def _describes_loss(value: Any) -> bool:
    return isinstance(value, dict) and ("type" in value or any("weight" in str(k) for k in value))


def models_that_read(path: Path, model: type) -> str:
    """The end of a finding about a key that a model does not read: which models of BasicSR's do.

    Args:
        path: The unread key.
        model: The model that is asked for.
    """
    *section, key = path
    if key in ("type", "name") or not issubclass(model, BaseModel):
        return ""
    models = {name.removesuffix("_basicsr"): c for name, c in MODEL_REGISTRY._obj_map.items()}
    names = [
        name
        for name, other in models.items()
        if inspect.isclass(other)
        and not issubclass(model, other)
        and key in keys_read(other, tuple(section))
    ]
    base = next((c for c in inspect.getmro(model) if c in models.values()), None)
    for name in sorted(names):
        other = models[name]
        if other.__module__.startswith("esc_arch.") and base in other.__bases__:
            return f"; write model_type: {name}, which does all that {base.__name__} does"
    # Of very many, none is the one that was meant.
    if not names or len(names) > 12:
        return ""
    # The one that most others stand on, and those that do, rather than what is akin by chance.
    family = {name: [n for n in names if issubclass(models[n], models[name])] for name in names}
    first = min(names, key=lambda name: (-len(family[name]), name))
    names = [first, *sorted(set(family[first]) - {first})]
    reads = "reads it" if len(names) == 1 else "read it: take one of them"
    return f"; {', '.join(names[:3])} {reads}, or leave it out"
