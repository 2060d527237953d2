"""`basicsr export`: networks for other runtimes, checked against PyTorch."""

import argparse
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from esc_arch.inference.export_checks import Shape
    from esc_arch.zoo.loading import Checkpoint

HELP = "Write a network for other runtimes: ONNX, torch.export."
SUFFIXES = {"onnx": ".onnx", "exported": ".pt2"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the kinds of files, each with arguments of its own."""
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    onnx = kinds.add_parser(
        "onnx",
        help="write .onnx, for ONNX Runtime, OpenVINO, TensorRT, vs-mlrt, ...",
        description="Write an ONNX model with input `input` and output `output`, RGB from 0 to 1, "
        "and compare it with PyTorch in ONNX Runtime; a file that differs is not written.",
    )
    _add_common(onnx, ".onnx")
    onnx.add_argument(
        "--opset",
        type=int,
        default=17,
        metavar="N",
        help="17, or up to the newest that the package onnx has (default: 17, which all read)",
    )
    exported = kinds.add_parser(
        "exported",
        help="write .pt2 of torch.export, for programs of PyTorch without this package",
        description="Write a program of torch.export from RGB (B, 3, H, W) from 0 to 1, and "
        "compare it with the network once read again; a file that differs is not written. Any "
        "size wants PyTorch 2.9 or newer.",
    )
    _add_common(exported, ".pt2")


def _add_common(parser: argparse.ArgumentParser, suffix: str) -> None:
    parser.add_argument(
        "--model",
        metavar="NAME|PATH",
        help="checkpoint (default: the weights that came with the package)",
    )
    parser.add_argument(
        "-o", "--output", required=True, type=Path, metavar="OUT", help=f"file to write, {suffix}"
    )
    parser.add_argument(
        "--scale",
        type=int,
        metavar="S",
        help="picks the weights where no model is named; else for the few files that do not tell",
    )
    parser.add_argument(
        "--shape",
        type=_shape,
        default=None,
        metavar="dynamic|BxCxHxW",
        help="what pictures it takes: any, or of one shape, such as 1x3x180x320 (default: dynamic)",
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "float16"],
        default="float32",
        help="of input, output and weights; with float16 softmax, LayerNorm and the means over the "
        "picture stay in float32 (default: float32)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")


def run(args: argparse.Namespace) -> int:
    """Export."""
    from esc_arch.errors import UserError, printable
    from esc_arch.zoo.local import weights_of

    shown, suffix = printable(args.output), SUFFIXES[args.kind]
    if args.output.suffix != suffix:
        raise UserError(f"-o {shown}: must end in {suffix}")
    if args.output.exists() and not args.overwrite:
        raise UserError(f"-o {shown}: exists; --overwrite replaces it")
    if args.scale is not None and args.scale < 1:
        raise UserError(f"--scale {args.scale}: must be 1 or more")
    args.model = weights_of(
        args.model, args.scale
    )  # A wrong name is told before torch is imported.
    return _onnx(args) if args.kind == "onnx" else _exported(args)


def _onnx(args: argparse.Namespace) -> int:
    import torch

    from esc_arch.errors import UserError
    from esc_arch.inference import onnx_files

    if args.opset not in (opsets := onnx_files.opsets()):
        raise UserError(
            f"--opset {args.opset}: must be from {opsets[0]} to {opsets[-1]}, the newest that this "
            "onnx has"
        )
    versions = onnx_files.versions()
    checkpoint, network = _network(args)
    dtype, properties = getattr(torch, args.dtype), _properties(checkpoint, network)
    model = onnx_files.to_onnx(network, args.shape, dtype, args.opset, properties)
    print(f"{versions}, against PyTorch {torch.__version__}:")
    _check(args, network, lambda shapes: onnx_files.errors_of(model, network, shapes))
    _write(args.output, model)
    return _tell(args, checkpoint, len(model), f"opset {args.opset}, {args.dtype}")


def _exported(args: argparse.Namespace) -> int:
    import torch

    from esc_arch.inference import exported_files

    checkpoint, network = _network(args)
    dtype, properties = getattr(torch, args.dtype), _properties(checkpoint, network)
    content = exported_files.to_exported(network, args.shape, dtype, properties)
    print(f"torch.export of PyTorch {torch.__version__}, against the network:")
    _check(args, network, lambda shapes: exported_files.errors_of(content, network, shapes))
    _write(args.output, content)
    return _tell(args, checkpoint, len(content), args.dtype)


def _network(args: argparse.Namespace) -> "tuple[Checkpoint, nn.Module]":
    import torch

    from esc_arch.errors import UserError
    from esc_arch.zoo.loading import build_network, read_checkpoint

    checkpoint = read_checkpoint(args.model, args.scale)
    network = build_network(checkpoint, "cpu", torch.float32)
    if args.scale not in (None, network.upscaling_factor):
        raise UserError(
            f"--scale {args.scale}: {args.model} upscales by {network.upscaling_factor}"
        )
    return checkpoint, network


def _properties(checkpoint: "Checkpoint", network: "nn.Module") -> dict[str, str]:
    """What a file says of itself; `scale` and `window_size` are read again."""
    return {
        **checkpoint.metadata,
        "architecture": type(network).__name__,
        "scale": str(network.upscaling_factor),
        "window_size": str(network.window_size),
    }


def _check(
    args: argparse.Namespace,
    network: "nn.Module",
    errors_of: "Callable[[Iterable[Shape]], Iterable[tuple[Shape, float]]]",
) -> None:
    """Print how far the exported network is from PyTorch; raises where that is too far."""
    import torch

    from esc_arch.errors import UserError, printable
    from esc_arch.inference.export_checks import LARGEST_ERRORS, check_shapes

    largest = 0.0
    shapes = check_shapes(network.window_size, args.shape)
    print(f"largest error for {len(shapes)} shapes, which takes a while:", flush=True)
    for shape, error in errors_of(shapes):
        print(f"  {'x'.join(map(str, shape)):<14} {error:.1e}", flush=True)
        largest = max(largest, error)
    print(f"largest error {largest:.1e}, where 1 is the range from black to white")
    limit = LARGEST_ERRORS[getattr(torch, args.dtype)]
    if not largest < limit:
        raise UserError(
            f"-o {printable(args.output)}: not written: the exported network differs from PyTorch "
            f"by {largest:.1e}; less than {limit:.0e} is right"
        )


def _write(path: Path, content: bytes) -> None:
    from esc_arch.errors import UserError, printable
    from esc_arch.zoo.store import write_atomically

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"-o {printable(path)}: cannot be written: {reason}") from None


def _tell(args: argparse.Namespace, checkpoint: "Checkpoint", size: int, what: str) -> int:
    from esc_arch.errors import printable

    names = ("batch", "3", "height", "width")
    shape = ", ".join(map(str, args.shape or names))
    print(
        f"{printable(args.output)}: {printable(checkpoint.path.stem)}, {what}, input ({shape}), "
        f"{size / 1e6:.1f} MB"
    )
    return 0


def _shape(text: str) -> "Shape | None":
    if text == "dynamic":
        return None
    match = re.fullmatch(r"([1-9]\d{0,4})x3x([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if not match:
        raise argparse.ArgumentTypeError(
            f"{text}: must be 'dynamic' or BATCHx3xHEIGHTxWIDTH, such as 1x3x180x320"
        )
    batch, height, width = map(int, match.groups())
    return batch, 3, height, width
