"""What can be measured: networks, training steps, attention alone."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esc_arch.errors import UserError
from esc_arch.ops.attention import BACKENDS, flashbias_attention, window_attention
from esc_arch.ops.windows import pad_to_multiple
from esc_arch.study.complexity import count_parameters
from esc_arch.study.speed.contenders import DTYPES, Contender
from esc_arch.study.speed.measure import Prepared

FLASHBIAS_RANK = 48
# Kernels without any bias, over vectors as long as FlashBias makes them: what a flash kernel costs,
# and whether the flash-attn package's is faster than torch's.
PLAIN_KERNELS = ("plain-torch", "plain-flash-attn")
ATTENTIONS = (*BACKENDS, "Auto", "FlashBias", *PLAIN_KERNELS)


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
    """

    contender: Contender
    scale: int
    width: int
    height: int
    batch: int
    device: str

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"{self.contender.label} x{self.scale} at {self.width}x{self.height}"

    def prepare(self) -> Prepared:
        """Build the network and an input, in the row's type or, where that fails, autocast."""
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(self.batch, 3, self.height, self.width, generator=generator)
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

    def _runner(
        self, network: nn.Module, x: Tensor, autocast: torch.dtype | None
    ) -> Callable[[], Tensor]:
        forward = torch.compile(network) if self.contender.compile else network
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
        if ":" in network_g["type"]:
            raise UserError(
                f"{self.contender.name} is not registered with BasicSR, which trains it"
            )
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


@dataclass(frozen=True)
class AttentionJob:
    """Attention over all windows of one feature map.

    Attributes:
        backend: One of `ATTENTIONS`.
        window_size: Side of a window in pixels.
        dtype: A key of `DTYPES`.
        grad: Whether to compute gradients of the inputs and of the bias, too.
        size: Width and height of the feature map in pixels; padded to whole windows.
        heads: Number of heads.
        head_dim: Channels of a head.
        device: Where, "cpu" or "cuda".
    """

    backend: str
    window_size: int
    dtype: str
    grad: bool
    size: tuple[int, int]
    heads: int
    head_dim: int
    device: str

    @property
    def windows(self) -> int:
        """Number of windows."""
        width, height = self.size
        return -(-width // self.window_size) * -(-height // self.window_size)

    @property
    def label(self) -> str:
        """What messages call it."""
        suffix = " with gradients" if self.grad else ""
        return f"{self.backend} at window {self.window_size} in {self.dtype}{suffix}"

    def prepare(self) -> Prepared:
        """Draw random inputs."""
        pixels = self.window_size**2
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            values = torch.randn(*shape, generator=generator)
            return values.to(self.device, DTYPES[self.dtype]).requires_grad_(self.grad)

        head_dim, attend, bias = self.head_dim, *self._backend(draw, pixels)
        if self.backend in PLAIN_KERNELS:
            head_dim += FLASHBIAS_RANK
        leaves = [draw(self.windows, self.heads, pixels, head_dim) for _ in range(3)] + bias

        def forward() -> None:
            with torch.no_grad():
                attend(*leaves)

        def forward_and_backward() -> None:
            out = attend(*leaves)
            torch.autograd.grad(out, leaves, torch.ones_like(out))

        # Multiply-accumulates of the two matrix products; gradients take five more.
        products = 2 * self.windows * self.heads * pixels**2 * self.head_dim
        gmacs = products * (3.5 if self.grad else 1) / 1e9
        return Prepared(forward_and_backward if self.grad else forward, {"gmacs": round(gmacs, 3)})

    def _backend(
        self, draw: Callable[..., Tensor], pixels: int
    ) -> tuple[Callable[..., Tensor], list[Tensor]]:
        """The function to time, of q, k, v and the tensors that make the bias."""
        if self.backend == "plain-torch":
            return F.scaled_dot_product_attention, []
        if self.backend == "plain-flash-attn":
            return self._flash_attn_package(), []
        if self.backend == "FlashBias":
            factors = [draw(self.heads, pixels, FLASHBIAS_RANK) for _ in range(2)]
            return flashbias_attention, factors
        table = draw(self.heads, (2 * self.window_size - 1) ** 2)
        window_size, backend = self.window_size, self.backend
        return lambda *inputs: window_attention(*inputs, window_size, backend), [table]

    def _flash_attn_package(self) -> Callable[..., Tensor]:
        if not self.device.startswith("cuda") or self.dtype == "float32":
            raise UserError("flash-attn runs on CUDA in bfloat16 and float16 only")
        try:
            from flash_attn import flash_attn_func
        except ImportError as error:
            raise UserError(f"flash-attn is not installed ({error})") from error

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return flash_attn_func(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)

        return attend
