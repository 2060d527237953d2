"""The attention backends alone."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from esc_arch.errors import UserError
from esc_arch.ops.attention import BACKENDS, flashbias_attention, window_attention
from esc_arch.study.bench.measure import Prepared
from esc_arch.study.bench.networks import DTYPES

FLASHBIAS_RANK = 48

# Kernels without any bias, over vectors as long as FlashBias makes them: what a flash kernel costs,
# and whether the flash-attn package's is faster than torch's.
PLAIN_KERNELS = ("plain-torch", "plain-flash-attn")
CONTENDERS = (*BACKENDS, "Auto", "FlashBias", *PLAIN_KERNELS)


@dataclass(frozen=True)
class AttentionJob:
    """Attention over all windows of one feature map.

    Attributes:
        backend: One of `CONTENDERS`.
        window_size: Side of a window in pixels.
        dtype: A key of `DTYPES`.
        grad: Whether to compute gradients of the inputs and of the bias, too.
        width: Width of the feature map in pixels; padded to whole windows.
        height: Height of the feature map in pixels.
        heads: Number of heads.
        head_dim: Channels of a head.
        device: Where, "cpu" or "cuda".
    """

    backend: str
    window_size: int
    dtype: str
    grad: bool
    width: int
    height: int
    heads: int
    head_dim: int
    device: str

    @property
    def windows(self) -> int:
        """Number of windows."""
        return -(-self.width // self.window_size) * -(-self.height // self.window_size)

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

        head_dim, attend, bias = self.head_dim, *self._contender(draw, pixels)
        if self.backend in PLAIN_KERNELS:
            head_dim += FLASHBIAS_RANK
        qkv = [draw(self.windows, self.heads, pixels, head_dim) for _ in range(3)]
        leaves = [*qkv, *bias]

        def forward() -> None:
            with torch.no_grad():
                attend(*leaves)

        def forward_and_backward() -> None:
            out = attend(*leaves)
            torch.autograd.grad(out, leaves, torch.ones_like(out))

        # Multiply-accumulates of the two matrix products; gradients take five more.
        products = 2 * self.windows * self.heads * pixels**2 * self.head_dim
        gmacs = products * (3.5 if self.grad else 1) / 1e9
        return Prepared(
            forward_and_backward if self.grad else forward,
            {"gmacs": round(gmacs, 3), "windows": self.windows},
        )

    def _contender(
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
            out = flash_attn_func(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
            return out.transpose(1, 2)

        return attend
