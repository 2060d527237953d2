"""The model that trains and evaluates ESC."""

import contextlib
from collections import OrderedDict
from typing import Any, ClassVar

import torch
from basicsr.losses import build_loss
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from torch import Tensor

from esc_arch.errors import UserError
from esc_arch.kernels.cpu.library import note_on_bfloat16
from esc_arch.plugin.models.checkpointing import Checkpointing
from esc_arch.plugin.models.finite_steps import FiniteSteps
from esc_arch.plugin.models.optimizers import any_optimizer
from esc_arch.plugin.models.padded import PaddedEvaluation
from esc_arch.plugin.models.pretrained import AveragedWeights
from esc_arch.plugin.models.steps import StepOptions

AMP_DTYPES = {
    "none": None,
    "false": None,
    "true": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class ESCModel(AveragedWeights, Checkpointing, StepOptions, FiniteSteps, PaddedEvaluation, SRModel):
    """BasicSR's SRModel with the evaluation of ESC and what training it needs today.

    Everything that SRModel does stays: losses, EMA, schedulers, validation on any number of
    validation sets, metrics, images, TensorBoard and W&B. Beyond SRModel's options it reads:

    - `use_amp` (top level or under `train`): false (default), true or bfloat16, or float16, which
      adds gradient scaling. It holds for training; validation is always in full precision.
    - `compile` (top level or under `train`): true compiles the network for training.
    - `train: grad_clip`, `gradient_clip` and `reset_momentum_iter`, see `StepOptions`.
    - `train: max_bad_steps`: a step whose loss or gradient is not finite is left out; after this
      many in a row (default 20) the run ends and says so.
    - `train: optim_g: type`: any optimizer of torch.optim, or, as `pytorch_optimizer.NAME`, of
      that package.
    - `train: accumulate_steps: n`: the images of an iteration are taken in n parts, one after the
      other; `batch_size_per_gpu` is that of a part. The gradients are those of the whole.
    - `train: wave_opt`: a further loss between output and GT, logged as `l_wave`.
    - `train: mesa_opt`: a loss between the output and the EMA network's output, from `start_ratio`
      (0.33) of `total_iter` on, logged as `l_mesa`; zero before.
    - `use_ema`, see `AveragedWeights`.
    - `val: tile`, see `PaddedEvaluation`.
    - `val: pbar`: the progress bar, which is on by default here.

    Checkpoints are those of `Checkpointing`, with its option `logger: keep_checkpoints`.

    For evaluation the LR image is padded to whole windows, as in the paper's published results.
    """

    # Takes `train: accumulate_steps` apart itself.
    accumulates = True
    # What stands among a loss's options and is no keyword of it.
    loss_options: ClassVar = {"mesa_opt": ("start_ratio",)}

    def __init__(self, opt: dict[str, Any]) -> None:
        """Build the network, and for training the losses, optimizer and schedulers.

        Args:
            opt: The parsed option file.

        Raises:
            UserError: An option has a value that cannot be used.
        """
        if opt.get("val") is not None:
            opt["val"].setdefault("pbar", True)
        super().__init__(opt)

    def init_training_settings(self) -> None:
        """Set up what only training needs; SRModel calls it."""
        opt, train_opt = self.opt, self.opt["train"]
        use_amp = opt.get("use_amp", train_opt.get("use_amp"))
        if str(use_amp).lower() not in AMP_DTYPES:
            raise UserError(f"use_amp: {use_amp!r}: must be true, false, bfloat16 or float16")
        self.amp_dtype = AMP_DTYPES[str(use_amp).lower()]
        if self.amp_dtype == torch.bfloat16 and (note := note_on_bfloat16(self.device)):
            get_root_logger().warning(f"use_amp: {note}.")
        # With float32 and bfloat16 it is disabled and passes everything through.
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.amp_dtype == torch.float16
        )

        self.read_step_options()
        self.accumulate_steps = train_opt.get("accumulate_steps", 1)
        self.read_max_bad_steps()

        super().init_training_settings()
        wave_opt = train_opt.get("wave_opt")
        self.cri_wave = build_loss(dict(wave_opt)).to(self.device) if wave_opt else None
        self._read_mesa(dict(train_opt.get("mesa_opt") or {}))

        self.train_network = self.net_g
        if opt.get("compile", train_opt.get("compile", False)):
            # net_g itself stays as it is: evaluation, with a new size an image, would compile anew
            # each time, and the names in checkpoints would change.
            self.train_network = torch.compile(self.net_g)
            get_root_logger().info("Compiling the network: the first iteration takes minutes.")

    def get_optimizer(
        self, optim_type: str, params: Any, lr: float, **kwargs: Any
    ) -> torch.optim.Optimizer:
        """Build any optimizer by its name, see `any_optimizer`."""
        return any_optimizer(optim_type, params, lr, **kwargs)

    def optimize_parameters(self, current_iter: int) -> None:
        """Do one training step on the batch that `feed_data` took.

        Args:
            current_iter: Iteration, counted from 1.
        """
        self.reset_momentum_if_due(current_iter)
        self.optimizer_g.zero_grad()
        losses, total = self._accumulate_gradients(current_iter)
        self.scaler.unscale_(self.optimizer_g)
        norm = torch.nn.utils.clip_grad_norm_(
            self.net_g.parameters(), self.largest_norm(current_iter)
        )
        self.log_dict = self.reduce_loss_dict(losses)

        is_finite = self.is_finite_everywhere(total + norm)
        if is_finite:
            self.scaler.step(self.optimizer_g)
            if self.ema_decay > 0:
                self.model_ema(decay=self.ema_decay)
        self.count_step(current_iter, is_finite)
        self.scaler.update()

    def _accumulate_gradients(self, current_iter: int) -> tuple[OrderedDict[str, Tensor], Tensor]:
        """Add up the gradients of all parts of the batch; returns the whole's losses and sum."""
        whole = self.lq, self.gt
        size = -(-len(self.lq) // self.accumulate_steps)
        parts = list(zip(*(each.split(size) for each in whole), strict=True))
        losses: OrderedDict[str, Tensor] = OrderedDict()
        for number, (self.lq, self.gt) in enumerate(parts, start=1):
            waits = number < len(parts) and self.opt["dist"]
            with self.net_g.no_sync() if waits else contextlib.nullcontext():
                part = self._losses_of_part(current_iter)
                if len(parts) > 1:
                    share = len(self.lq) / len(whole[0])
                    part = OrderedDict(
                        (name, loss if self._is_sum(name) else loss * share)
                        for name, loss in part.items()
                    )
                self.scaler.scale(sum(part.values())).backward()
            for name, loss in part.items():
                losses[name] = losses[name] + loss.detach() if name in losses else loss.detach()
        self.lq, self.gt = whole
        return losses, sum(losses.values())

    def _losses_of_part(self, current_iter: int) -> OrderedDict[str, Tensor]:
        autocast = contextlib.nullcontext()
        if self.amp_dtype is not None:
            autocast = torch.autocast(self.device.type, self.amp_dtype)
        with autocast:
            output = self._forward_for_training()
        # The losses are taken in full precision.
        self.output = output.float()
        losses = self.compute_losses()
        if self.cri_mesa is not None:
            losses["l_mesa"] = self._mesa(current_iter)
        return losses

    def _is_sum(self, name: str) -> bool:
        """Whether a loss adds up over the images, so that parts need no share of it."""
        modules = {"l_pix": self.cri_pix, "l_wave": self.cri_wave, "l_mesa": self.cri_mesa}
        return getattr(modules.get(name), "reduction", "mean") == "sum"

    def _read_mesa(self, mesa_opt: dict[str, Any]) -> None:
        self.cri_mesa = None
        if not mesa_opt:
            return
        if self.ema_decay <= 0:
            raise UserError("train: mesa_opt: compares with the EMA network: set ema_decay, too")
        self.mesa_start = mesa_opt.pop("start_ratio", 0.33) * self.opt["train"]["total_iter"]
        self.cri_mesa = build_loss(mesa_opt).to(self.device)

    def _mesa(self, current_iter: int) -> Tensor:
        if current_iter < self.mesa_start:
            return self.output.new_zeros(())
        with torch.no_grad():
            averaged = self.net_g_ema(self.lq)
        return self.cri_mesa(self.output, averaged)

    def _forward_for_training(self) -> Tensor:
        try:
            return self.train_network(self.lq)
        except (UserError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:
            # Compilers fail in too many ways to name.
            if self.train_network is self.net_g:
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"compile: true: the network cannot be compiled here: {reason}; a working C++ "
                "compiler is needed (and on a GPU Triton), or compile: false"
            ) from error

    def compute_losses(self) -> OrderedDict[str, Tensor]:
        """Compare `self.output` with `self.gt` by every loss in the options.

        Returns:
            Weighted scalar losses by the names that BasicSR logs them under; their sum is trained.
        """
        losses = OrderedDict()
        if self.cri_pix:
            losses["l_pix"] = self.cri_pix(self.output, self.gt)
        if self.cri_perceptual:
            perceptual, style = self.cri_perceptual(self.output, self.gt)
            if perceptual is not None:
                losses["l_percep"] = perceptual
            if style is not None:
                losses["l_style"] = style
        if self.cri_wave is not None:
            losses["l_wave"] = self.cri_wave(self.output, self.gt)
        return losses


class ESRModel(ESCModel):
    """ESCModel under the name that the published option files use."""
