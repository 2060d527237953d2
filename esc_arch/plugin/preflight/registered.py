"""Networks, losses and metrics: that they exist and take their options."""

import inspect
import math
import os
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from basicsr.losses.basic_loss import PerceptualLoss
from basicsr.utils.registry import (
    ARCH_REGISTRY,
    LOSS_REGISTRY,
    METRIC_REGISTRY,
    Registry,
)

from esc_arch.errors import UserError, nearest_first
from esc_arch.plugin.preflight import vgg
from esc_arch.plugin.preflight.build import TooLarge, failure, quietly
from esc_arch.plugin.preflight.keys import registered
from esc_arch.plugin.preflight.known import is_known, keys_of_plugins, parameters_of, words_of
from esc_arch.plugin.preflight.report import Path, Report
from esc_arch.plugin.preflight.table import is_number, truth
from esc_arch.plugin.preflight.wording import meant_key, meant_type, one_line, show, unshared

# BasicSR builds these by their type; a model of others may have sections of its own without.
_LOSSES = ("pixel_opt", "perceptual_opt", "gan_opt", "ldl_opt", "feature_matching_opt")


def registered_type(
    report: Report,
    registry: Registry,
    path: Path,
    what: str,
    instead: str = "",
    reader: type | None = None,
) -> Any:
    """What a `type` names, or None with an error if there is no such thing.

    Args:
        report: The options.
        registry: What is registered.
        path: The `type`.
        what: What the things registered are.
        instead: What else the user can do about a thing of another repository.
        reader: A model that may build what it names by itself.
    """
    name = report.get(*path)
    if path[-1] not in report.section(*path[:-1]) or report.is_wrong(path):
        return None
    if not isinstance(name, str):
        report.error(path, f"must be the name of a {what}, not {show(name)}")
        return None
    found = registered(registry, name)
    if found is None and not is_built_by(reader, name):
        names = [other.removesuffix("_basicsr") for other in registry.keys()]
        hint = meant_type(name, names) or (
            f"; if it is another repository's, install that as a plugin{instead}; here "
            f"{nearest_first(name, names)}"
        )
        report.error(path, f"no {what} {show(name)} is registered{hint}")
    return found


def is_built_by(model: type | None, name: str) -> bool:
    """Whether the code of a plugin's model has the name of a thing that nobody registered."""
    return model is not None and is_known(name, keys_of_plugins(model))


def check_keywords(
    report: Report, path: Path, function: Any, skip: int = 0, extra: Iterable[str] = ("type",)
) -> bool:
    """Check that a section is made of keywords of a callable.

    Args:
        report: The options.
        path: The section.
        function: What is called with the section.
        skip: How many of its first parameters come from elsewhere.
        extra: Keys that are taken out before.

    Returns:
        Whether all is well.
    """
    described = parameters_of(function, skip)
    if described is None:
        return True
    before = len(report.errors)
    parameters, takes_any = described
    section = report.section(*path)
    called = getattr(function, "__name__", str(function))
    for key, value in section.items():
        if key in extra or (*path, key) in report.wrong:
            continue
        if key in parameters:
            wanted = _wrong_type(value, parameters[key])
            if wanted:
                report.error((*path, key), f"{wanted}, not {show(value)}")
        elif not takes_any:
            hint = meant_key(key, parameters, 0.6, section)
            report.error((*path, key), f"{called} takes no such keyword{hint}")
        elif key not in words_of(function):
            hint = meant_key(key, parameters, taken=section)
            report.warn((*path, key), f"{called} ignores this key{hint}")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in section:
            report.error((*path, name), f"missing; {called} needs it")
    return len(report.errors) == before


def _wrong_type(value: Any, parameter: inspect.Parameter) -> str | None:
    """What a keyword must be, judged by its default or else its annotation."""
    default, kind = parameter.default, parameter.annotation
    if default is not parameter.empty:
        if default is None:
            return None
        kind = type(default)
    if kind in (bool, "bool"):
        return truth(value)
    if kind in (int, float, "int", "float"):
        # An int default often stands for any number (weight_decay=0), and ~ for "none of it".
        return None if isinstance(value, int | float) or value is None else "must be a number"
    if kind in (str, "str"):
        return None if isinstance(value, str) or value is None else "must be text"
    if kind in (list, tuple):
        right = isinstance(value, list | tuple | int | float) or value is None
        return None if right else "must be a list"
    return None


def check_network(
    report: Report, key: str, model: type | None, built: dict[str, torch.nn.Module]
) -> None:
    """Check the keywords of a network, and that it can be built of them.

    Args:
        report: The options.
        key: The network's section, `network_g`.
        model: The model that gets it.
        built: Takes the network, without memory for its weights.
    """
    if "type" not in report.section(key):
        if isinstance(report.get(key), dict):
            report.error((key, "type"), "missing; it names the network")
        return
    network = registered_type(report, ARCH_REGISTRY, (key, "type"), "network", reader=model)
    if network is None:
        return
    options = without(report.section(key), "type")
    for name in ("upscaling_factor", "upscale"):
        factor, scale = options.get(name), report.get("scale")
        if key == "network_g" and is_number(factor) and is_number(scale) and factor != scale:
            report.error((key, name), f"is {factor}, but scale is {scale}: they must be the same")
    check_keywords(report, (key,), network)
    # With what is wrong taken back to its default, the rest can be looked at too.
    defaults = (parameters_of(network) or ({},))[0]
    while True:
        for path in [path for path in report.wrong if path[:1] == (key,) and len(path) == 2]:
            options.pop(path[1], None)
        lacking = [n for n, p in defaults.items() if p.default is p.empty and n not in options]
        if (key,) in report.wrong or lacking:
            return
        before = len(report.wrong)
        _build(report, key, network, options, built)
        if len(report.wrong) == before:
            return


def _build(
    report: Report, key: str, network: Any, options: dict[str, Any], built: dict[str, Any]
) -> None:
    try:
        with quietly(), torch.device("meta"):
            made = network(**unshared(options))
    except (TooLarge, MemoryError, RecursionError):
        # A network that is merely large has no keyword this large.
        numbers = [name for name, value in options.items() if is_number(value)]
        largest = max(numbers, key=lambda name: abs(options[name]), default=None)
        if largest is not None and abs(options[largest]) > 4096:
            report.error((key, largest), f"{show(options[largest])} is too large to build")
    except (PermissionError, NotImplementedError):
        pass  # What `quietly` forbids, and what weights without memory cannot do, prove no fault.
    except FileNotFoundError as error:
        report.error((key,), f"no such file: {one_line(error.filename)}")
    except Exception as error:
        text = one_line(error)
        # Some networks read values while they are built, which weights without memory lack.
        if "meta" in text.lower() or isinstance(error, ImportError):
            return
        named = next((n for n in options if re.match(rf"{re.escape(n)}\b", text)), None)
        if named and text.startswith(f"{named} is "):
            report.error((key, named), text.removeprefix(f"{named} "))
        elif any(re.search(rf"\b{re.escape(n)}\b", text) for n in options):
            report.error((key,), text)
        else:
            given = ", ".join(f"{name}: {show(value)}" for name, value in options.items())
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            problem = f"{kind}{text}".rstrip(": ")
            report.error((key,), f"cannot be built of {one_line(given)} ({problem})")
    else:
        if isinstance(made, torch.nn.Module):
            built[key] = made


def check_operators(report: Report, built: dict[str, torch.nn.Module]) -> None:
    """Refuse networks with BasicSR's own GPU operators where these are not compiled."""
    for key, network in built.items():
        for module in network.modules():
            parts = type(module).__module__.split(".")
            names = {"dcn": "deform_conv", "fused_act": "fused_act", "upfirdn2d": "upfirdn2d"}
            if parts[:2] != ["basicsr", "ops"] or parts[2] not in names:
                continue
            code = inspect.getmodule(type(module))
            # upfirdn2d has a way without it on the CPU; the others have none.
            if parts[2] != "upfirdn2d" and not hasattr(code, f"{names[parts[2]]}_ext"):
                report.error(
                    (key, "type"),
                    f"{type(network).__name__} uses BasicSR's own operator {names[parts[2]]}, "
                    "which needs an NVIDIA GPU and is not compiled here; with one, set "
                    "BASICSR_JIT=True, or install BasicSR with BASICSR_EXT=True",
                )
                break


def without(section: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key not in keys}


def check_losses(report: Report, model: type | None) -> None:
    """Check each loss under `train`.

    Args:
        report: The options.
        model: The model, which may take options out of a loss's before it builds that: those that
            its `loss_options` names, or what a plugin's reads.
    """
    taken = getattr(model, "loss_options", {})
    for key, value in report.section("train").items():
        path = ("train", key)
        if not key.endswith("_opt") or not isinstance(value, dict) or not value:
            continue
        if report.is_unread(path):
            continue
        if "type" not in value:
            if key in _LOSSES:
                report.error((*path, "type"), "missing; it names the loss")
            continue
        loss = registered_type(report, LOSS_REGISTRY, (*path, "type"), "loss", reader=model)
        own = [name for name in value if model and is_known(str(name), keys_of_plugins(model))]
        extra = ("type", *taken.get(key, ()), *own)
        if loss is None or not check_keywords(report, path, loss, extra=extra):
            continue
        if report.is_wrong(path):
            continue
        if inspect.isclass(loss) and issubclass(loss, PerceptualLoss):
            vgg.check(report, path)
            continue
        if "layer_weights" in value:
            # Of others: it may load what is not to be had here.
            continue
        named = getattr(loss, "__name__", str(loss))
        if error := failure(loss, **without(value, *extra)):
            report.error(path, one_line(error) or f"{named} does not take these values")
        elif key == "pixel_opt" and loss.__module__.startswith("basicsr."):
            if error := failure(_compare, loss=loss, options=without(value, *extra)):
                problem = f"{type(error).__name__}: {one_line(error)}"
                report.error(path, f"{named} fails on two pictures ({problem})")


def _compare(loss: Any, options: dict[str, Any]) -> None:
    """Ask a loss for the one number that two pictures differ by."""
    value = loss(**options)(*torch.zeros(2, 1, 3, 16, 16))
    if value.numel() != 1:
        raise ValueError(f"it gives {value.numel()} numbers; one is needed")


def check_metrics(report: Report, model: type | None) -> None:
    """Check each metric of the validation, and call it once on a picture."""
    names = [c.__name__ for c in inspect.getmro(model)] if model else []
    if "VideoBaseModel" in names and report.section("val", "metrics"):
        if not torch.cuda.is_available():
            report.error(
                ("val", "metrics"),
                f"{names[0]} adds them up on a GPU, and there is none; leave metrics out",
            )
    for key, value in report.section("val", "metrics").items():
        path = ("val", "metrics", key)
        if not isinstance(value, dict) or path in report.wrong:
            continue
        if "type" not in value:
            report.error((*path, "type"), "missing; it names the metric")
            continue
        metric = registered_type(report, METRIC_REGISTRY, (*path, "type"), "metric", reader=model)
        if metric is None:
            continue
        parameters = (parameters_of(metric) or ({},))[0]
        # The images come from the validation.
        images = [name for name in parameters if name in ("img", "img2")]
        right = check_keywords(report, path, metric, len(images), ("type", "better"))
        if right and not report.is_wrong(path):
            _call(report, path, metric, images, value)


def _call(report: Report, path: Path, metric: Any, images: list[str], options: Any) -> None:
    border = options.get("crop_border", 0)
    # NIQE looks at blocks of 96 x 96, and needs some.
    side = 256 + 2 * int(border if is_number(border) else 0)
    height, width = (min(side, each) for each in report.measured or (side, side))
    random = np.random.default_rng(0)
    pictures = {n: random.integers(0, 256, (height, width, 3), dtype=np.uint8) for n in images}

    def measure(**keywords: Any) -> None:
        value = metric(**keywords)
        if isinstance(value, float) and math.isnan(value):
            raise ValueError("its result is not a number")

    if error := failure(measure, **pictures, **without(options, "type", "better")):
        hint = ""
        if options["type"].endswith("_pt"):
            hint = f"; it takes tensors, validation has pictures: {options['type'][:-3]}"
        problem = f"{type(error).__name__}: {one_line(error)}".rstrip(": ")
        where = f"a picture of {width} x {height}"
        report.error(path, f"{options['type']} fails on {where} ({problem}){hint}")


def check_wandb(report: Report) -> None:
    """Check that W&B is installed, logged in, and has TensorBoard's logger to take from."""
    path = ("logger", "wandb", "project")
    if report.get(*path) is None:
        return
    if report.get("logger", "use_tb_logger") is not True:
        report.error(("logger", "use_tb_logger"), "must be true when wandb has a project")
    import importlib.util
    import netrc

    if importlib.util.find_spec("wandb") is None:
        report.error(path, "wandb is not installed; pip install wandb, or project: ~")
        return
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return
    try:
        logged_in = any("wandb" in host for host in netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        logged_in = False
    if not (os.environ.get("WANDB_API_KEY") or logged_in):
        report.error(path, "not logged in to W&B; run wandb login, or set WANDB_MODE=offline")
