"""What the GPU kernels compile to, without a GPU: registers, spills, memory, instructions a score.

    python benchmarks/gpu_static.py
    python benchmarks/gpu_static.py --capabilities 90 --dtypes bf16 --json static.json

Triton compiles each kernel ahead of time for each compute capability with the ptxas of its wheel,
and nvdisasm shows the machine code. Instructions a score are those of the inner loop, divided by
the scores that it computes. A multiprocessor issues 128 lanes and 16 exponentials a clock, so that
beyond 8 instructions a score the exponentials are no longer the bound. Ends with status 1 if a
kernel spills registers or needs more shared memory than --shared-limit.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from esc_arch.kernels.gpu import attention_backward
from esc_arch.kernels.gpu.attention_forward import window_attention_forward
from esc_arch.kernels.gpu.window_attention import launch_for

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
KERNELS = {
    "forward": window_attention_forward,
    "queries": attention_backward.queries_pass,
    "keys": attention_backward.keys_pass,
    "bias": attention_backward.bias_pass,
}
LANES_A_CLOCK, EXPONENTIALS_A_CLOCK = 128, 16
FLOATS = ("bias_ptr", "log_sums_ptr", "grad_bias_ptr")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--capabilities", nargs="+", type=int, default=[80, 89, 90, 100, 120])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument(
        "--shapes",
        nargs="+",
        default=["16x32"],
        metavar="DxW",
        help="channels of a head x side of a window (default: 16x32, of ESC)",
    )
    parser.add_argument("--shared-limit", type=int, default=99 * 1024, metavar="BYTES")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    return parser


def compile_ahead(
    name: str, dtype: str, head_dim: int, window_size: int, capability: int
) -> tuple[Any, int, int]:
    """Compile a kernel as it is launched for whole windows; and say how many scores and warps."""
    kernel = KERNELS[name]
    launch = launch_for(name, DTYPES[dtype], head_dim, window_size)
    constants = {
        "HEADS": 4,
        "D": head_dim,
        "D_PADDED": max(16, triton.next_power_of_2(head_dim)),
        "W": window_size,
        "W_PADDED": triton.next_power_of_2(window_size),
        "WHOLE": True,
        "PRECISION": "ieee" if dtype == "fp32" else "tf32",
        "BLOCK_M": launch.block_m,
        "BLOCK_N": launch.block_n,
    }
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    signature, aligned = {}, {}
    for place, argument in enumerate(kernel.arg_names):
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument == "origins_ptr":
            signature[argument] = "*i64"
        elif argument.endswith("_ptr"):
            signature[argument] = "*fp32" if argument in FLOATS else f"*{dtype}"
        else:
            signature[argument] = "fp32" if "scale" in argument else "i32"
        if argument.endswith(("_ptr", "_stride")):
            aligned[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": launch.warps, "num_stages": launch.stages},
    )
    return compiled, launch.block_m * launch.block_n, launch.warps


def disassemble(cubin: bytes) -> tuple[list[str], dict[str, int], tuple[int, int]]:
    """Instructions, where each label stands among them, and registers and stack of a thread."""
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        text, usage = (
            subprocess.run([tools / tool, option, path], capture_output=True, text=True, check=True)
            for tool, option in (("nvdisasm", "-c"), ("cuobjdump", "-res-usage"))
        )
    instructions, labels = [], {}
    for line in text.stdout.splitlines():
        if label := re.match(r"\s*(\.L\w+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?);", line):
            instructions.append(instruction[1])
    used = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout + usage.stderr)
    return instructions, labels, (int(used[1]), int(used[2]))


def inner_loop(instructions: list[str], labels: dict[str, int]) -> list[str]:
    """The shortest loop that computes exponentials."""
    loops = []
    for place, instruction in enumerate(instructions):
        back = re.search(r"BRA.*`\((\.L\w+)\)", instruction)
        if back and labels.get(back[1], place + 1) <= place:
            body = instructions[labels[back[1]] : place + 1]
            if any("EX2" in each for each in body):
                loops.append(body)
    return min(loops, key=len, default=[])


def measure(
    name: str, dtype: str, head_dim: int, window_size: int, capability: int
) -> dict[str, Any]:
    """All figures of one kernel."""
    compiled, scores, warps = compile_ahead(name, dtype, head_dim, window_size, capability)
    instructions, labels, (registers, stack) = disassemble(compiled.asm["cubin"])
    loop = inner_loop(instructions, labels)
    a_score = 32 * warps / scores
    per_score = len(loop) * a_score
    exponentials = sum("EX2" in each for each in loop) * a_score
    return {
        "kernel": name,
        "capability": capability,
        "dtype": dtype,
        "head_dim": head_dim,
        "window_size": window_size,
        "registers": registers,
        "stack": stack,
        "spills": sum(re.search(r"\b(STL|LDL)\b", each) is not None for each in instructions),
        "shared": compiled.metadata.shared,
        "instructions_a_score": round(per_score, 2) if loop else None,
        "scores_a_clock": round(
            min(LANES_A_CLOCK / per_score, EXPONENTIALS_A_CLOCK / exponentials), 1
        )
        if loop
        else None,
    }


def main() -> int:
    args = build_parser().parse_args()
    print(f"triton {triton.__version__}")
    print("kernel   cc   dtype  D   W  registers  spills  shared  instructions  scores a clock")
    rows = []
    for shape in args.shapes:
        head_dim, window_size = map(int, shape.split("x"))
        for name in args.kernels:
            for dtype in args.dtypes:
                for capability in args.capabilities:
                    row = measure(name, dtype, head_dim, window_size, capability)
                    rows.append(row)
                    print(
                        f"{name:8} {capability:3} {dtype:>5} {head_dim:3} {window_size:3}"
                        f" {row['registers']:9} {row['spills']:7} {row['shared']:8}"
                        f" {row['instructions_a_score'] or 0:12} {row['scores_a_clock'] or 0:10}",
                        flush=True,
                    )
    if args.json:
        args.json.write_text(json.dumps({"triton": triton.__version__, "rows": rows}, indent=1))
    bad = [row for row in rows if row["spills"] or row["shared"] > args.shared_limit]
    for row in bad:
        print(f"spills or too much shared memory: {row}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
