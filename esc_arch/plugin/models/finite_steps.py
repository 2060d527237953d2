"""Training steps that are not finite are left out, counted, and end the run at last."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from basicsr.utils import get_root_logger
from torch import Tensor, nn

from esc_arch.errors import UserError
from esc_arch.plugin.own_options import own_value


class FiniteSteps:
    """Mixin, in front of any of BasicSR's models: what it does about bad steps.

    It reads `train: max_bad_steps`: after this many bad steps in a row (default 20) the run ends.
    """

    max_bad_steps: int
    _bad_steps = 0
    _batch_paths: Sequence[Any] = ()

    def read_max_bad_steps(self) -> None:
        """Read the option.

        Raises:
            UserError: It has a value that cannot be used.
        """
        self.max_bad_steps = own_value(
            "train:max_bad_steps", self.opt["train"].get("max_bad_steps"), type(self), 20
        )

    def feed_data(self, data: dict[str, Any]) -> None:
        """Take a batch, and remember where its images are from."""
        super().feed_data(data)
        self._batch_paths = data.get("gt_path", data.get("lq_path", ()))

    def is_finite_everywhere(self, value: Tensor) -> bool:
        """Whether a scalar is finite in all processes, which must all take the same step."""
        bad = (~value.isfinite()).float()
        if self.opt["dist"]:
            torch.distributed.all_reduce(bad, torch.distributed.ReduceOp.MAX)
        return not bad

    def count_step(self, current_iter: int, is_finite: bool) -> None:
        """Count bad steps in a row.

        Args:
            current_iter: Iteration, counted from 1.
            is_finite: Whether its step was taken.

        Raises:
            UserError: There have been too many.
        """
        if is_finite:
            self._bad_steps = 0
            return
        self._bad_steps += 1
        get_root_logger().warning(
            f"Iteration {current_iter}: the loss or a gradient is not finite; this step is left "
            f"out ({self._bad_steps} in a row)."
        )
        if self._bad_steps < self.max_bad_steps:
            return
        names = [str(path) for path in self._batch_paths]
        images = ", ".join(names[:16]) + (f" and {len(names) - 16} more" if names[16:] else "")
        raise UserError(
            f"train: max_bad_steps: {self.max_bad_steps}: at iteration {current_iter} the loss or "
            f"a gradient was not finite for that many steps in a row; learning rate "
            f"{self.get_current_learning_rate()[0]:.3g}, images {images or 'unknown'}; try a lower "
            "optim_g: lr, grad_clip: 1, a longer warmup_iter, or use_amp: false, and resume from "
            "the newest checkpoint"
        )


class FiniteOptimizers(FiniteSteps):
    """FiniteSteps for models whose training step is BasicSR's own.

    Each of their optimizers leaves out a step where a loss before it or a gradient is not finite:
    optimizers pass over parameters without a gradient.
    """

    def setup_optimizers(self) -> None:
        """Set up the optimizers, and have them look at losses and gradients before each step."""
        super().setup_optimizers()
        self.read_max_bad_steps()
        for optimizer in self.optimizers:
            optimizer.register_step_pre_hook(self._before_step)
        # An L1 loss of NaN has gradients of 0. BasicSR's models name their losses so.
        for name, loss in vars(self).items():
            if name.startswith("cri_") and isinstance(loss, nn.Module):
                loss.register_forward_hook(self._after_loss)

    def optimize_parameters(self, current_iter: int) -> None:
        """Do one training step."""
        self._steps_were_finite = True
        self._losses = torch.zeros((), device=self.device)
        super().optimize_parameters(current_iter)
        self.count_step(current_iter, self._steps_were_finite)

    def _after_loss(self, loss: nn.Module, inputs: Any, output: Any) -> None:
        for value in output if isinstance(output, tuple) else (output,):
            if isinstance(value, Tensor):
                self._losses = self._losses + value.detach().float().sum()

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf)
        if not self.is_finite_everywhere(norm + self._losses):
            self._steps_were_finite = False
            optimizer.zero_grad(set_to_none=True)
