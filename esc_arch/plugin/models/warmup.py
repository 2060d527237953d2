"""Warming up beside the learning rate's schedule, not inside it."""

import math
from typing import Any

from basicsr.utils import get_root_logger

from esc_arch.errors import UserError
from esc_arch.plugin.own_options import own_value


class ExactWarmup:
    """Mixin, in front of any of BasicSR's models: `train: warmup: exact`.

    BasicSR writes the warm-up's learning rate where MultiStepLR looks for its own, so that it stays
    at (warmup_iter - 1) / warmup_iter for good, and milestones within the warm-up are lost. With
    `exact` the schedule goes on underneath, and iteration i of the warm-up has i / warmup_iter of
    what it says.
    """

    _is_exact = False
    _scheduled: list[list[float]] | None = None

    def setup_schedulers(self) -> None:
        """Set up the schedulers, and say what BasicSR's own warm-up does."""
        train = self.opt["train"]
        kind, warmup = train["scheduler"].get("type"), train.get("warmup_iter", -1)
        super().setup_schedulers()
        said = own_value("train:warmup", train.get("warmup"), type(self))
        self._is_exact = said == "exact"
        if not self._is_exact and warmup > 0 and str(kind).startswith("MultiStep"):
            get_root_logger().warning(
                f"train: warmup_iter: {warmup}: as BasicSR does it, the learning rate stays at "
                f"{warmup - 1}/{warmup} of its value for good, and milestones before are lost; "
                "train: warmup: exact does not."
            )

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """Set the learning rate of an iteration."""
        if not self._is_exact:
            super().update_learning_rate(current_iter, warmup_iter=warmup_iter)
            return
        if self._scheduled is not None:
            self._set_lr(self._scheduled)
        super().update_learning_rate(current_iter, warmup_iter=-1)
        self._scheduled = None
        if current_iter < warmup_iter:
            groups = [optimizer.param_groups for optimizer in self.optimizers]
            self._scheduled = [[group["lr"] for group in each] for each in groups]
            share = current_iter / warmup_iter
            self._set_lr([[lr * share for lr in each] for each in self._scheduled])

    def warmup_state(self) -> Any:
        """What a training state keeps of it."""
        return self._scheduled

    def resume_warmup(self, state: Any) -> None:
        """Go back to what `warmup_state` returned.

        Raises:
            UserError: It is of other optimizers, or none.
        """
        if state is not None:
            sizes = [len(optimizer.param_groups) for optimizer in self.optimizers]
            is_list = isinstance(state, list) and all(isinstance(each, list) for each in state)
            if not is_list or [len(each) for each in state] != sizes:
                raise UserError("the training state's warmup is damaged; resume from another state")
            state = [[float(rate) for rate in each] for each in state]
            if not all(math.isfinite(rate) for each in state for rate in each):
                raise UserError("the training state's warmup is damaged; resume from another state")
        self._scheduled = state
