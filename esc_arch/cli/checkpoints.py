"""`basicsr checkpoints`: the published checkpoints, and what a checkpoint file holds."""

import argparse
import sys
from pathlib import Path

HELP = "List, download and check published checkpoints; show what a file holds."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions, each with arguments of its own."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    actions.add_parser("list", help="show all checkpoints that have a name, and which are here")

    download = actions.add_parser(
        "download", help="download into experiments/pretrained_models below the current folder"
    )
    download.add_argument("names", nargs="+", metavar="NAME", help="a name that `list` shows")
    download.add_argument(
        "--mirror",
        metavar="URL",
        help="download URL/NAME.pth rather than from the authors' release; the environment "
        "variable ESC_CHECKPOINTS_URL does the same",
    )

    verify = actions.add_parser("verify", help="check that files are whole and what they should be")
    verify.add_argument(
        "files",
        nargs="*",
        metavar="NAME|PATH",
        help="default: everything in experiments/pretrained_models and what came with the package",
    )

    info = actions.add_parser(
        "info", help="print network, scale, size and the options to paste into an option file"
    )
    info.add_argument("files", nargs="+", metavar="NAME|PATH")


def run(args: argparse.Namespace) -> int:
    """Do one action. 0 if all went well, 1 if `download` or `verify` failed for some of several."""
    return {"list": _list, "download": _download, "verify": _verify, "info": _info}[args.action](
        args
    )


def _list(args: argparse.Namespace) -> int:
    from esc_arch.zoo import catalogue as checkpoints

    rows = [("NAME", "NETWORK", "SCALE", "PARAMETERS", "TRAINED ON", "HERE")]
    for name, path in checkpoints.shipped().items():
        checkpoint = checkpoints.read_checkpoint(path)
        rows.append(
            (
                name,
                checkpoint.network_g["type"],
                f"x{checkpoint.network_g['upscaling_factor']}",
                f"{checkpoint.parameters:,}",
                checkpoint.metadata.get("data", "not recorded"),
                "in the package",
            )
        )
    for name, entry in checkpoints.PUBLISHED.items():
        network = checkpoints.build_on_meta(entry.network_g)
        path = checkpoints.find(name)
        rows.append(
            (
                name,
                entry.network_g["type"],
                f"x{entry.scale}",
                f"{sum(value.numel() for value in network.parameters()):,}",
                entry.data,
                "-" if path is None else str(path),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).strip())
    return 0


def _download(args: argparse.Namespace) -> int:
    from esc_arch.errors import UserError
    from esc_arch.zoo import catalogue as checkpoints

    entries = [checkpoints.published(name) for name in args.names]
    failed = 0
    for entry in entries:
        try:
            path = checkpoints.download_checkpoint(entry.name, args.mirror, sys.stderr.isatty())
            print(f"{entry.name}: {path}")
        except UserError as error:
            if len(entries) == 1:
                raise
            failed += 1
            print(f"basicsr: error: {error}", file=sys.stderr)
    return 1 if failed else 0


def _verify(args: argparse.Namespace) -> int:
    from esc_arch.errors import UserError
    from esc_arch.zoo import catalogue as checkpoints

    files = args.files or [*checkpoints.shipped().values(), *_downloaded()]
    if not files:
        raise UserError(
            f"nothing to verify: no checkpoint in {checkpoints.PRETRAINED_FOLDER} and none named"
        )
    failed = 0
    for file in files:
        try:
            path = checkpoints.find(file) or checkpoints.resolve(file)
            network_g = checkpoints.verify_checkpoint(path).network_g
        except UserError as error:
            failed += 1
            print(f"basicsr: error: {error}", file=sys.stderr)
            continue
        known = checkpoints.checksum_known(path)
        checksum = "checksum right" if known else "no checksum to compare with"
        print(f"{path}: whole, {network_g['type']} x{network_g['upscaling_factor']}, {checksum}")
    return 1 if failed else 0


def _downloaded() -> list[Path]:
    from esc_arch.zoo import catalogue as checkpoints

    folder = checkpoints.PRETRAINED_FOLDER
    return sorted(path for path in folder.glob("*") if path.suffix in (".pth", ".safetensors"))


def _info(args: argparse.Namespace) -> int:
    import yaml

    from esc_arch.zoo import catalogue as checkpoints

    for number, file in enumerate(args.files):
        checkpoint = checkpoints.read_checkpoint(checkpoints.resolve(file))
        network_g = checkpoint.network_g
        if number:
            print()
        print(f"{checkpoint.path}")
        print(f"network: {network_g['type']}")
        print(f"scale: {network_g['upscaling_factor']}")
        print(f"parameters: {checkpoint.parameters:,}")
        print(f"weights: {', '.join(checkpoint.params)}")
        for key, value in checkpoint.metadata.items():
            print(f"{key}: {value}")
        print()
        print(yaml.safe_dump({"network_g": network_g}, sort_keys=False), end="")
    return 0
