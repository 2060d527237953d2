"""`basicsr analyze`: what networks look at, as pictures and figures."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from esc_arch.errors import UserError, printable

if TYPE_CHECKING:
    import torch

    from esc_arch.study.subjects import Subject

HELP = "Show what networks look at: receptive field, attribution, position bias."

ANALYSES = {
    "erf": "effective receptive field: what the centre of the result depends on",
    "lam": "local attribution map: what the structure within a square of the result comes from",
    "bias": "learned position bias of each attention and head",
}
# Photographs within scikit-image's own package, taken as LR pictures.
DEFAULT_PICTURES = {
    "erf": ("astronaut", "chelsea", "coffee", "rocket"),
    "lam": ("astronaut",),
}
DEFAULT_SIZE = {"erf": 96, "lam": 64}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the analyses, each with its own options."""
    subparsers = parser.add_subparsers(
        title="analyses", dest="analysis", metavar="ANALYSIS", required=True
    )
    for name, text in ANALYSES.items():
        subparser = subparsers.add_parser(name, help=text, description=text)
        _add_networks(subparser)
        if name != "bias":
            _add_pictures(subparser, name)
        if name == "lam":
            _add_attribution(subparser)
        subparser.add_argument(
            "-o",
            "--output",
            type=Path,
            default=Path("results/analyze"),
            metavar="FOLDER",
            help="where PNG and JSON go (default: %(default)s)",
        )


def _add_networks(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "networks", "one or more, in any of these ways; they share one picture, in this order"
    )
    for flag, metavar, text in (
        ("-opt", "FILE", "option file: its network_g, with the weights at pretrain_network_g"),
        ("--checkpoint", "FILE", "file, or name of a published checkpoint, of the ESC family"),
        ("--network", "YAML", "option block, '{type: ESC, dim: 64, ...}', with random weights"),
    ):
        group.add_argument(
            flag,
            dest="networks",
            action="append",
            # Keeps the order that the networks are given in, across the three flags.
            type=lambda value, flag=flag: (flag, value),
            metavar=metavar,
            help=text,
        )


def _add_pictures(parser: argparse.ArgumentParser, analysis: str) -> None:
    parser.add_argument(
        "--images",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="LR pictures, files or folders (default: photographs of scikit-image)",
    )
    parser.add_argument(
        "--size",
        type=int,
        default=DEFAULT_SIZE[analysis],
        metavar="PIXELS",
        help="side of the square cut out of each picture (default: %(default)s)",
    )
    parser.add_argument(
        "--at",
        nargs=2,
        type=int,
        metavar=("X", "Y"),
        help="pixel of the picture to look at (default: its centre)",
    )


def _add_attribution(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--patch",
        type=int,
        default=16,
        metavar="PIXELS",
        help="side of the square of the result that is explained (default: %(default)s)",
    )
    parser.add_argument(
        "--sigma",
        type=float,
        default=1.2,
        help="blur in pixels that the path starts from (default: %(default)s)",
    )
    parser.add_argument(
        "--steps", type=int, default=50, help="steps along the path (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Analyse, print the figures, and save them with the picture.

    Returns:
        0.

    Raises:
        UserError: A network, a picture or an option cannot be used.
    """
    from esc_arch.cli.pipeline import import_plugins
    from esc_arch.zoo.local import resolve

    if not args.networks:
        raise UserError("no network to analyse; give -opt, --checkpoint or --network")
    for flag, value in args.networks:
        if flag == "--checkpoint":
            resolve(value)  # A wrong name is told before torch is imported.
    import_plugins()
    subjects = _read_networks(args.networks)
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--output {args.output}: {error.strerror}; a writable folder is needed"
        ) from None
    {"erf": _erf, "lam": _lam, "bias": _bias}[args.analysis](subjects, args)
    return 0


def _read_networks(networks: list[tuple[str, str]]) -> list["Subject"]:
    from dataclasses import replace

    from esc_arch.study.subjects import (
        subject_from_checkpoint,
        subject_from_options,
        subject_from_yaml,
    )

    read = {
        "-opt": subject_from_options,
        "--checkpoint": subject_from_checkpoint,
        "--network": subject_from_yaml,
    }
    device = _device()
    subjects = []
    for flag, value in networks:
        subject = read[flag](value)
        same = sum(one.label.partition(" #")[0] == subject.label for one in subjects)
        label = f"{subject.label} #{same + 1}" if same else subject.label
        subjects.append(replace(subject, label=label, network=subject.network.to(device)))
    return subjects


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _read_pictures(
    args: argparse.Namespace,
) -> dict[str, tuple["torch.Tensor", tuple[int, int]]]:
    """LR squares (3, size, size) in [0, 1] by name, and the row and column of --at in them."""
    import cv2
    import numpy as np
    import torch

    from esc_arch.prepare.images import list_images, read_image

    if args.size < 8:
        raise UserError(f"--size {args.size}: must be at least 8 pixels")
    pictures: dict[str, np.ndarray] = {}
    if args.images:
        files = [
            file
            for path in args.images
            for file in (list_images(path, "--images") if path.is_dir() else [path])
        ]
        for file in files:
            if file.stem in pictures:
                raise UserError(f"--images {file}: another picture is called {file.stem} too")
            pictures[file.stem] = cv2.cvtColor(read_image(file)[0], cv2.COLOR_BGR2RGB)
    else:
        import skimage.data

        for name in DEFAULT_PICTURES[args.analysis]:
            pictures[name] = getattr(skimage.data, name)()
    squares = {}
    for name, picture in pictures.items():
        height, width = picture.shape[:2]
        if min(height, width) < args.size:
            raise UserError(f"--size {args.size}: picture {name} is only {width}x{height}")
        x, y = args.at or (width // 2, height // 2)
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(f"--at {x} {y}: not within picture {name}, which is {width}x{height}")
        # The square stays within the picture.
        top = min(max(0, y - args.size // 2), height - args.size)
        left = min(max(0, x - args.size // 2), width - args.size)
        square = np.ascontiguousarray(picture[top : top + args.size, left : left + args.size])
        tensor = torch.from_numpy(square).permute(2, 0, 1).float().div(255).to(_device())
        squares[name] = tensor, (y - top, x - left)
    return squares


def _describe(subject: "Subject") -> dict:
    return {
        "network": subject.label,
        "options": subject.network_g,
        "weights": subject.weights,
        "parameters": subject.parameters,
    }


def _save(args: argparse.Namespace, name: str, png: bytes, figures: dict) -> None:
    import json

    from esc_arch.whole_files import write_atomically

    try:
        write_atomically(args.output / f"{name}.png", png)
        text = json.dumps(figures, indent=2, default=str)
        write_atomically(args.output / f"{name}.json", f"{text}\n".encode())
    except OSError as error:
        raise UserError(f"--output {args.output}: {error.strerror}") from None
    print(f"Saved {printable(args.output / name)}.png and .json")


def _erf(subjects: list["Subject"], args: argparse.Namespace) -> None:
    import torch

    from esc_arch.study.analysis import effective_receptive_field, erf_sizes
    from esc_arch.study.plots import draw_erf

    pictures = _read_pictures(args)
    stack = torch.stack([square for square, _ in pictures.values()])
    fields, figures = [], []
    for subject in subjects:
        field = effective_receptive_field(subject, stack)
        sizes = erf_sizes(field)
        figures.append({**_describe(subject), "largest": float(field.max()), "squares": sizes})
        squares = ", ".join(f"{share} within {one['side']}" for share, one in sizes.items())
        print(f"{printable(subject.label)}: {squares} pixels of the centre")
        fields.append((subject.label, field))
    common = {"analysis": "erf", "size": args.size, "at": args.at, "pictures": list(pictures)}
    _save(args, "erf", draw_erf(fields), {**common, "networks": figures})


def _lam(subjects: list["Subject"], args: argparse.Namespace) -> None:
    from esc_arch.study.analysis import local_attribution
    from esc_arch.study.plots import draw_attribution

    if args.steps < 1:
        raise UserError(f"--steps {args.steps}: must be at least 1")
    if not args.sigma > 0:
        raise UserError(f"--sigma {args.sigma}: must be above 0")
    for name, (picture, centre) in _read_pictures(args).items():
        attributions, figures, scales = [], [], []
        for subject in subjects:
            one = local_attribution(subject, picture, centre, args.patch, args.sigma, args.steps)
            figures.append(
                {
                    **_describe(subject),
                    "diffusion_index": one.diffusion_index,
                    "gini": one.gini,
                    "detected": one.detected,
                    "detected_blurred": one.detected_blurred,
                    "attributed": float(one.values.sum()),
                    "patch": dict(zip(("top", "left", "side"), one.patch, strict=True)),
                }
            )
            found = f"diffusion index {one.diffusion_index:.2f} on {name}"
            print(printable(f"{subject.label}: {found}"))
            attributions.append((subject.label, one))
            scales.append(one.result.shape[-1] // picture.shape[-1])
        common = {"analysis": "lam", "picture": name, "size": args.size, "at": args.at}
        common |= {"sigma": args.sigma, "steps": args.steps}
        png = draw_attribution(picture, attributions, scales)
        _save(args, f"lam_{name}", png, {**common, "networks": figures})


def _bias(subjects: list["Subject"], args: argparse.Namespace) -> None:
    from esc_arch.study.analysis import mean_distance, position_biases
    from esc_arch.study.plots import draw_biases

    networks, figures = [], []
    for subject in subjects:
        maps = position_biases(subject.network)
        if not maps:
            raise UserError(
                f"{subject.label}: has no learned position bias; networks such as ESC and SwinIR do"
            )
        blocks = {
            name: [
                {
                    "smallest": float(head.min()),
                    "largest": float(head.max()),
                    "mean": float(head.mean()),
                    "standard_deviation": float(head.std(correction=0)),
                    "mean_distance": mean_distance(head),
                }
                for head in grid
            ]
            for name, grid in maps.items()
        }
        figures.append({**_describe(subject), "attentions": blocks})
        heads = [head for grid in maps.values() for head in grid]
        print(
            f"{subject.label}: {len(maps)} attentions, {len(heads)} heads, bias from "
            f"{min(float(head.min()) for head in heads):.3f} to "
            f"{max(float(head.max()) for head in heads):.3f}"
        )
        networks.append((subject.label, maps))
    _save(args, "bias", draw_biases(networks), {"analysis": "bias", "networks": figures})
