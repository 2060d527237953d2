"""The second stage of ESC-Real under the name that the authors' option files use."""

from typing import Any, ClassVar

from basicsr.losses import gradient_penalty_loss
from basicsr.models.realesrgan_model import RealESRGANModel

from esc_arch.errors import UserError
from esc_arch.plugin.models.checkpointing import Checkpointing
from esc_arch.plugin.models.finite_steps import FiniteOptimizers
from esc_arch.plugin.models.padded import PaddedEvaluation
from esc_arch.plugin.models.pretrained import AveragedWeights
from esc_arch.plugin.models.steps import StepsOfBasicSR


class GradientPenalty:
    """Mixin, in front of BasicSR's GAN models: WGAN's penalty on the discriminator's gradients.

    It reads `train: gan_opt: use_gp` (false) and `gp_lambda` (10), and logs `l_d_gp`.
    """

    gp_lambda: float | None = None
    loss_options: ClassVar = {"gan_opt": ("use_gp", "gp_lambda")}

    def init_training_settings(self) -> None:
        """Take the options that GANLoss does not know."""
        gan_opt = self.opt["train"].get("gan_opt") or {}
        use_gp, gp_lambda = gan_opt.pop("use_gp", False), gan_opt.pop("gp_lambda", 10)
        if type(gp_lambda) not in (int, float) or gp_lambda <= 0:
            raise UserError(f"train: gan_opt: gp_lambda: {gp_lambda!r}: must be a number above 0")
        self.gp_lambda = gp_lambda if use_gp else None
        super().init_training_settings()

    def setup_optimizers(self) -> None:
        """Set up the optimizers; the discriminator's adds the penalty before each step."""
        super().setup_optimizers()
        if self.gp_lambda is not None:
            self.optimizer_d.register_step_pre_hook(self._add_penalty)

    def optimize_parameters(self, current_iter: int) -> None:
        """Do one training step of both networks."""
        super().optimize_parameters(current_iter)
        if self.gp_lambda is not None:
            self.log_dict["l_d_gp"] = self._penalty

    def _add_penalty(self, *_: Any) -> None:
        real = self.gt if self.opt.get("gan_gt_usm") is False else getattr(self, "gt_usm", self.gt)
        penalty = gradient_penalty_loss(self.net_d, real, self.output.detach())
        (self.gp_lambda * penalty).backward()
        self._penalty = float(penalty.detach())


class RealHATGANModel(
    AveragedWeights,
    Checkpointing,
    StepsOfBasicSR,
    FiniteOptimizers,
    PaddedEvaluation,
    GradientPenalty,
    RealESRGANModel,
):
    """Second stage: BasicSR's RealESRGANModel, evaluated on whole windows.

    Beyond RealESRGANModel's options: `l1_gt_usm`, `percep_gt_usm` and `gan_gt_usm` may be absent
    (true, true and false, as ESC-Real was trained), `use_ema`, and those of `StepOptions` and
    `GradientPenalty`.
    """

    option_defaults: ClassVar = {"l1_gt_usm": True, "percep_gt_usm": True, "gan_gt_usm": False}

    def __init__(self, opt: dict[str, Any]) -> None:
        for name, value in self.option_defaults.items():
            opt.setdefault(name, value)
        super().__init__(opt)
