"""Training states held against the options before they are loaded."""

import copy
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from esc_arch.errors import UserError, printable
from esc_arch.zoo.params import check_plain

# Options of BasicSR's schedulers, which keep them under these names.
SCHEDULE = ("milestones", "gamma", "restarts", "restart_weights", "periods", "eta_min")
# How a step is computed, which is this machine's business, not the file's.
COMPUTATION = ("fused", "foreach", "capturable", "differentiable", "maximize")


def options_in_use(optimizers: list[Any], schedulers: list[Any]) -> dict[str, Any]:
    """What optimizers and schedulers are set to, by the option's name."""
    found: dict[str, Any] = {}
    for number, optimizer in enumerate(optimizers, start=1):
        prefix = f"optimizer {number}: " if len(optimizers) > 1 else ""
        for group in optimizer.param_groups:
            for name in ("initial_lr", "weight_decay", "betas", "momentum"):
                if name in group:
                    value = group[name]
                    value = list(value) if isinstance(value, tuple) else value
                    found[f"{prefix}{name.removeprefix('initial_')}"] = value
    for number, scheduler in enumerate(schedulers, start=1):
        prefix = f"scheduler {number}: " if len(schedulers) > 1 else ""
        for name in SCHEDULE:
            if hasattr(scheduler, name):
                value = getattr(scheduler, name)
                # BasicSR counts milestones.
                value = sorted(value.elements()) if isinstance(value, Counter) else value
                found[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return found


def fitting_optimizer_state(
    saved: Any, optimizer: torch.optim.Optimizer, number: int
) -> dict[str, Any]:
    """A saved optimizer state that can be loaded without harm.

    Torch takes tensors of any shape, and steps that run in C then write beyond them.

    Args:
        saved: What the file has.
        optimizer: What the options have built.
        number: Of the optimizer, from 1, for the error.

    Returns:
        The state, with the flags of `COMPUTATION` as the options have them.

    Raises:
        UserError: It is of another optimizer, or of other parameters.
    """
    where = f"the training state's optimizer {number}"
    ours = optimizer.state_dict()
    try:
        groups, states = saved["param_groups"], saved["state"]
        sizes = [len(group["params"]) for group in groups]
    except (TypeError, KeyError):
        raise UserError(f"{where} is damaged; resume from another state") from None
    if sizes != [len(group["params"]) for group in ours["param_groups"]]:
        raise UserError(
            f"{where} is of {sum(sizes)} parameters, the network of the options has "
            f"{sum(len(group['params']) for group in ours['param_groups'])}; resume with the "
            "options of that run, or start anew from its weights (path: pretrain_network_g)"
        )
    fitting = []
    for group, own in zip(groups, ours["param_groups"], strict=True):
        taken = {key: group[key] for key in own if key in group and key not in COMPUTATION}
        for key, value in taken.items():
            if not _is_alike(value, own[key]):
                raise UserError(
                    f"{where} is damaged: {printable(key)} is of another kind than "
                    f"{own[key]!r}; resume from another state"
                )
        fitting.append({**own, **taken})
    expected = _expected_state(optimizer)
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    indices = [index for group in groups for index in group["params"]]
    kept: dict[int, dict[str, Any]] = {}
    for parameter, index in zip(parameters, indices, strict=True):
        state = states.get(index)
        if not state:
            continue
        kept[index] = {name: _plain(value, name, where) for name, value in state.items()}
        shapes = _shapes(state)
        if shapes != expected[parameter]:
            raise UserError(
                f"{where} does not fit {type(optimizer).__name__} of the options: it holds "
                f"{_described(shapes)} for a parameter that needs {_described(expected[parameter])}"
                "; resume with the options of that run, or start anew from its weights (path: "
                "pretrain_network_g)"
            )
    return {"state": kept, "param_groups": fitting}


def _is_alike(value: Any, ours: Any) -> bool:
    """Whether an option of an optimizer is of the kind that it must be."""
    if isinstance(ours, tuple | list):
        right = isinstance(value, tuple | list) and len(value) == len(ours)
        return right and all(map(_is_alike, value, ours))
    if isinstance(ours, bool):
        return isinstance(value, bool)
    is_number = type(value) in (int, float) and math.isfinite(value)
    return is_number or (ours is None and value is None)


def _plain(value: Any, name: str, where: str) -> Any:
    """A moment that can be computed with: C code writes to all of it, one after the other."""
    if not isinstance(value, torch.Tensor):
        return value
    check_plain(value, f"{where}: '{printable(name)}'")
    if name == "step" and not (value.isfinite().all() and (value >= 0).all()):
        raise UserError(f"{where} is damaged: its step is {value.tolist()}")
    dense = value.is_contiguous() or (
        value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
    )
    return value if dense else value.contiguous()


def _expected_state(optimizer: torch.optim.Optimizer) -> dict[torch.Tensor, dict[str, Any]]:
    """Shapes of what an optimizer keeps for each parameter, found by a step of a twin."""
    twins: dict[torch.Tensor, torch.Tensor] = {}
    groups = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            twin = torch.zeros(parameter.shape, requires_grad=True)
            twin.grad = torch.zeros(parameter.shape)
            twins[parameter] = twin
        options = {k: v for k, v in group.items() if k not in ("params", *COMPUTATION)}
        groups.append({**options, "params": [twins[each] for each in group["params"]]})
    defaults = {k: v for k, v in optimizer.defaults.items() if k not in COMPUTATION}
    twin_optimizer = type(optimizer)(groups, **_taken(type(optimizer), defaults))
    twin_optimizer.step()
    return {
        parameter: _shapes(twin_optimizer.state.get(twin, {})) for parameter, twin in twins.items()
    }


def _taken(kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the defaults that are arguments; AdamW, say, sets one of its own."""
    import inspect

    names = inspect.signature(kind.__init__).parameters
    return {key: copy.copy(value) for key, value in options.items() if key in names}


def _shapes(state: Mapping[str, Any]) -> dict[str, Any]:
    """Shapes by name; a number and a tensor of one element count alike."""
    return {
        name: tuple(value.shape) if isinstance(value, torch.Tensor) else ()
        for name, value in state.items()
        if value is not None
    }


def _described(shapes: Mapping[str, Any]) -> str:
    return ", ".join(f"{printable(name)} {shape}" for name, shape in shapes.items()) or "nothing"


def fitting_scheduler_state(saved: Any, scheduler: Any) -> dict[str, Any]:
    """A saved scheduler state that can be loaded.

    Args:
        saved: What the file has.
        scheduler: What the options have built.

    Returns:
        The state.

    Raises:
        UserError: It is of another kind of scheduler.
    """
    ours = scheduler.state_dict()
    if not isinstance(saved, Mapping) or "last_epoch" not in saved:
        raise UserError("the training state's scheduler is damaged; resume from another state")
    differ = {name for name in SCHEDULE if (name in saved) != (name in ours)}
    if differ:
        raise UserError(
            f"train: scheduler: {type(scheduler).__name__}: the training state is of another kind "
            "(its options: "
            f"{', '.join(name for name in SCHEDULE if name in saved)}); path: resume_schedule: "
            "options goes on with the schedule of the options"
        )
    return {name: value for name, value in saved.items() if name in ours}
