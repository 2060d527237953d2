"""Optimizers and schedulers: that they exist, take their options, and last as long as the run."""

import re

import basicsr.models.lr_scheduler
import torch
from basicsr.models.base_model import BaseModel

from esc_arch.errors import nearest_first
from esc_arch.plugin.models.optimizers import optimizer_names
from esc_arch.plugin.preflight.build import failure
from esc_arch.plugin.preflight.known import words_of
from esc_arch.plugin.preflight.registered import check_keywords, is_built_by, without
from esc_arch.plugin.preflight.report import Report
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
        if name not in names and is_built_by(model, name):
            continue
        if name not in names:
            hint = meant_type(name, names) or f"; {nearest_first(name, names)}"
            report.error((*path, "type"), f"no optimizer {show(name)} in torch.optim{hint}")
            continue
        optimizer = getattr(torch.optim, name)
        check_keywords(report, path, optimizer, skip=1)
        if "lr" not in value:
            report.error((*path, "lr"), "missing; it is the learning rate")
        if report.is_wrong(path):
            continue
        parameters = [torch.zeros(1, requires_grad=True)]
        if error := failure(optimizer, parameters, **without(value, "type")):
            report.error(path, f"{name} does not take these values: {one_line(error)}")


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
