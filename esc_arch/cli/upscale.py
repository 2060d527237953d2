"""`basicsr upscale`: upscale pictures with a trained network."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esc_arch.inference.manifest import Manifest
    from esc_arch.inference.upscaler import Upscaler

HELP = "Upscale pictures with a trained network."
# Formats and codecs without a --quality.
LOSSLESS = ("png", "tiff", "ffv1")
_ALONE = "films are upscaled one at a time, alone"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what to upscale, with what, and where to."""
    parser.add_argument(
        "inputs",
        nargs="+",
        type=Path,
        metavar="INPUT",
        help="PNG, JPEG, WebP, TIFF or BMP of 8 or 16 bits, folders of them, or patterns in quotes "
        "such as 'photos/*.jpg' and 'photos/**/*.png'",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("upscaled"),
        metavar="OUT",
        help="folder for the results, or the file for one picture, such as NAME.png "
        "(default: upscaled)",
    )
    parser.add_argument(
        "--model",
        metavar="NAME|PATH",
        help="checkpoint; its network, scale and options are found from the file "
        "(default: the weights that came with the package)",
    )
    parser.add_argument(
        "--scale",
        type=int,
        metavar="S",
        help="how many times larger; picks the weights where no model is named",
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
    devices = parser.add_mutually_exclusive_group()
    devices.add_argument(
        "--device", metavar="DEVICE", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)"
    )
    devices.add_argument(
        "--devices",
        metavar="DEVICE,DEVICE",
        help="several, such as cuda:0,cuda:1, to divide the pictures among",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=1,
        metavar="N",
        help="let up to N pictures of one size through the network at once, as far as the memory "
        "suffices: faster on a GPU (default: 1)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace results that exist; else they are kept unless they are of another source, "
        "other weights or other options (films: unless their size or date tells)",
    )
    _add_files(parser)
    _add_films(parser)


def _add_files(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("files")
    files.add_argument(
        "--format",
        choices=["png", "jpeg", "webp", "tiff"],
        help="how results are written (default: as -o ends, or png)",
    )
    files.add_argument(
        "--quality",
        type=int,
        metavar="Q",
        help="1 to 100, for JPEG (default: 95), WebP (default: 100, lossless) and films "
        "(default: 70) only",
    )
    files.add_argument(
        "--suffix", default="", metavar="TEXT", help="put behind names, such as _x2: photo_x2.png"
    )
    files.add_argument(
        "--keep-suffix",
        action="store_true",
        help="keep the source's suffix in the name, as in photo.jpg.png",
    )
    files.add_argument(
        "--compare",
        action="store_true",
        help="also write NAME_compare.png: bicubic and the result side by side",
    )
    files.add_argument(
        "--strip",
        action="store_true",
        help="leave out EXIF, XMP and resolution; colour profiles stay",
    )
    files.add_argument(
        "--page", type=int, metavar="N", help="which page of a TIFF with several (default: the 1st)"
    )
    files.add_argument(
        "--max-megapixels",
        type=int,
        default=1000,
        metavar="N",
        help="refuse larger inputs (default: 1000)",
    )
    files.add_argument(
        "--shard",
        metavar="I/N",
        help="do the I-th of N parts of the pictures, such as 2/8, to divide them among machines",
    )


def _add_films(parser: argparse.ArgumentParser) -> None:
    from esc_arch.films import CODECS

    films = parser.add_argument_group("films (one at a time, extra video)")
    films.add_argument(
        "--codec",
        choices=list(CODECS),
        help="how a film is written; ffv1 is lossless (default: h264); --quality is its quality "
        "(default: 70)",
    )


def run(args: argparse.Namespace) -> int:
    """Upscale. 0 if every picture is done or was there already, 1 if some could not be."""
    from esc_arch.errors import printable
    from esc_arch.zoo.local import weights_of

    _check(args)
    part = _shard(args.shard)
    weights_of(args.model, args.scale)  # A wrong name is told before torch is imported.
    from esc_arch.cli.upscaled import upscale_all
    from esc_arch.inference.planning import Naming, check_writable, plan_jobs, shard
    from esc_arch.inference.work import Settings

    if (film := _film(args)) is not None:
        from esc_arch.cli.upscale_film import target_of, upscale_one

        args.codec = args.codec or "h264"
        target_of(args, film)
        _check_quality(args.quality, args.codec)
        (upscaler,) = _load(args)
        return upscale_one(args, film, upscaler, _made_by(args, upscaler.scale))
    naming = Naming(args.output, args.format, args.suffix, args.keep_suffix)
    films = [path for path in args.inputs if _is_film(path)]
    pictures = [path for path in args.inputs if path not in films]
    plan = plan_jobs(pictures, naming, args.quality, args.strip)
    plan.problems += [f"{printable(film)}: {_ALONE}" for film in films]
    _check_quality(args.quality, plan.encoding.format)
    plan.jobs = shard(plan.jobs, *part)
    upscalers = _load(args) if plan.jobs else []
    if plan.jobs:
        check_writable(plan)
    for note in plan.notes:
        print(f"basicsr: {note}", file=sys.stderr)
    settings = Settings(plan.encoding, args.page, args.max_megapixels, args.batch)
    manifest = None
    if plan.to_folder and upscalers:
        manifest = _manifest(args, upscalers[0].scale, plan.folder, part)
    tally = upscale_all(plan, upscalers, settings, manifest, args.overwrite, args.compare)
    print(tally)
    return 1 if tally.failed else 0


def _check(args: argparse.Namespace) -> None:
    from esc_arch.errors import UserError, printable

    for flag, value in (("--tile", args.tile), ("--tile-pad", args.tile_pad)):
        if value is not None and value < 0:
            raise UserError(f"{flag} {value}: must be a number of pixels, 0 or more")
    for flag, value in (("--scale", args.scale), ("--page", args.page)):
        if value is not None and value < 1:
            raise UserError(f"{flag} {value}: must be 1 or more")
    for flag, value in (("--max-megapixels", args.max_megapixels), ("--batch", args.batch)):
        if value < 1:
            raise UserError(f"{flag} {value}: must be 1 or more")
    if args.quality is not None and not 1 <= args.quality <= 100:
        raise UserError(f"--quality {args.quality}: must be from 1 to 100")
    if Path(args.suffix).name != args.suffix or "\0" in args.suffix:
        raise UserError(f"--suffix {printable(args.suffix)}: must be part of a file name")


def _check_quality(quality: int | None, format: str) -> None:
    from esc_arch.errors import UserError

    if quality is not None and format in LOSSLESS:
        raise UserError(f"--quality {quality}: {format} is lossless here, and has none")


def _is_film(path: Path) -> bool:
    from esc_arch.films import SUFFIXES

    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def _film(args: argparse.Namespace) -> Path | None:
    """The film that is to be upscaled; None where there are pictures.

    Raises:
        UserError: There are several, or an option is given that films or pictures have not.
    """
    from esc_arch.errors import UserError, printable
    from esc_arch.inference.planning import expand

    films = [path for path in args.inputs if _is_film(path)]
    if not films or len(films) < len(args.inputs):
        if args.codec is not None:
            raise UserError(f"--codec {args.codec}: is for films; these are pictures")
        return None
    if len(films) > 1:
        raise UserError(f"{printable(films[0])}: {_ALONE}")
    for name in ("format", "keep_suffix", "compare", "strip", "page", "shard", "devices"):
        if getattr(args, name):
            raise UserError(f"--{name.replace('_', '-')}: is for pictures; this is a film")
    found, problems = expand(films)
    if problems:
        raise UserError(*problems)
    if len(found) > 1:
        raise UserError(
            f"{printable(films[0])}: fits {len(found)} films; they are upscaled one at a time"
        )
    return found[0][0]


def _shard(text: str | None) -> tuple[int, int]:
    from esc_arch.errors import UserError, printable

    if text is None:
        return 1, 1
    number, _, count = text.partition("/")
    if number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
        return int(number), int(count)
    raise UserError(f"--shard {printable(text)}: must be I/N with I from 1 to N, such as 2/8")


def _load(args: argparse.Namespace) -> "list[Upscaler]":
    """The network, once a device."""
    from esc_arch.errors import UserError, printable
    from esc_arch.inference.load import load
    from esc_arch.kernels.cpu.library import note_on_bfloat16
    from esc_arch.zoo.local import find, other_than_published

    names = [args.device] if args.devices is None else args.devices.split(",")
    if "" in names:
        raise UserError(
            f"--devices {printable(args.devices)}: must be devices with commas between, such as "
            "cuda:0,cuda:1"
        )
    upscalers = [
        load(args.model, name, args.dtype, args.tile, tile_pad=args.tile_pad, scale=args.scale)
        for name in names
    ]
    devices = [next(one.network.parameters()).device for one in upscalers]
    for upscaler, device in zip(upscalers, devices, strict=True):
        upscaler.memory_share = 1 / devices.count(device)
    if args.dtype == "bfloat16":
        for note in {note_on_bfloat16(device) for device in devices} - {None}:
            print(f"basicsr: {note}", file=sys.stderr)
    path = find(args.model) if args.model else None
    if path is not None and (note := other_than_published(path)):
        print(f"basicsr: {note}", file=sys.stderr)
    return upscalers


def _manifest(
    args: argparse.Namespace, scale: int, folder: Path, part: tuple[int, int]
) -> "Manifest":
    """What tells a later run which results are those of these weights and options."""
    from esc_arch.inference.manifest import Manifest

    names = ("page", "quality", "strip")
    made_by = _made_by(args, scale) | {name: getattr(args, name) for name in names}
    return Manifest(folder, str(made_by.pop("model")), made_by, part)


def _made_by(args: argparse.Namespace, scale: int) -> dict[str, object]:
    """What the pixels of results depend on beside their source."""
    from esc_arch.whole_files import file_sha256
    from esc_arch.zoo.local import weights_of

    path = weights_of(args.model, args.scale)
    options = {name: getattr(args, name) for name in ("tile", "tile_pad", "dtype")}
    return {"model": file_sha256(path), "scale": scale, **options}
