"""What is surely wrong with an option file, and what nothing reads, before anything is created.

No code is interpreted. A key is known if it is in the list of what BasicSR's loop reads (`table`)
or stands as a string in the source of what receives that part of the options (`known`); the
keywords of networks, losses, metrics, optimizers and schedulers are in their signatures. What
nothing reads is a warning; it is an error where something else would be trained than asked for
(losses, weights, seeds), and under `path`, where BasicSR makes folders.

Findings name options as `--force_yml` does, `train:optim_g:lr`.
"""

import inspect
import os
from collections.abc import Iterable

from basicsr.utils.registry import MODEL_REGISTRY
from torch import nn

from esc_arch.plugin.preflight import keys, registered
from esc_arch.plugin.preflight.build import check_room
from esc_arch.plugin.preflight.data import check_datasets, check_networks_fit, check_samples
from esc_arch.plugin.preflight.files import (
    check_weights,
    checkpoint_problem,
    form_problem,
    is_file,
    purpose_problem,
)
from esc_arch.plugin.preflight.model_type import check_model
from esc_arch.plugin.preflight.optimization import check_optimizers, check_scheduler
from esc_arch.plugin.preflight.reading import (
    apply_force_yml,
    keep_datasets,
    read_option_file,
    take_as_meant,
)
from esc_arch.plugin.preflight.report import Report
from esc_arch.plugin.preflight.wording import one_line
from esc_arch.plugin.scale_option import name_the_scale

__all__ = ["Report", "check_options"]


def check_options(
    opt_path: str | os.PathLike[str],
    force_yml: Iterable[str] | None = None,
    is_train: bool = True,
    datasets: Iterable[str] | None = None,
    *,
    random_weights: bool = False,
    safety_only: bool = False,
) -> Report:
    """Find what is wrong with an option file. Creates, downloads and changes nothing.

    Plugins must have been imported, for their networks, models and data sets to be known.

    Args:
        opt_path: The option file.
        force_yml: Overrides as BasicSR takes them, `train:ema_decay=0.99`.
        is_train: Whether it is for `basicsr train` or `basicsr test`.
        datasets: Names of the data sets to test on; all of the file by default.
        random_weights: Whether a test of a network without weights is meant.
        safety_only: Only look for what may run code or touch files that are not the run's, and for
            what BasicSR cannot even log.

    Returns:
        The findings; without errors, training or testing can start.
    """
    report = Report({}, is_train)
    path = os.fspath(opt_path)
    options = read_option_file(path, report.errors)
    if options is None:
        return report
    report.options = options
    problem = form_problem(path, options) or purpose_problem(path, options, is_train)
    if problem is not None and not safety_only:
        report.errors = [problem]
        return report
    apply_force_yml(options, force_yml or (), report.errors)
    if datasets is not None:
        keep_datasets(options, datasets, report.errors)
    take_as_meant(options)
    name_the_scale(options)
    model = keys.registered(MODEL_REGISTRY, options.get("model_type"))
    model = model if inspect.isclass(model) else None
    keys.check_text_keys(report)
    if safety_only:
        keys.check_paths(report, model)
        for phase in report.section("datasets"):
            keys.check_io_backend(report, ("datasets", phase, "io_backend"), safety_only=True)
        return report
    _check(report, model, os.path.dirname(path), random_weights)
    return report


def _check(report: Report, model: type | None, folder: str, random_weights: bool) -> None:
    as_run = _durable(model)
    keys.check_unread(report, as_run)
    keys.check_values(report, model)
    check_model(report)
    check_datasets(report)
    check_samples(report, model)
    built: dict[str, nn.Module] = {}
    for key in report.section():
        if key.startswith("network_") and not report.is_unread((key,)):
            registered.check_network(report, key, model, built)
    registered.check_operators(report, built)
    check_room(report, built)
    check_networks_fit(report, built)
    if report.is_train:
        registered.check_losses(report, model)
        check_optimizers(report, model)
        check_scheduler(report, as_run)
        registered.check_wandb(report)
        keys.check_together(report, model)
    registered.check_metrics(report, model)
    keys.check_required(report, model)
    _check_checkpoints(report, built, folder, random_weights)


def _durable(model: type | None) -> type | None:
    """The model as the command runs it."""
    if model is None:
        return None
    from esc_arch.plugin.models.durable import durable

    return durable(model)


def _check_checkpoints(
    report: Report, built: dict[str, nn.Module], folder: str, random_weights: bool
) -> None:
    section = report.section("path")
    for key, value in section.items():
        path = ("path", key)
        if report.is_wrong(path) or report.is_unread(path) or not isinstance(value, str):
            continue
        if key.startswith("pretrain_network_"):
            problem = checkpoint_problem(value, folder)
            if problem:
                report.error(path, problem)
            else:
                name = key.removeprefix("pretrain_network_")
                strict = bool(section.get(f"strict_load_{name}", True))
                check_weights(report, path, value, built.get(f"network_{name}"), strict)
        elif key == "resume_state" and value and not is_file(value):
            report.error(
                path, f"no such training state: {one_line(value)}; --auto_resume finds the newest"
            )
    path = ("path", "pretrain_network_g")
    lacks = not section.get("pretrain_network_g") and not report.is_wrong(path)
    lacks = lacks and isinstance(report.get("path"), dict)
    if not report.is_train and lacks and not random_weights and "network_g" in report.options:
        report.error(
            path, "missing: the network would be random; name a checkpoint, or --random-weights"
        )
