"""Measure the attention backends alone: latency and memory, side by side.

python benchmarks/attention_backends.py --device cpu --backends Naive Fused SDPA
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import esc_arch  # noqa: F401  (registers)
from esc_arch.cli import bench
from esc_arch.errors import UserError
from esc_arch.ops.attention import BACKENDS, flashbias_attention, window_attention
from esc_arch.study.speed.contenders import DTYPES
from esc_arch.study.speed.measure import Prepared
from esc_arch.study.speed.results import Row, add_speedups, save, timing_columns

FLASHBIAS_RANK = 48
# Kernels without any bias, over vectors as long as FlashBias makes them: what a flash kernel costs,
# and whether the flash-attn package's is faster than torch's.
PLAIN_KERNELS = ("plain-torch", "plain-flash-attn")
ATTENTIONS = (*BACKENDS, "Auto", "FlashBias", *PLAIN_KERNELS)


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


def main() -> int:
    """Measure, print a table and save it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--backends",
        nargs="+",
        choices=ATTENTIONS,
        default=ATTENTIONS,
        metavar="NAME",
        help="attn_types, plain-torch, plain-flash-attn (kernels without a bias; default: all)",
    )
    windows = [8, 16, 32, 48, 64, 96]
    parser.add_argument("--window-sizes", nargs="+", type=bench.positive, default=windows)
    text = "width and height of the feature map, padded to whole windows (default: 96x96)"
    parser.add_argument("--size", type=bench.size, default=(96, 96), metavar="WxH", help=text)
    dtypes = ["float32", "bfloat16"]
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=dtypes)
    text = "without gradients, with them, or both (default)"
    parser.add_argument("--grad", choices=["no", "yes", "both"], default="both", help=text)
    parser.add_argument("--heads", type=bench.positive, default=4)
    parser.add_argument("--head-dim", type=bench.positive, default=16)
    bench.add_measuring(parser, "bench_attention")
    args = parser.parse_args()
    try:
        args.device = bench.checked_device(args.device)
    except UserError as error:
        parser.error(str(error))
    facts = bench.describe_run(args.device, args.threads)
    gradients = {"no": [False], "yes": [True], "both": [False, True]}[args.grad]
    cases = [(w, dtype, g) for w in args.window_sizes for dtype in args.dtype for g in gradients]
    rows: list[Row] = []
    for case in cases:
        shape = args.size, args.heads, args.head_dim
        jobs = [AttentionJob(name, *case, *shape, args.device) for name in args.backends]
        case_rows = [
            {
                "backend": job.backend,
                "window_size": job.window_size,
                "windows": job.windows,
                "precision": job.dtype,
                "grad": job.grad,
                "gmacs": measurement.facts.get("gmacs"),
                **timing_columns(measurement),
            }
            for job, measurement in zip(jobs, bench.measured(args, jobs), strict=True)
        ]
        add_speedups(case_rows, case_rows[0])
        rows += case_rows
        # After each case: a run that is stopped leaves what it measured.
        save(args.out, rows, facts)
    return bench.finish(args, rows, facts)


if __name__ == "__main__":
    sys.exit(main())
