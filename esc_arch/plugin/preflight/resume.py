"""Whether a training state is of the optimizers and the schedule that the options ask for."""

import os
import re
from collections.abc import Mapping
from pathlib import Path as File
from typing import Any

import torch

from esc_arch.plugin.preflight.build import quietly
from esc_arch.plugin.preflight.report import Report
from esc_arch.plugin.preflight.wording import one_line

# Told apart by what only one kind of them has.
_OPTIMIZERS = ("betas", "momentum", "alpha", "rho", "etas")
_SCHEDULES = {"milestones": "MultiStepLR", "periods": "CosineAnnealingRestartLR"}


def check_resume(report: Report, auto_resume: bool) -> None:
    """Check the optimizers and schedules of the state that a run goes on from.

    Args:
        report: The options.
        auto_resume: Whether the newest state of the experiment is meant.
    """
    state = _newest(report) if auto_resume else report.get("path", "resume_state")
    if not isinstance(state, str | File) or not os.path.isfile(os.path.expanduser(state)):
        return
    try:
        # Mapped, so that of gigabytes only the structure is read.
        saved = torch.load(
            os.path.expanduser(state), map_location="cpu", weights_only=True, mmap=True
        )
        optimizers, schedules = list(saved["optimizers"]), list(saved["schedulers"])
    except Exception:
        # What is wrong with the file itself is told where it is loaded.
        return
    wanted = [key for key in ("optim_g", "optim_d") if report.section("train", key)]
    where = f"{one_line(state)} was saved with"
    for key, optimizer in zip(wanted, optimizers, strict=False):
        groups = optimizer.get("param_groups") if isinstance(optimizer, Mapping) else None
        asked = _group(report.section("train", key))
        if report.is_unread(("train", key)) or not groups or asked is None:
            continue
        had, has = ({name for name in _OPTIMIZERS if name in group} for group in (groups[0], asked))
        if had != has:
            report.error(
                ("train", key, "type"),
                f"{where} an optimizer that has {', '.join(sorted(had)) or 'no momentum'}: it "
                "cannot go on in this one; start from its weights with path: pretrain_network_g",
            )
    if report.get("path", "resume_schedule") == "options" or not schedules:
        return
    kept = next((name for key, name in _SCHEDULES.items() if key in schedules[0]), None)
    asked = report.get("train", "scheduler", "type")
    asked = "MultiStepLR" if asked == "MultiStepRestartLR" else asked
    if kept and asked in _SCHEDULES.values() and asked != kept:
        report.error(
            ("train", "scheduler", "type"),
            f"{where} {kept}: it cannot go on as {asked}; take {kept}, or start from its weights "
            "with path: pretrain_network_g",
        )


def _newest(report: Report) -> File | None:
    name, root = report.get("name"), report.get("path", "experiments_root") or "experiments"
    if not isinstance(name, str) or not isinstance(root, str):
        return None
    folder = File(os.path.expanduser(root), name, "training_states")
    states = [file for file in folder.glob("*.state") if re.fullmatch(r"\d+", file.stem)]
    return max(states, key=lambda file: int(file.stem), default=None)


def _group(options: dict[str, Any]) -> dict[str, Any] | None:
    """What an optimizer of these options keeps of them."""
    keywords = {key: value for key, value in options.items() if key != "type"}
    try:
        with quietly():
            optimizer = getattr(torch.optim, options["type"])
            return optimizer([torch.zeros(1, requires_grad=True)], **keywords).param_groups[0]
    except Exception:
        return None
