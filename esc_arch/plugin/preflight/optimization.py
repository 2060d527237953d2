"""Optimizers and schedulers: that they exist, take their options, and last as long as the run."""

import inspect
import re
from collections.abc import Mapping
from typing import Any

import basicsr.models.lr_scheduler
import torch
from basicsr.models.base_model import BaseModel

from esc_arch.errors import UserError, nearest_first
from esc_arch.plugin.models.optimizers import (
    LIBRARY,
    hint_of_library,
    optimizer_class,
    optimizer_names,
)
from esc_arch.plugin.preflight.build import failure
from esc_arch.plugin.preflight.known import words_of
from esc_arch.plugin.preflight.registered import check_keywords, is_built_by, without
from esc_arch.plugin.preflight.report import Path, Report
from esc_arch.plugin.preflight.table import is_number
from esc_arch.plugin.preflight.wording import meant_type, one_line, show


def check_optimizers(report: Report, model: type | None) -> None:
    """Check the optimizers, but those that a plugin's model builds itself."""
    for key, value in report.section("train").items():
        path = ("train", key)
        if not key.startswith("optim_") or not isinstance(value, dict) or report.is_unread(path):
            continue
        name = report.get(*path, "type")
        if "type" not in value:
            report.error((*path, "type"), "missing; it names the optimizer")
        if not isinstance(name, str):
            continue
        names = optimizer_names()
        is_of_library = name.startswith(f"{LIBRARY}.")
        if name not in names and is_built_by(model, name):
            continue
        if name not in names and not is_of_library:
            hint = meant_type(name, names) or f"; {nearest_first(name, names)}"
            hint += hint_of_library(name)
            report.error((*path, "type"), f"no optimizer {show(name)} in torch.optim{hint}")
            continue
        try:
            optimizer = optimizer_class(name)
        except UserError as error:
            report.error((*path, "type"), one_line(error))
            continue
        check_keywords(report, path, optimizer, skip=1)
        _check_betas(report, (*path, "betas"), optimizer)
        if "lr" not in value:
            report.error((*path, "lr"), "missing; it is the learning rate")
        if report.is_wrong(path):
            continue
        parameters = [torch.zeros(1, requires_grad=True)]
        if error := failure(optimizer, parameters, **without(value, "type")):
            report.error(path, f"{name} does not take these values: {one_line(error)}")
        elif is_of_library and (error := failure(_step, optimizer, without(value, "type"))):
            report.error((*path, "type"), f"BasicSR's loop cannot use it: {one_line(error)}")


def _check_betas(report: Report, path: Path, optimizer: type[torch.optim.Optimizer]) -> None:
    """Check that there are as many as the optimizer takes, which it may find at its first step."""
    betas, parameter = report.get(*path), inspect.signature(optimizer).parameters.get("betas")
    ours = parameter.default if parameter else None
    if isinstance(betas, list | tuple) and isinstance(ours, tuple) and len(betas) != len(ours):
        report.error(path, f"must be a list of {len(ours)} numbers, not {show(betas)}")


def _step(optimizer: type[torch.optim.Optimizer], options: Mapping[str, Any]) -> None:
    """Make a step as BasicSR does: without a loss to evaluate again, or a graph of gradients."""
    parameter = torch.zeros(2, 2, requires_grad=True)
    parameter.grad = torch.ones(2, 2)
    optimizer([parameter], **options).step()


def check_scheduler(report: Report, model: type | None) -> None:
    """Check the learning-rate scheduler against itself and the length of the training."""
    path = ("train", "scheduler")
    name = report.get(*path, "type")
    if not isinstance(name, str):
        return
    # MultiStepLR is BasicSR's second name of its own class.
    scheduler = "MultiStepRestartLR" if name == "MultiStepLR" else name
    is_name = re.fullmatch(r"[A-Za-z]\w*LR", scheduler) is not None
    scheduler = getattr(basicsr.models.lr_scheduler, scheduler, None) if is_name else None
    names = {word for word in words_of(model or BaseModel) if re.fullmatch(r"\w+LR", word)}
    if scheduler is None:
        if name not in names:
            known = ", ".join(sorted(names))
            hint = meant_type(name, names)
            report.error((*path, "type"), f"BasicSR knows {known}, not {show(name)}{hint}")
        return
    if not check_keywords(report, path, scheduler, skip=1) or report.is_wrong(path):
        return
    given = report.section(*path)
    steps = "periods" if name == "CosineAnnealingRestartLR" else "restarts"
    lengths = [len(given.get(part, (1,))) for part in (steps, "restart_weights")]
    if lengths[0] != lengths[1] and (steps in given or "restart_weights" in given):
        report.error(
            (*path, "restart_weights"),
            f"has {lengths[1]} values, but {steps} has {lengths[0]}: they must be as many",
        )
    total = report.get("train", "total_iter")
    if "periods" in given and is_number(total) and sum(given["periods"]) < total - 1:
        report.error(
            (*path, "periods"),
            f"end after {sum(given['periods'])} iterations, but total_iter is {int(total)}",
        )
