"""What can be measured: networks and training steps."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from esc_arch.errors import UserError
from esc_arch.inference.replays import Replays
from esc_arch.ops.windows import pad_to_multiple
from esc_arch.study.complexity import count_parameters
from esc_arch.study.speed.contenders import DTYPES, Contender
from esc_arch.study.speed.measure import Prepared
from esc_arch.study.speed.runtimes import in_runtime


@dataclass(frozen=True)
class NetworkJob:
    """Super-resolving a batch of random images.

    Attributes:
        contender: The row.
        scale: Scale.
        width: Width of the LR image in pixels.
        height: Height of the LR image in pixels.
        batch: Images at a time.
        device: Where, "cpu" or "cuda".
        cuda_graphs: Whether a CUDA graph is recorded and replayed.
    """

    contender: Contender
    scale: int
    width: int
    height: int
    batch: int
    device: str
    cuda_graphs: bool = False

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"{self.contender.label} x{self.scale} at {self.width}x{self.height}"

    def prepare(self) -> Prepared:
        """Build the network and an input, in the row's type or, where that fails, autocast."""
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(self.batch, 3, self.height, self.width, generator=generator)
        if self.contender.runtime is not None:
            return self._prepare_runtime(x)
        x = x.to(self.device, DTYPES[self.contender.dtype])
        network, precision = self.contender.build(self.scale).to(self.device), self.contender.dtype
        run = self._runner(network.to(x.dtype), x, autocast=None)
        if x.dtype != torch.float32:
            try:
                run()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:
                # Some networks make float32 masks on the way and cannot be cast.
                network, precision = network.float(), f"{precision} (autocast)"
                run = self._runner(network, x, autocast=x.dtype)
        facts = {"precision": precision, "parameters": count_parameters(network)}
        return Prepared(run, facts)

    def _prepare_runtime(self, x: Tensor) -> Prepared:
        if self.device != "cpu":
            raise UserError("is measured on the CPU only: --device cpu")
        forward = in_runtime(self.contender, self.scale, tuple(x.shape))
        parameters = count_parameters(self.contender.build(self.scale))
        return Prepared(lambda: forward(x), {"precision": "float32", "parameters": parameters})

    def _runner(
        self, network: nn.Module, x: Tensor, autocast: torch.dtype | None
    ) -> Callable[[], Tensor]:
        forward = torch.compile(network) if self.contender.compile else network
        if self.cuda_graphs:
            forward = Replays(forward)
        multiple = self.contender.multiple(self.scale)
        kind = torch.device(self.device).type

        def run() -> Tensor:
            with (
                self.contender.kernels(),
                torch.no_grad(),
                torch.autocast(kind, autocast, enabled=autocast is not None),
            ):
                out = forward(pad_to_multiple(x, multiple))
            return out[..., : self.height * self.scale, : self.width * self.scale]

        return run


@dataclass(frozen=True)
class TrainingJob:
    """One iteration of ESCModel: forward, L1, backward, AdamW, EMA.

    Attributes:
        contender: The row; a type other than float32 means autocast, as the option `use_amp`.
        scale: Scale.
        batch: Patches at a time.
        patch: Side of an LR patch in pixels.
        device: Where, "cpu" or "cuda".
    """

    contender: Contender
    scale: int
    batch: int
    patch: int
    device: str

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"a training step of {self.contender.label} x{self.scale}"

    def prepare(self) -> Prepared:
        """Build the model and a batch."""
        from basicsr.models import build_model
        from basicsr.utils import get_root_logger

        network_g = self.contender.options(self.scale)
        get_root_logger()
        # The model logs its whole network.
        logging.getLogger("basicsr").setLevel(logging.WARNING)
        torch.manual_seed(0)
        model = build_model(self._model_options(network_g))
        lq = torch.rand(self.batch, 3, self.patch, self.patch)
        gt = torch.rand(self.batch, 3, self.patch * self.scale, self.patch * self.scale)

        def step() -> None:
            model.feed_data({"lq": lq, "gt": gt})
            with self.contender.kernels():
                model.optimize_parameters(1)

        precision = self.contender.dtype
        if precision != "float32":
            precision += " (autocast)"
        return Prepared(step, {"precision": precision, "parameters": count_parameters(model.net_g)})

    def _model_options(self, network_g: dict[str, Any]) -> dict[str, Any]:
        optimizer = {"type": "AdamW", "lr": 5e-4, "weight_decay": 0, "betas": [0.9, 0.9]}
        return {
            "name": "bench",
            "model_type": "ESCModel",
            "scale": self.scale,
            "num_gpu": 1 if self.device.startswith("cuda") else 0,
            "dist": False,
            "is_train": True,
            "use_amp": False if self.contender.dtype == "float32" else self.contender.dtype,
            "compile": self.contender.compile,
            "network_g": network_g,
            "logger": {},
            "path": {"pretrain_network_g": None, "strict_load_g": True},
            "train": {
                "ema_decay": 0.999,
                "optim_g": optimizer,
                "scheduler": {"type": "MultiStepLR", "milestones": [250000], "gamma": 0.5},
                "total_iter": 500000,
                "warmup_iter": -1,
                "pixel_opt": {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"},
            },
        }
