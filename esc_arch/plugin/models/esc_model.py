"""The model that trains and evaluates ESC."""

import contextlib
import math
from collections import OrderedDict
from typing import Any

import torch
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from torch import Tensor

from esc_arch.errors import UserError
from esc_arch.inference.tiling import global_pools, super_resolve_tiled
from esc_arch.kernels.cpu.library import note_on_bfloat16
from esc_arch.ops.windows import pad_to_multiple
from esc_arch.plugin.models.checkpointing import Checkpointing
from esc_arch.plugin.models.finite_steps import FiniteSteps
from esc_arch.plugin.models.optimizers import any_torch_optimizer

AMP_DTYPES = {
    "none": None,
    "false": None,
    "true": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class ESCModel(Checkpointing, FiniteSteps, SRModel):
    """BasicSR's SRModel with the evaluation of ESC and what training it needs today.

    Everything that SRModel does stays: losses, EMA, schedulers, validation on any number of
    validation sets, metrics, images, TensorBoard and W&B. Beyond SRModel's options it reads:

    - `use_amp` (top level or under `train`): false (default), true or bfloat16, or float16, which
      adds gradient scaling. It holds for training; validation is always in full precision.
    - `compile` (top level or under `train`): true compiles the network for training.
    - `train: grad_clip`: largest L2 norm of all gradients together; larger ones are scaled down.
      `train: use_grad_clip: true`, as Restormer and NAFNet spell it, means 0.01.
    - `train: max_bad_steps`: a step whose loss or gradient is not finite is left out; after this
      many in a row (default 20) the run ends and says so.
    - `train: optim_g: type`: any optimizer of torch.optim.
    - `val: tile: {tile_size, tile_pad}` (or `tile` at the top level): validate tile by tile, in LR
      pixels; for images too large for the memory. The result then differs a little.
    - `val: pbar`: the progress bar, which is on by default here.

    Checkpoints are those of `Checkpointing`, with its option `logger: keep_checkpoints`.

    For evaluation the whole LR image is reflect-padded at the bottom and right to a multiple of the
    network's `window_size` and the output is cropped, as in the paper's published results.
    """

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
        self.tile = self._read_tile(opt)

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

        self.grad_clip = train_opt.get("grad_clip")
        if self.grad_clip is None and train_opt.get("use_grad_clip"):
            self.grad_clip = 0.01
        if self.grad_clip is not None and not (
            type(self.grad_clip) in (int, float) and self.grad_clip > 0
        ):
            raise UserError(
                f"train: grad_clip: {self.grad_clip!r}: must be a number above 0, or absent"
            )

        self.read_max_bad_steps()
        keep = opt["logger"].get("keep_checkpoints")
        if keep is not None and (type(keep) is not int or keep < 1):
            raise UserError(
                f"logger: keep_checkpoints: {keep!r}: must be a whole number of at least 1"
            )

        super().init_training_settings()

        self.train_network = self.net_g
        if opt.get("compile", train_opt.get("compile", False)):
            # net_g itself stays as it is: evaluation, with a new size an image, would compile anew
            # each time, and the names in checkpoints would change.
            self.train_network = torch.compile(self.net_g)
            get_root_logger().info("Compiling the network: the first iteration takes minutes.")

    def get_optimizer(
        self, optim_type: str, params: Any, lr: float, **kwargs: Any
    ) -> torch.optim.Optimizer:
        """Build any optimizer of torch.optim by its name, see `any_torch_optimizer`."""
        return any_torch_optimizer(optim_type, params, lr, **kwargs)

    def optimize_parameters(self, current_iter: int) -> None:
        """Do one training step on the batch that `feed_data` took.

        Args:
            current_iter: Iteration, counted from 1.
        """
        self.optimizer_g.zero_grad()
        autocast = contextlib.nullcontext()
        if self.amp_dtype is not None:
            autocast = torch.autocast(self.device.type, self.amp_dtype)
        with autocast:
            output = self._forward_for_training()
        # The losses are taken in full precision.
        self.output = output.float()

        losses = self.compute_losses()
        total = sum(losses.values())
        self.scaler.scale(total).backward()
        self.scaler.unscale_(self.optimizer_g)
        norm = torch.nn.utils.clip_grad_norm_(
            self.net_g.parameters(), math.inf if self.grad_clip is None else self.grad_clip
        )
        self.log_dict = self.reduce_loss_dict(losses)

        is_finite = self.is_finite_everywhere(total.detach() + norm)
        if is_finite:
            self.scaler.step(self.optimizer_g)
            if self.ema_decay > 0:
                self.model_ema(decay=self.ema_decay)
        self.count_step(current_iter, is_finite)
        self.scaler.update()

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
        return losses

    def test(self) -> None:
        """Super-resolve `self.lq` (B, C, H, W) into `self.output`, padded as the class says."""
        lq = self.lq
        if self.tile is None:
            self.output = self._super_resolve(lq)
        else:
            self.output = super_resolve_tiled(
                self._super_resolve,
                lq,
                *self.tile,
                multiple=self.window_size,
                pools=global_pools(getattr(self, "net_g_ema", self.net_g)),
            )
        self.lq = lq

    def _super_resolve(self, lq: Tensor) -> Tensor:
        self.lq = pad_to_multiple(lq, self.window_size)
        super().test()
        scale = self.output.shape[-1] // self.lq.shape[-1]
        return self.output[..., : lq.shape[-2] * scale, : lq.shape[-1] * scale]

    @property
    def window_size(self) -> int:
        """Multiple that evaluation pads to; 1 for a network without windows."""
        window_size = self.opt["network_g"].get("window_size")
        if window_size is None:
            window_size = getattr(self.get_bare_model(self.net_g), "window_size", 1)
        return window_size

    @staticmethod
    def _read_tile(opt: dict[str, Any]) -> tuple[int, int] | None:
        val_opt = opt.get("val") or {}
        tile_opt = val_opt.get("tile", opt.get("tile"))
        if not tile_opt:
            return None
        # Two windows of the published networks, with which seams stay below 1/255.
        tile = (tile_opt.get("tile_size"), tile_opt.get("tile_pad", 64))
        if not all(isinstance(value, int) for value in tile) or tile[0] < 1 or tile[1] < 0:
            raise UserError(
                f"tile: tile_size: {tile[0]!r}, tile_pad: {tile[1]!r}: must be whole numbers of LR "
                "pixels, tile_size at least 1 and tile_pad at least 0"
            )
        return tile


class ESRModel(ESCModel):
    """ESCModel under the name that the published option files use."""
