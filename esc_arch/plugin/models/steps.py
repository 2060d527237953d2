"""What the options do to gradients and moments before a training step."""

import copy
import math
from typing import Any

import torch

from esc_arch.errors import UserError

# The authors halve `gradient_clip` from here on.
GRADIENT_CLIP_HALVED = 50_000


class StepOptions:
    """Mixin, in front of any of BasicSR's models: the options of a training step.

    - `train: grad_clip`: largest L2 norm of all gradients of `net_g` together; larger ones are
      scaled down. `train: use_grad_clip: true`, as Restormer and NAFNet spell it, means 0.01.
    - `train: gradient_clip: v`, of the authors' files: as `grad_clip: v`, and half of it after
      iteration 50,000.
    - `train: reset_momentum_iter`: before this iteration, or each of these, what the optimizers
      remember of earlier steps (moments, step counts, step sizes) is as at the start.
    """

    def setup_optimizers(self) -> None:
        """Set up the optimizers, and keep what they begin with."""
        super().setup_optimizers()
        # Nothing for most; Adagrad begins with sums.
        self._first_states = [copy.deepcopy(_by_place(each)) for each in self.optimizers]

    def read_step_options(self) -> None:
        """Read them.

        Raises:
            UserError: One has a value that cannot be used.
        """
        train_opt = self.opt["train"]
        self.grad_clip = _norm("grad_clip", train_opt.get("grad_clip"))
        if self.grad_clip is None and train_opt.get("use_grad_clip"):
            self.grad_clip = 0.01
        self.gradient_clip = _norm("gradient_clip", train_opt.get("gradient_clip"))
        resets = train_opt.get("reset_momentum_iter")
        self.momentum_resets = resets if isinstance(resets, list) else [resets]

    def largest_norm(self, current_iter: int) -> float:
        """The largest norm of all gradients of `net_g` in an iteration, counted from 1."""
        if self.grad_clip is not None:
            return self.grad_clip
        if self.gradient_clip is None:
            return math.inf
        return self.gradient_clip / 2 if current_iter > GRADIENT_CLIP_HALVED else self.gradient_clip

    def reset_momentum_if_due(self, current_iter: int) -> None:
        """Let the optimizers begin anew where the options say so; learning rates stay."""
        if current_iter not in self.momentum_resets:
            return
        for optimizer, first_states in zip(self.optimizers, self._first_states, strict=True):
            optimizer.state.clear()
            for group, states in zip(optimizer.param_groups, first_states, strict=True):
                # Some count for all parameters of a group.
                if "step" in group:
                    group["step"] = 0
                for parameter, state in zip(group["params"], states, strict=True):
                    if state:
                        optimizer.state[parameter] = copy.deepcopy(state)


def _by_place(optimizer: torch.optim.Optimizer) -> list[list[dict[str, Any]]]:
    # States by group and place in it: parameters, which are the keys, are not to be copied.
    return [
        [optimizer.state.get(each, {}) for each in group["params"]]
        for group in optimizer.param_groups
    ]


def _norm(name: str, value: Any) -> float | None:
    # Where true means some norm to others, false is written for none.
    if value is None or value is False:
        return None
    if not (type(value) in (int, float) and value > 0):
        raise UserError(f"train: {name}: {value!r}: must be a number above 0, or absent")
    return value


class StepsOfBasicSR(StepOptions):
    """StepOptions for models whose training step is BasicSR's own."""

    def setup_optimizers(self) -> None:
        """Set up the optimizers; that of `net_g` scales its gradients down before each step."""
        super().setup_optimizers()
        self.read_step_options()
        self.optimizer_g.register_step_pre_hook(self._clip)

    def optimize_parameters(self, current_iter: int) -> None:
        """Do one training step."""
        self._current_iter = current_iter
        self.reset_momentum_if_due(current_iter)
        super().optimize_parameters(current_iter)

    def _clip(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        largest = self.largest_norm(self._current_iter)
        if largest != math.inf:
            parameters = [each for group in optimizer.param_groups for each in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, largest)
