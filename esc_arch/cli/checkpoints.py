"""`basicsr checkpoints`: the published checkpoints, and what a checkpoint file holds."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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

    card = actions.add_parser("card", help="print what a file says of itself, as JSON")
    card.add_argument("file", metavar="NAME|PATH")
    card.add_argument(
        "--openmodeldb", action="store_true", help="as OpenModelDB takes it, its fields checked"
    )
    card.add_argument(
        "--url",
        action="append",
        default=[],
        help="where the file can be downloaded, for OpenModelDB; may be repeated",
    )
    card.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field that the file does not tell, such as license=CC-BY-4.0; may be repeated",
    )
    card.add_argument("-o", "--output", type=Path, metavar="FILE", help="write it there")


def run(args: argparse.Namespace) -> int:
    """Do one action. 0 if all went well, 1 if some of several failed."""
    actions = {
        "list": _list,
        "download": _download,
        "verify": _verify,
        "info": _info,
        "card": _card,
    }
    return actions[args.action](args)


def _list(args: argparse.Namespace) -> int:
    from esc_arch.zoo.catalogue import PUBLISHED, shipped
    from esc_arch.zoo.identify import build_on_meta
    from esc_arch.zoo.loading import read_checkpoint
    from esc_arch.zoo.local import find

    rows = [("NAME", "NETWORK", "SCALE", "PARAMETERS", "TRAINED ON", "HERE")]
    for name, path in shipped().items():
        checkpoint = read_checkpoint(path)
        rows.append(
            (
                name,
                checkpoint.network_g["type"],
                f"x{checkpoint.network_g['upscaling_factor']}",
                f"{checkpoint.parameters:,}",
                checkpoint.metadata.get("data")
                or checkpoint.metadata.get("dataset", "not recorded"),
                "in the package",
            )
        )
    for name, entry in PUBLISHED.items():
        network = build_on_meta(entry.network_g)
        path = find(name)
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
    from esc_arch.zoo.catalogue import published
    from esc_arch.zoo.local import download_checkpoint

    entries = [published(name) for name in args.names]

    def download(name: str) -> None:
        print(f"{name}: {download_checkpoint(name, args.mirror, sys.stderr.isatty())}")

    return _each(download, [entry.name for entry in entries], alone_raises=True)


def _verify(args: argparse.Namespace) -> int:
    from esc_arch.errors import UserError, printable
    from esc_arch.zoo import local
    from esc_arch.zoo.catalogue import PRETRAINED_FOLDER, shipped

    files = args.files or [*shipped().values(), *_downloaded()]
    if not files:
        raise UserError(f"nothing to verify: no checkpoint in {PRETRAINED_FOLDER} and none named")

    def verify(file: str | Path) -> None:
        path = local.find(file) or local.resolve(file)
        # Not before: a wrong name need not wait for torch.
        from esc_arch.zoo.card import DIGEST, digest_fault

        checkpoint = local.verify_checkpoint(path)
        if fault := digest_fault(checkpoint.metadata, checkpoint.best):
            raise UserError(f"{printable(path)}: {fault}")
        network_g = checkpoint.network_g
        if local.checksum_known(path):
            checksum = "checksum right"
        elif DIGEST in checkpoint.metadata:
            checksum = "parameters are those of its card"
        else:
            checksum = "no checksum to compare with"
        network = f"{network_g['type']} x{network_g['upscaling_factor']}"
        print(f"{printable(path)}: whole, {network}, {checksum}")
        if note := local.other_than_published(path):
            print(note, file=sys.stderr)

    return _each(verify, files)


def _downloaded() -> list[Path]:
    from esc_arch.zoo.catalogue import PRETRAINED_FOLDER, SUFFIXES

    folder = PRETRAINED_FOLDER
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)


def _info(args: argparse.Namespace) -> int:
    import yaml

    from esc_arch.errors import printable
    from esc_arch.zoo.local import resolve

    printed = False

    def show(file: str) -> None:
        nonlocal printed
        path = resolve(file)
        # Not before: a wrong name need not wait for torch.
        from esc_arch.zoo.card import OPTIONS, digest_fault
        from esc_arch.zoo.loading import read_checkpoint

        checkpoint = read_checkpoint(path)
        network_g = checkpoint.network_g
        if printed:
            print()
        printed = True
        print(printable(checkpoint.path))
        print(f"network: {network_g['type']}")
        print(f"scale: {network_g['upscaling_factor']}")
        print(f"parameters: {checkpoint.parameters:,}")
        print(f"weights: {', '.join(checkpoint.params)}")
        for key, value in checkpoint.metadata.items():
            # What these say stands above and below, from the tensors themselves.
            if key not in (OPTIONS, "architecture", "scale"):
                print(f"{printable(key)}: {printable(value)}")
        if fault := digest_fault(checkpoint.metadata, checkpoint.best):
            print(f"basicsr: {printable(checkpoint.path)}: {fault}", file=sys.stderr)
        print()
        print(yaml.safe_dump({"network_g": network_g}, sort_keys=False), end="")

    return _each(show, args.files, alone_raises=True)


def _card(args: argparse.Namespace) -> int:
    import json

    from esc_arch.errors import UserError, printable
    from esc_arch.whole_files import write_atomically
    from esc_arch.zoo.local import resolve

    path = resolve(args.file)  # First: a wrong name is told before torch is imported.
    from esc_arch.zoo.card import FIELDS, describe, openmodeldb
    from esc_arch.zoo.loading import read_checkpoint

    if args.url and not args.openmodeldb:
        raise UserError("--url: belongs to --openmodeldb")
    given = {}
    for entry in args.set:
        key, equals, value = entry.partition("=")
        if not equals or key not in FIELDS:
            raise UserError(
                f"--set {printable(entry)}: must be FIELD=VALUE, with one of {', '.join(FIELDS)}"
            )
        given[key] = value
    checkpoint = read_checkpoint(path)
    network_g, told = checkpoint.network_g, checkpoint.metadata
    if args.openmodeldb:
        found = openmodeldb(checkpoint.path, network_g, told, args.url, given)
    else:
        found = describe(network_g, checkpoint.best, {"date": None, **told, **given})
        if "date" not in {**told, **given}:
            del found["date"]  # Today's, which is not the file's.
    text = json.dumps(found, indent=2) + "\n"
    if args.output is None:
        print(text, end="")
        return 0
    try:
        write_atomically(args.output, text.encode())
    except OSError as error:
        raise UserError(
            f"-o {printable(args.output)}: cannot be written: {error.strerror}"
        ) from None
    print(f"written: {printable(args.output)}")
    return 0


def _each(do: Callable[[Any], None], items: Sequence[Any], alone_raises: bool = False) -> int:
    """Do all of them, the rest also after one that fails; 1 if one failed.

    Args:
        do: What to do with one.
        items: All.
        alone_raises: Whether the only one ends the command with its error, and so with 2.
    """
    from esc_arch.errors import UserError

    failed = 0
    for item in items:
        try:
            do(item)
        except UserError as error:
            if alone_raises and len(items) == 1:
                raise
            failed += 1
            print(f"basicsr: error: {error}", file=sys.stderr)
    return 1 if failed else 0
