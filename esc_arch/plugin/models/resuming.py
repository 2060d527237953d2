"""Training states held against the options before they are loaded."""

import copy
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from esc_arch.errors import UserError, printable
from esc_arch.zoo.params import check_plain

# Options of BasicSR's schedulers, which keep them under these names.
SCHEDULE = ("milestones", "gamma", "restarts", "restart_weights", "periods", "eta_min")
# How a step is computed, which is this machine's business, not the file's.
COMPUTATION = ("fused", "foreach", "capturable", "differentiable", "maximize")
# What tells Adam from AdamW.
COMPUTATION += ("decoupled_weight_decay",)
# Powers of it are still numbers.
_LARGEST = 1e15
# At one iteration.
_MOST_MILESTONES = 20
# Characters of a setting in a line.
_LONGEST = 100
_ANOTHER = "resume from another state"


def options_in_use(
    optimizers: list[Any], schedulers: list[Any], names: Iterable[str]
) -> dict[str, Any]:
    """What optimizers and schedulers are set to, by the option's name.

    Args:
        optimizers: The optimizers.
        schedulers: The schedulers.
        names: Options of the schedulers beside BasicSR's.
    """
    found: dict[str, Any] = {}
    for number, optimizer in enumerate(optimizers, start=1):
        prefix = f"optimizer {number}: " if len(optimizers) > 1 else ""
        # Some optimizers count their steps beside them.
        settings = {"initial_lr", *inspect.signature(type(optimizer).__init__).parameters}
        for group in optimizer.param_groups:
            for name, value in group.items():
                if name in settings and name not in ("params", "lr", *COMPUTATION):
                    value = list(value) if isinstance(value, tuple) else value
                    found[f"{prefix}{name.removeprefix('initial_')}"] = value
    for number, scheduler in enumerate(schedulers, start=1):
        prefix = f"scheduler {number}: " if len(schedulers) > 1 else ""
        for name in dict.fromkeys((*SCHEDULE, *names)):
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
        raise UserError(f"{where} is damaged; {_ANOTHER}") from None
    if sizes != [len(group["params"]) for group in ours["param_groups"]]:
        raise UserError(
            f"{where} is of {sum(sizes)} parameters, the network of the options has "
            f"{sum(len(group['params']) for group in ours['param_groups'])}; resume with the "
            "options of that run, or start anew from its weights (path: pretrain_network_g)"
        )
    fitting = []
    kept: dict[int, dict[str, Any]] = {}
    for group, own, used in zip(groups, ours["param_groups"], optimizer.param_groups, strict=True):
        names = [key for key in own if key in group and key not in ("params", *COMPUTATION)]
        _require_alike({key: group[key] for key in names}, own, where, _is_alike)
        # Which algorithm it is the options say.
        taken = {key: group[key] for key in names if not isinstance(own[key], bool)}
        fitted = {**own, **taken}
        fitting.append(fitted)
        try:
            found = [dict(states.get(index) or {}) for index in group["params"]]
            twin = _twin(optimizer, used["params"], fitted)
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{where} is damaged: {printable(error)}; {_ANOTHER}") from None
        # What its first step has put into the group, such as a count of steps.
        made = twin.param_groups[0]
        counted = {key: group[key] for key in made if key in group and key not in own}
        _require_alike(counted, made, where, _is_alike)
        fitted |= counted
        for state, parameter, stand_in in zip(
            found, used["params"], twin.param_groups[0]["params"], strict=True
        ):
            needed, shapes = _shapes(twin.state.get(stand_in, {})), _shapes(state)
            for name, value in state.items():
                state[name] = _moment(value, parameter, name, where)
            if state and shapes != needed:
                raise UserError(
                    f"{where} does not fit {type(optimizer).__name__} of the options: it holds "
                    f"{_described(shapes)} for a parameter that needs {_described(needed)}; resume "
                    "with the options of that run, or start anew from its weights (path: "
                    "pretrain_network_g)"
                )
        _rehearse(twin, found, where)
        kept |= {index: state for index, state in zip(own["params"], found, strict=True) if state}
    return {"state": kept, "param_groups": fitting}


def _require_alike(
    saved: Mapping[str, Any],
    ours: Mapping[str, Any],
    where: str,
    is_alike: Callable[[Any, Any], bool],
) -> None:
    """Refuse settings of another kind than the options have made."""
    for key, value in saved.items():
        if not is_alike(value, ours[key]):
            raise UserError(
                f"{where} is damaged: {printable(key)} is of another kind than "
                f"{shortened(ours[key])}; {_ANOTHER}"
            )


def shortened(value: Any) -> str:
    """A setting as it stands in a line: of long lists the beginning."""
    shown = printable(value)
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}..."


def _is_alike(value: Any, ours: Any) -> bool:
    """Whether a setting is of the kind that it must be."""
    if isinstance(ours, tuple | list):
        right = isinstance(value, tuple | list) and len(value) == len(ours)
        return right and all(map(_is_alike, value, ours))
    if isinstance(ours, bool):
        return isinstance(value, bool)
    if ours is None or isinstance(ours, str):
        return type(value) is type(ours) or (ours is None and _is_number(value))
    return _is_number(value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= _LARGEST


def _moment(value: Any, parameter: torch.Tensor, name: str, where: str) -> Any:
    """What a step can be made with: a copy that lies in memory as the parameter does.

    C code goes through both from their beginning to their end, and writes to all of it.
    """
    if isinstance(value, list):
        return [_moment(each, parameter, name, where) for each in value]
    if not isinstance(value, torch.Tensor):
        return value
    check_plain(value, f"{where}: '{printable(name)}'")
    if not bool(value.isfinite().all()) or (name == "step" and bool((value < 0).any())):
        wrong = value.tolist() if value.numel() == 1 else "not finite"
        raise UserError(f"{where} is damaged: its {printable(name)} is {wrong}; {_ANOTHER}")
    if value.shape != parameter.shape:
        return value.detach().clone(memory_format=torch.contiguous_format)
    return torch.empty_like(parameter, dtype=value.dtype, device="cpu").copy_(value.detach())


def _twin(
    optimizer: torch.optim.Optimizer, parameters: Sequence[torch.Tensor], group: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """An optimizer of other parameters of the same shapes, which has made a step.

    Raises:
        ValueError: It does not take the group's settings.
    """
    twins = [torch.zeros(each.shape, requires_grad=True) for each in parameters]
    for twin in twins:
        twin.grad = torch.zeros_like(twin)
    options = {key: value for key, value in group.items() if key not in ("params", *COMPUTATION)}
    defaults = {k: v for k, v in optimizer.defaults.items() if k not in COMPUTATION}
    kind = type(optimizer)
    made = kind([{**options, "params": twins}], **_taken(kind, {**defaults, **options}))
    made.step()
    return made


def _rehearse(twin: torch.optim.Optimizer, states: Sequence[Mapping[str, Any]], where: str) -> None:
    """Make a step from what was saved, without writing to it.

    Raises:
        UserError: It fails, or gives weights that are not finite.
    """
    parameters = twin.param_groups[0]["params"]
    for parameter, state in zip(parameters, states, strict=True):
        parameter.grad = torch.zeros_like(parameter) if state else None
    saved = {number: copy.deepcopy(state) for number, state in enumerate(states) if state}
    try:
        twin.load_state_dict({**twin.state_dict(), "state": saved})
        twin.step()
    except Exception as error:
        # As many kinds as there are optimizers.
        raise UserError(f"{where} is damaged: {printable(error)}; {_ANOTHER}") from None
    if not all(bool(each.isfinite().all()) for each in parameters):
        raise UserError(f"{where} is damaged: a step from it is not finite; {_ANOTHER}")


def _taken(kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the defaults that are arguments; AdamW, say, sets one of its own."""
    names = inspect.signature(kind.__init__).parameters
    return {key: copy.copy(value) for key, value in options.items() if key in names}


def _shapes(state: Mapping[str, Any]) -> dict[str, Any]:
    """Shapes by name; a number and a tensor of one element count alike."""
    return {name: _shape(value) for name, value in state.items() if value is not None}


def _shape(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, list):
        return [_shape(each) for each in value]
    return () if isinstance(value, bool) or _is_number(value) else type(value).__name__


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
    where = "the training state's scheduler"
    if not isinstance(saved, Mapping) or ("last_epoch" in ours and "last_epoch" not in saved):
        raise UserError(f"{where} is damaged; {_ANOTHER}")
    differ = {name for name in SCHEDULE if (name in saved) != (name in ours)}
    if differ:
        raise UserError(
            f"train: scheduler: {type(scheduler).__name__}: the training state is of another kind "
            "(its options: "
            f"{', '.join(name for name in SCHEDULE if name in saved)}); path: resume_schedule: "
            "options goes on with the schedule of the options"
        )
    taken = {name: value for name, value in saved.items() if name in ours}
    _require_alike(taken, ours, where, _is_schedule)
    return taken


def _is_schedule(value: Any, ours: Any) -> bool:
    """Whether an option of a scheduler is of the kind of ours; another run's may be longer."""
    if isinstance(ours, Counter):
        # How often each is in the list, which another run has spelled out.
        if not isinstance(value, Counter) or not _are_whole(value, _LARGEST):
            return False
        return _are_whole(value.values(), _MOST_MILESTONES)
    if isinstance(ours, Mapping):
        # Of schedulers that consist of others.
        shared = ours.keys() & value.keys() if isinstance(value, Mapping) else ()
        return bool(shared) and all(_is_schedule(value[key], ours[key]) for key in shared)
    if isinstance(ours, tuple | list) and isinstance(value, tuple | list):
        if all(map(_is_number, ours)):
            return all(map(_is_number, value))
        return len(value) == len(ours) and all(map(_is_schedule, value, ours))
    return _is_alike(value, ours) or (type(value) is float and value == ours)


def _are_whole(values: Iterable[Any], largest: float) -> bool:
    return all(type(value) is int and 0 <= value <= largest for value in values)


def load_scaler_state(scaler: Any, saved: Any) -> None:
    """Go back to what a gradient scaler has saved.

    Raises:
        UserError: It is none, or of another kind.
    """
    where, ours = "the training state's scaler", scaler.state_dict()
    if not isinstance(saved, Mapping):
        raise UserError(f"{where} is damaged; {_ANOTHER}")
    _require_alike({key: saved[key] for key in ours if key in saved}, ours, where, _is_alike)
    scaler.load_state_dict(dict(saved))
