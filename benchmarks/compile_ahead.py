"""Compiles Triton kernels ahead of time, for GPUs that are not here, and reads what came of it."""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# What a program may have on the smallest GPUs: compute capabilities 8.6 and 8.9; all of AMD's here.
SHARED_LIMIT = {"cuda": 99 * 1024, "hip": 64 * 1024}


class Compiled(NamedTuple):
    """What a kernel compiled to.

    Attributes:
        target: Compute capability (`90`) or AMD's name (`gfx942`).
        registers: Of a thread; vector registers on AMD.
        stack: Bytes of a thread.
        spills: Instructions that move registers to and from memory; on AMD registers that are.
        shared: Bytes of shared memory of a program.
        instructions: All of them in order.
        labels: Where each label stands among them.
    """

    target: str
    registers: int
    stack: int
    spills: int
    shared: int
    instructions: list[str]
    labels: dict[str, int]

    @property
    def fits(self) -> bool:
        """Whether nothing spills and a program finds its shared memory."""
        return not self.spills and self.shared <= SHARED_LIMIT[target_of(self.target).backend]

    def inner_loop(self, exponential: bool) -> list[str]:
        """The shortest loop; of those that compute exponentials, if wanted."""
        loops = []
        for place, instruction in enumerate(self.instructions):
            back = re.search(r"(?:BRA.*`\(|s_cbranch\w*\s+)(\.L\w+)", instruction)
            if back and self.labels.get(back[1], place + 1) <= place:
                body = self.instructions[self.labels[back[1]] : place + 1]
                if not exponential or exponentials_in(body):
                    loops.append(body)
        return min(loops, key=len, default=[])


def exponentials_in(instructions: list[str]) -> int:
    """Count instructions that compute an exponential a lane."""
    return sum("EX2" in each or each.startswith("v_exp") for each in instructions)


def target_of(name: str) -> GPUTarget:
    """Return Triton's target for `90` (compute capability 9.0) or `gfx942`."""
    if name.startswith("gfx"):
        return GPUTarget("hip", name, 32 if name.startswith(("gfx10", "gfx11", "gfx12")) else 64)
    return GPUTarget("cuda", int(name), 32)


def compile_for(
    target: str,
    kernel: Any,
    dtypes: Mapping[str, str],
    constants: Mapping[str, Any],
    warps: int,
    stages: int,
) -> Compiled:
    """Compile a kernel.

    Args:
        target: See `target_of`.
        kernel: A function marked by `triton.jit`.
        dtypes: Triton's names of the dtypes of arguments that are not int32, by the ends of their
            names, the first that fits: `_ptr` for pointers.
        constants: Values of constants, which may be more than the kernel has.
        warps: Of a program.
        stages: Steps of a loop that are loaded ahead.
    """
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    signature, aligned = {}, {}
    for place, argument in enumerate(kernel.arg_names):
        dtype = next((dtypes[end] for end in dtypes if argument.endswith(end)), "i32")
        pointer = "*" if argument.endswith("_ptr") else ""
        signature[argument] = "constexpr" if argument in constants else pointer + dtype
        if argument.endswith(("_ptr", "_stride")):
            aligned[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": warps, "num_stages": stages}
    compiled = triton.compile(source, target=target_of(target), options=options)
    read = _read_cubin if "cubin" in compiled.asm else _read_amdgcn
    return Compiled(target, *read(compiled.asm, compiled.metadata.shared))


def _read_cubin(asm: Mapping[str, Any], shared: int) -> tuple[Any, ...]:
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(asm["cubin"])
        text, usage = (
            subprocess.run([tools / tool, option, path], capture_output=True, text=True, check=True)
            for tool, option in (("nvdisasm", "-c"), ("cuobjdump", "-res-usage"))
        )
    pattern = r"\s*/\*[0-9a-f]+\*/\s+(?P<instruction>.*?);"
    instructions, labels = _lines(text.stdout, pattern)
    used = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout + usage.stderr)
    spills = sum(re.search(r"\b(STL|LDL)\b", each) is not None for each in instructions)
    return int(used[1]), int(used[2]), spills, shared, instructions, labels


def _read_amdgcn(asm: Mapping[str, Any], shared: int) -> tuple[Any, ...]:
    text = asm["amdgcn"]
    pattern = r"\s+(?P<instruction>(?:v|s|ds|global|buffer|flat|scratch)_[^;]*)"
    instructions, labels = _lines(text, pattern)
    registers, stack, spills = (
        int(re.search(rf"\.{key}:\s+(\d+)", text)[1])
        for key in ("vgpr_count", "private_segment_fixed_size", "vgpr_spill_count")
    )
    return registers, stack, spills, shared, instructions, labels


def _lines(text: str, pattern: str) -> tuple[list[str], dict[str, int]]:
    instructions, labels = [], {}
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L\w+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(pattern, line):
            instructions.append(instruction["instruction"].strip())
    return instructions, labels
