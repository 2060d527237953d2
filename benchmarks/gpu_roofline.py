"""The least time that ESC can take on GPUs by their data sheets: each layer's bytes and operations.

    python benchmarks/gpu_roofline.py
    python benchmarks/gpu_roofline.py --model ESC_light --dtype float32 --sizes 4:320x180
    python benchmarks/gpu_roofline.py --training

Each layer takes at least the largest of its bytes over the bandwidth of memory, its multiply-adds
over the rate of arithmetic, and its exponentials over theirs; layers run one after the other.
"Separate" reads and writes every intermediate, as a layer a kernel does; "ours" what our kernels
do; "fused" keeps inside what one kernel can: the ConvFFN, ConvAttn after its pooling, attention
from queries, keys and values to its result. A ConvFFN in one kernel would leave out the hidden
channels that ours writes and reads once; but its instructions, of which ours has 100 a hidden value
(gpu_static.py), then bound it, and it has more, as tiles overlap.
With --training: what a step of training moves of the layers whose backward we have kernels for, and
keeps for it; the products of matrices that make the gradients of weights are torch's in both.
Nothing here was measured on a GPU.
"""

import argparse
import sys
from typing import NamedTuple

from esc_arch.zoo.catalogue import PUBLISHED


class Gpu(NamedTuple):
    """What a data sheet says: bytes a second, and operations a second by dtype (dense).

    `exponentials`: 16 a clock and multiprocessor, at the boost clock.
    """

    bandwidth: float
    bfloat16: float
    tf32: float
    float32: float
    exponentials: float


# NVIDIA's data sheets of the H200 SXM, A100 80GB SXM and the Ada architecture's white paper.
GPUS = {
    "H200": Gpu(4.8e12, 989e12, 494e12, 67e12, 16 * 132 * 1.98e9),
    "A100": Gpu(2.039e12, 312e12, 156e12, 19.5e12, 16 * 108 * 1.41e9),
    "RTX 4090": Gpu(1.008e12, 165e12, 82.6e12, 82.6e12, 16 * 128 * 2.52e9),
}
MODELS = {"ESC": "ESC_DIV2K", "ESC_light": "ESC_light"}
KINDS = "separate", "ours", "fused"
INSTRUCTIONS_A_HIDDEN_VALUE = 100
BYTES = {"bfloat16": 2, "tf32": 4, "float32": 4}


class Layer(NamedTuple):
    """What one layer does at each LR pixel, in values; `times` it is in the network.

    `instructions` are those of our kernels, where they may be the bound.
    """

    name: str
    times: int
    separate: float
    ours: float
    fused: float
    multiply_adds: float
    exponentials: float = 0
    instructions: float = 0


def layers_of(options: dict) -> list[Layer]:
    """The layers of ESC by the options of its network."""
    dim, pdim, scale = options["dim"], options["pdim"], options["upscaling_factor"]
    blocks, convs = options["n_blocks"], options["conv_blocks"]
    keys = options["window_size"] ** 2
    large = options["kernel_size"] ** 2 * pdim**2

    def conv_ffn(name: str, times: int, ratio: float) -> Layer:
        hidden = int(dim * ratio)
        # 1x1; GELU; depthwise; GELU; sum; 1x1: each reads and writes what it works on.
        separate = 2 * dim + (2 + 2 + 2 + 3 + 1 + 1) * hidden - hidden
        return Layer(
            name,
            times,
            separate,
            2 * dim + 2 * hidden,
            2 * dim,
            2 * dim * hidden + 9 * hidden,
            instructions=INSTRUCTIONS_A_HIDDEN_VALUE * hidden,
        )

    heads = options["num_heads"]
    return [
        Layer("first 3x3", 1, 3 + dim, 3 + dim, 3 + dim, 27 * dim),
        Layer("LayerNorm", 3 * blocks, 2 * dim, 2 * dim, 2 * dim, 0),
        conv_ffn("ConvFFN of a block", blocks, 2),
        Layer("to_qkv", blocks, 4 * dim, 4 * dim, 4 * dim, 3 * dim**2),
        # Cutting into windows and back copies what attention reads and writes once more.
        Layer("attention", blocks, 12 * dim, 4 * dim, 4 * dim, 2 * keys * dim, keys * heads),
        Layer("to_out and sum", blocks, 5 * dim, 5 * dim, 3 * dim, dim**2),
        conv_ffn("ConvFFN of a ConvAttn", blocks * convs, options["exp_ratio"]),
        Layer(
            "ConvAttn",
            blocks * convs,
            # Pooling; large kernel; small kernels; their sum; joining; 1x1; sum.
            pdim + 2 * pdim + 2 * pdim + 3 * pdim + 2 * dim + 2 * dim + 3 * dim,
            # Pooling; large kernel; all else; sum.
            pdim + 2 * pdim + pdim + 2 * dim + 3 * dim,
            pdim + 3 * dim,
            large + 9 * pdim + dim**2,
        ),
        Layer("last 3x3 of a block, and sum", blocks, 5 * dim, 5 * dim, 3 * dim, 9 * dim**2),
        Layer("last 3x3, and sum", 1, 5 * dim, 5 * dim, 3 * dim, 9 * dim**2),
        Layer(
            "to_img, sum and shuffle",
            1,
            dim + 3 * scale**2 * 7 + 3,
            dim + 3 * scale**2 * 7 + 3,
            dim + 3 * scale**2 + 3,
            9 * dim * 3 * scale**2,
        ),
    ]


def time_of(layer: Layer, kind: str, pixels: int, gpu: Gpu, dtype: str) -> float:
    """Seconds that all of a layer's runs take at least: `separate`, `ours` or `fused`."""
    bound = max(
        getattr(layer, kind) * BYTES[dtype] / gpu.bandwidth,
        2 * layer.multiply_adds / getattr(gpu, dtype),
        layer.exponentials / gpu.exponentials,
        # 128 lanes issue for 16 exponentials.
        layer.instructions / (8 * gpu.exponentials) if kind == "ours" else 0,
    )
    return bound * pixels * layer.times


class Step(NamedTuple):
    """What a training step does with one layer at each LR pixel, in values.

    Attributes:
        moved: Read and written forward and backward, where each operation is a kernel.
        kept: Kept for the backward there.
        moved_by_ours: As our kernels do it.
        kept_by_ours: Kept there.
    """

    moved: float
    kept: float
    moved_by_ours: float
    kept_by_ours: float


def steps_of(options: dict) -> dict[str, tuple[int, Step]]:
    """How often the network has each layer, and what a step does with it."""
    dim, pdim = options["dim"], options["pdim"]
    blocks, layers = options["n_blocks"], options["n_blocks"] * options["conv_blocks"]

    def conv_ffn(ratio: float) -> Step:
        hidden = int(dim * ratio)
        # Forward as in `layers_of`. Backward, of each convolution its input and its weights; GELU
        # twice; the sum of both gradients of the hidden channels.
        forward, backward = 2 * dim + 10 * hidden, 4 * dim + 17 * hidden
        # Hidden channels again; the depthwise convolution's gradient; the first one's; each
        # matrix's, and that of x.
        ours = (dim + hidden) + (dim + 3 * hidden) + (dim + hidden) + (2 * dim + 2 * hidden)
        ours += 2 * (dim + hidden)
        kept = dim + 4 * hidden
        return Step(forward + backward, kept, 2 * dim + 2 * hidden + ours, dim)

    # Small kernels, sum, joining, 1x1; backward: 1x1 and its weights, small kernels and theirs, and
    # the gradient of x from its two parts.
    separate = (4 * dim + 5 * pdim) + (4 * dim + 4 * pdim + 5 * dim)
    # One kernel; one kernel, then the matrix's and the bias's gradients.
    ours = (2 * dim + pdim) + (2 * dim + 4 * pdim + 4 * dim)
    after = Step(separate, 2 * dim + pdim, ours, dim + pdim)
    return {
        "ConvFFN of a block": (blocks, conv_ffn(2)),
        "ConvFFN of a ConvAttn": (layers, conv_ffn(options["exp_ratio"])),
        "ConvAttn after its large kernel": (layers, after),
    }


def print_steps(model: str, dtypes: list[str]) -> None:
    """Print what a training step moves, and keeps of a batch of 16 patches of 64x64."""
    options = PUBLISHED[f"{MODELS[model]}_X2"].network_g
    pixels = 16 * 64 * 64
    print(f"{model} x2, batch 16, LR patch 64: values a pixel moved (kept), separate / ours")
    steps = steps_of(options)
    for name, (times, step) in steps.items():
        print(
            f"  {name:32} x{times:<3} {step.moved:6.0f} ({step.kept:4.0f}) /"
            f" {step.moved_by_ours:6.0f} ({step.kept_by_ours:4.0f})"
        )
    for dtype in dtypes:
        width = BYTES[dtype] * pixels
        moved, kept, ours, kept_by_ours = (
            width * sum(times * step[place] for times, step in steps.values()) for place in range(4)
        )
        print(
            f"  {dtype}: kept {kept / 1e9:.2f} / {kept_by_ours / 1e9:.2f} GB; least milliseconds:"
        )
        for name, gpu in GPUS.items():
            both = (1e3 * each / gpu.bandwidth for each in (moved, ours))
            print("    {:9} {:6.2f} / {:6.2f}".format(name, *both))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="ESC")
    parser.add_argument("--dtype", choices=BYTES, nargs="+", default=["bfloat16", "float32"])
    parser.add_argument(
        "--sizes", nargs="+", default=["4:320x180", "2:640x360"], metavar="SCALE:WIDTHxHEIGHT"
    )
    parser.add_argument("--layers", action="store_true", help="a line for each layer, of the H200")
    text = "what training steps move and keep, in place of all layers forward"
    parser.add_argument("--training", action="store_true", help=text)
    args = parser.parse_args()
    if args.training:
        print_steps(args.model, args.dtype)
        return 0
    print(f"{args.model}: least milliseconds, each layer a kernel / ours / fused")
    for size in args.sizes:
        scale, _, sides = size.partition(":")
        width, height = map(int, sides.split("x"))
        layers = layers_of(PUBLISHED[f"{MODELS[args.model]}_X{scale}"].network_g)
        operations = sum(each.multiply_adds * each.times for each in layers) * width * height
        print(f"x{scale}, LR {sides}, {operations / 1e9:.0f} G multiply-adds")
        for dtype in args.dtype:
            for name, gpu in GPUS.items():
                times = (
                    sum(time_of(each, kind, width * height, gpu, dtype) for each in layers)
                    for kind in KINDS
                )
                print(f"  {dtype:8} {name:9} " + " / ".join(f"{1e3 * t:6.2f}" for t in times))
            for each in layers if args.layers else ():
                times = (time_of(each, kind, width * height, GPUS["H200"], dtype) for kind in KINDS)
                line = " / ".join(f"{1e6 * t:6.0f}" for t in times)
                print(f"    {each.name:30} x{each.times:<3} {line} us")
    return 0


if __name__ == "__main__":
    sys.exit(main())
