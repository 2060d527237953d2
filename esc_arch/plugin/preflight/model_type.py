"""The model: that it exists, and where not, what another would make of the file."""

import inspect

from basicsr.utils.registry import MODEL_REGISTRY

from esc_arch.plugin.models.durable import durable
from esc_arch.plugin.preflight.keys import (
    check_together,
    check_unread,
    registered,
    required_of_model,
)
from esc_arch.plugin.preflight.registered import registered_type
from esc_arch.plugin.preflight.report import Report
from esc_arch.plugin.preflight.wording import one_line


def check_model(report: Report) -> None:
    """Check that the model exists.

    Where it does not, the finding names what to take in its place, what that needs besides, and the
    losses, weights and seeds that it would not read: they would be the errors of the next round.
    """
    path = ("model_type",)
    if report.is_wrong(path) or inspect.isclass(registered(MODEL_REGISTRY, report.get(*path))):
        return
    has_gan = report.is_train and report.section("network_d") and report.section("train", "gan_opt")
    names = ("SRGANModel",) if has_gan else ("SRModel", "ESCModel")
    next_round = Report(report.options, report.is_train)
    model = durable(MODEL_REGISTRY.get(names[-1]))
    check_unread(next_round, model)
    grave = next_round.unread & next_round.wrong
    lost = sorted(":".join(option) for option in grave if not report.is_wrong(option))
    lacking = [key for key in required_of_model(report, model) if _is_absent(report, key)]
    if report.is_train:
        check_together(next_round, model)
        lacking += ["train:pixel_opt"] if ("train", "pixel_opt") in next_round.wrong else []
    instead = f"take {' or '.join(names)}"
    if lacking:
        instead += f", with {', '.join(lacking)} besides"
    if lost:
        instead += f", without {one_line(', '.join(lost))}, which nothing reads there"
    if report.get(*path) is None:
        report.error(path, f"missing; {instead}")
    else:
        registered_type(report, MODEL_REGISTRY, path, "model", f", or {instead}")


def _is_absent(report: Report, key: str) -> bool:
    *above, last = key.split(":")
    # Once is enough: a section that is absent is named itself.
    return last not in report.section(*above) and (
        not above or above[-1] in report.section(*above[:-1])
    )
