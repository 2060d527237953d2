"""What the GPU kernels compile to, without a GPU: registers, spills, memory, instructions a score.

    python benchmarks/gpu_static.py
    python benchmarks/gpu_static.py --targets 90 gfx942 --dtypes bf16 --json static.json

Triton compiles each kernel ahead of time for each GPU with the compilers of its wheel. Instructions
a score are those of the inner loop, divided by the scores that it computes; in a ConvFFN, by its
hidden values. A DxW that ends in - is of images that do not fill their windows. An NVIDIA
multiprocessor issues 128 lanes and 16 exponentials a clock, so that beyond 8 instructions a score
the exponentials are no longer the bound. Ends with status 1 if a kernel spills registers or needs
more shared memory than the smallest GPUs have (99 KB, AMD 64 KB).
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from compile_ahead import Compiled, compile_for, exponentials_in, target_of

from esc_arch.kernels.gpu import attention_backward, pixel_gradients, pixel_kernels
from esc_arch.kernels.gpu.attention_forward import window_attention_forward
from esc_arch.kernels.gpu.bias_gradient import bias_pass
from esc_arch.kernels.gpu.launches import (
    columns_of_sums,
    columns_of_tile,
    launch_for,
    tile_constants,
    tile_for,
)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ATTENTION = {
    "forward": window_attention_forward,
    "queries": attention_backward.queries_pass,
    "keys": attention_backward.keys_pass,
    "bias": bias_pass,
}
# Those that go by pixels, with ESC's channels.
DIM, HIDDEN, PDIM = 64, 128, 16
LAYERS = {
    "project": pixel_kernels.project_kernel,
    "conv_ffn": pixel_kernels.conv_ffn_kernel,
    "conv_attn": pixel_kernels.conv_attn_kernel,
    "conv_grad": pixel_gradients.conv_gradient_kernel,
    "proj_grad": pixel_gradients.proj_gradient_kernel,
    "conv_attn_grad": pixel_gradients.conv_attn_gradient_kernel,
}
KERNELS = [*ATTENTION, *LAYERS]
LANES_A_CLOCK, EXPONENTIALS_A_CLOCK = 128, 16


def is_rdna(target: str) -> bool:
    """Whether a GPU is one of AMD's whose warps have 32 lanes."""
    return target_of(target).backend == "hip" and target_of(target).warp_size == 32


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=KERNELS)
    parser.add_argument(
        "--targets",
        nargs="+",
        default=["80", "89", "90", "100", "120", "gfx90a", "gfx942", "gfx1100"],
        metavar="GPU",
        help="compute capabilities times ten (90), or AMD's names (gfx942)",
    )
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument(
        "--shapes",
        nargs="+",
        default=["16x32"],
        metavar="DxW",
        help="channels of a head x side of a window (default: 16x32, of ESC)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    return parser


def compile_attention(
    name: str, target: str, dtype: str, head_dim: int, window_size: int, whole: bool = True
) -> tuple[Compiled, dict[str, Any]]:
    """Compile a kernel of attention as it is launched, for whole windows or not; and measure it."""
    amd = target_of(target).backend == "hip"
    launch = launch_for(name, DTYPES[dtype], head_dim, window_size, amd, is_rdna(target))
    constants = {
        "HEADS": 4,
        "D": head_dim,
        "D_PADDED": max(16, triton.next_power_of_2(head_dim)),
        "W": window_size,
        "WHOLE": whole,
        "ONCE": True,
        "ALIGNED": head_dim % 16 == 0,
        "ACROSS": columns_of_tile(window_size, launch.block_n),
        "ACROSS_M": columns_of_tile(window_size, launch.block_m),
        "PRECISION": "ieee",
        "SUMS": columns_of_sums(amd),
        "BLOCK_M": launch.block_m,
        "BLOCK_N": launch.block_n,
    }
    dtypes = dict.fromkeys(("bias_ptr", "log_sums_ptr", "scale"), "fp32")
    dtypes |= {"origins_ptr": "i64", "_ptr": dtype}
    compiled = compile_for(target, ATTENTION[name], dtypes, constants, launch.warps, launch.stages)
    loop = compiled.inner_loop(exponential=True)
    lanes = target_of(target).warp_size * launch.warps / (launch.block_m * launch.block_n)
    figures = {
        "head_dim": head_dim,
        "window_size": window_size,
        "whole": whole,
        "instructions_a_score": round(len(loop) * lanes, 2) if loop else None,
    }
    if loop and not amd:
        bound = LANES_A_CLOCK / len(loop), EXPONENTIALS_A_CLOCK / exponentials_in(loop)
        figures["scores_a_clock"] = round(min(bound) / lanes, 1)
    return compiled, figures


def compile_layer(name: str, target: str, dtype: str) -> tuple[Compiled, dict[str, Any]]:
    """Compile a kernel of the convolutions as it is launched for ESC."""
    amd = target_of(target).backend == "hip"
    tile = tile_for(DTYPES[dtype], name.endswith("_grad"), amd, is_rdna(target))
    constants = tile_constants(tile, DTYPES[dtype], DIM, HIDDEN, PDIM, 3, amd)
    constants["PRECISION"] = "ieee"
    compiled = compile_for(
        target, LAYERS[name], {"parts_ptr": "fp32", "_ptr": dtype}, constants, tile.warps, 1
    )
    lanes = target_of(target).warp_size * tile.warps / (tile.pixels * tile.channels)
    counted = compiled.inner_loop(exponential=True)
    if name in ("conv_grad", "proj_grad"):
        # Programs for some hidden channels, from the first instruction to the last.
        counted = compiled.instructions if len(compiled.inner_loop(False)) <= 1 else []
    elif name not in ("project", "conv_ffn") or target not in ("80", "89", "90"):
        # Elsewhere what is inside of the loop over hidden channels is not unrolled.
        counted = []
    if amd or not counted:
        return compiled, {}
    return compiled, {"instructions_a_hidden_value": round(len(counted) * lanes, 1)}


def measure(
    name: str, target: str, dtype: str, compile_kernel: Callable[..., Any], *shape: Any
) -> dict[str, Any]:
    """All figures of one kernel."""
    compiled, figures = compile_kernel(name, target, dtype, *shape)
    return {
        "kernel": name,
        "target": target,
        "dtype": dtype,
        "registers": compiled.registers,
        "stack": compiled.stack,
        "spills": compiled.spills,
        "shared": compiled.shared,
        "fits": compiled.fits,
        **figures,
    }


def main() -> int:
    args = build_parser().parse_args()
    print(f"triton {triton.__version__}")
    columns = "registers", "spills", "shared", "instructions", "scores a clock"
    print(f"{'kernel':15} {'target':>8} dtype    DxW {'  '.join(columns)}")
    shapes = [tuple(map(int, shape.split("x"))) for shape in args.shapes]
    rows = []
    for name in args.kernels:
        compile_kernel = compile_attention if name in ATTENTION else compile_layer
        variants = [(*shape, whole) for shape in shapes for whole in (True, False)]
        for shape in variants if name in ATTENTION else [()]:
            shown = f"{shape[0]}x{shape[1]}{'' if shape[2] else '-'}" if shape else ""
            for dtype in args.dtypes:
                for target in args.targets:
                    row = measure(name, target, dtype, compile_kernel, *shape)
                    rows.append(row)
                    counted = row.get(
                        "instructions_a_score", row.get("instructions_a_hidden_value")
                    )
                    loop = counted or "", row.get("scores_a_clock", "")
                    print(
                        f"{name:15} {target:>8} {dtype:>5} {shown:>6}"
                        f" {row['registers']:9} {row['spills']:7} {row['shared']:8}"
                        f" {loop[0]:>12} {loop[1]:>10}",
                        flush=True,
                    )
    if args.json:
        args.json.write_text(json.dumps({"triton": triton.__version__, "rows": rows}, indent=1))
    bad = [row for row in rows if not row["fits"]]
    for row in bad:
        print(f"spills or too much shared memory: {row}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
