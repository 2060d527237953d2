"""`basicsr upscale`: upscale pictures with a trained network."""

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

HELP = "Upscale pictures with a trained network."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what to upscale, with what, and where to."""
    parser.add_argument(
        "inputs",
        nargs="+",
        type=Path,
        metavar="INPUT",
        help="PNG, JPEG, WebP, TIFF or BMP of 8 or 16 bits, or folders of them",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("upscaled"),
        metavar="OUT",
        help="folder for the results, which are PNG, or NAME.png for one picture "
        "(default: upscaled)",
    )
    parser.add_argument(
        "--model",
        metavar="NAME|PATH",
        help="checkpoint; its network, scale and options are found from the file "
        "(default: the weights that came with the package)",
    )
    parser.add_argument(
        "--tile",
        type=int,
        metavar="N",
        help="work on tiles of N x N input pixels, for less memory, or 0 for whole pictures; the "
        "result differs a little (default: tiles of 512 for pictures above 1024 x 1024)",
    )
    parser.add_argument(
        "--tile-pad",
        type=int,
        metavar="N",
        help="margin around tiles in input pixels (default: two windows of the network's)",
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="what to compute in; float32 is exact (default: float32)",
    )
    parser.add_argument(
        "--device", metavar="DEVICE", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace results that exist; else they are kept"
    )


def run(args: argparse.Namespace) -> int:
    """Upscale. 0 if every picture is done or was there already, 1 if some could not be."""
    from tqdm import tqdm

    from esc_arch.errors import UserError
    from esc_arch.inference.upscaler import plan_jobs, run_job

    _check_tiles(args)
    jobs, problems = plan_jobs(args.inputs, args.output)
    upscaler = _load(args)
    for problem in problems:
        print(f"basicsr: error: {problem}", file=sys.stderr)
    failed, kept, done = len(problems), 0, 0
    with tqdm(total=len(jobs), unit="picture", disable=not sys.stderr.isatty()) as bar:
        for job in jobs:
            bar.set_description_str(job.source.name)
            if job.target.exists() and job.source.exists() and not args.overwrite:
                kept += 1
                bar.write(f"{job.target}: kept; --overwrite replaces it", file=sys.stdout)
            else:
                try:
                    width, height = run_job(job, upscaler, _watch_tiles(bar))
                    done += 1
                    bar.write(f"{job.target}: {width} x {height}", file=sys.stdout)
                except UserError as error:
                    failed += 1
                    bar.write(f"basicsr: error: {error}", file=sys.stderr)
            bar.update()
    print(f"{done} upscaled, {kept} kept, {failed} failed")
    return 1 if failed else 0


def _check_tiles(args: argparse.Namespace) -> None:
    from esc_arch.errors import UserError

    for flag, value in (("--tile", args.tile), ("--tile-pad", args.tile_pad)):
        if value is not None and value < 0:
            raise UserError(f"{flag} {value}: must be a number of pixels, 0 or more")


def _load(args: argparse.Namespace):
    """The network, on its device."""
    import torch

    from esc_arch.errors import UserError
    from esc_arch.inference.upscaler import Upscaler
    from esc_arch.zoo.catalogue import default_model
    from esc_arch.zoo.loading import load_network
    from esc_arch.zoo.local import resolve

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"--device {device}: cannot be used here: {reason}") from None
    path = resolve(args.model or default_model())
    network, network_g = load_network(path, device, getattr(torch, args.dtype))
    return Upscaler(network, network_g["window_size"], args.tile, args.tile_pad)


def _watch_tiles(bar) -> Callable[[Iterable], Iterable]:
    """Shows the number of the tile after the bar."""

    def watch(tiles: Iterable) -> Iterable:
        tiles = list(tiles)
        for number, tile in enumerate(tiles, 1):
            bar.set_postfix_str(f"tile {number} of {len(tiles)}")
            yield tile
        bar.set_postfix_str("")

    return watch
