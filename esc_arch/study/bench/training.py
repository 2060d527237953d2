"""A training step, as ESCModel does it."""

import logging
from dataclasses import dataclass

import torch

from esc_arch.errors import UserError
from esc_arch.study.bench.measure import Prepared
from esc_arch.study.bench.networks import Spec, network_options


@dataclass(frozen=True)
class TrainingJob:
    """One iteration of ESCModel: forward, L1, backward, AdamW, EMA.

    Attributes:
        spec: The row; a dtype other than float32 means autocast, as the option `use_amp`.
        scale: Scale.
        batch: Patches at a time.
        patch: Side of an LR patch in pixels.
        device: Where, "cpu" or "cuda".
    """

    spec: Spec
    scale: int
    batch: int
    patch: int
    device: str

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"a training step of {self.spec.label} x{self.scale}"

    def prepare(self) -> Prepared:
        """Build the model and a batch."""
        from basicsr.utils import get_root_logger

        from esc_arch.plugin.models.esc_model import ESCModel

        network = network_options(self.spec, self.scale)
        if ":" in network["type"]:
            raise UserError(f"{self.spec.name} is not registered with BasicSR, which trains it")
        get_root_logger()
        # The model logs its whole network.
        logging.getLogger("basicsr").setLevel(logging.WARNING)
        torch.manual_seed(0)
        model = ESCModel(
            {
                "name": "bench",
                "model_type": "ESCModel",
                "scale": self.scale,
                "num_gpu": 1 if self.device.startswith("cuda") else 0,
                "dist": False,
                "is_train": True,
                "use_amp": False if self.spec.dtype == "float32" else self.spec.dtype,
                "compile": self.spec.compile,
                "network_g": network,
                "logger": {},
                "path": {"pretrain_network_g": self.spec.weights, "strict_load_g": True},
                "train": {
                    "ema_decay": 0.999,
                    "optim_g": {
                        "type": "AdamW",
                        "lr": 5e-4,
                        "weight_decay": 0,
                        "betas": [0.9, 0.9],
                    },
                    "scheduler": {"type": "MultiStepLR", "milestones": [250000], "gamma": 0.5},
                    "total_iter": 500000,
                    "warmup_iter": -1,
                    "pixel_opt": {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"},
                },
            }
        )
        lq = torch.rand(self.batch, 3, self.patch, self.patch)
        gt = torch.rand(self.batch, 3, self.patch * self.scale, self.patch * self.scale)

        def step() -> None:
            model.feed_data({"lq": lq, "gt": gt})
            with self.spec.kernels():
                model.optimize_parameters(1)

        parameters = sum(p.numel() for p in model.net_g.parameters())
        precision = self.spec.dtype
        if precision != "float32":
            precision += " (autocast)"
        return Prepared(step, {"precision": precision, "parameters": parameters})
