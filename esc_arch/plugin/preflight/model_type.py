"""The model: that it exists, and where not, what another would make of the file."""

import inspect

from basicsr.utils.registry import MODEL_REGISTRY

from esc_arch.plugin.models.durable import durable
from esc_arch.plugin.preflight.keys import check_unread, registered
from esc_arch.plugin.preflight.registered import registered_type
from esc_arch.plugin.preflight.report import Report
from esc_arch.plugin.preflight.wording import one_line


def check_model(report: Report) -> None:
    """Check that the model exists.

    Where it does not, the finding names what to take in its place, and the losses, weights and
    seeds that this would not read: they would be the errors of the next round.
    """
    path = ("model_type",)
    if report.is_wrong(path) or inspect.isclass(registered(MODEL_REGISTRY, report.get(*path))):
        return
    has_gan = report.is_train and report.section("network_d") and report.section("train", "gan_opt")
    names = ("SRGANModel",) if has_gan else ("SRModel", "ESCModel")
    next_round = Report(report.options, report.is_train)
    check_unread(next_round, durable(MODEL_REGISTRY.get(names[-1])))
    grave = next_round.unread & next_round.wrong
    lost = sorted(":".join(option) for option in grave if not report.is_wrong(option))
    instead = f"take {' or '.join(names)}"
    if lost:
        instead += f", without {one_line(', '.join(lost))}, which nothing reads there"
    if report.get(*path) is None:
        report.error(path, f"missing; {instead}")
    else:
        registered_type(report, MODEL_REGISTRY, path, "model", f", or {instead}")
