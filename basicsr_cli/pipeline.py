"""What `basicsr train` and `basicsr test` share: flags, plugins, preflight, then BasicSR itself."""

import argparse
import ast
import difflib
import importlib
import importlib.metadata
import os
import re
import sys
from collections.abc import Iterable

PLUGIN_GROUP = "basicsr.plugins"

# What BasicSR's own conversion of --force_yml values reads as a number, and what it should.
_BASICSR_NUMBER = re.compile(r"\d+|\d*\.\d+|\d+\.")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of BasicSR's train.py and test.py, under the same names."""
    parser.add_argument("-opt", required=True, metavar="FILE", help="option file (YAML)")
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm"],
        default="none",
        help="what started this process: pytorch for torchrun (default: none)",
    )
    parser.add_argument(
        "--auto_resume", action="store_true", help="go on from the latest saved training state"
    )
    parser.add_argument(
        "--debug", action="store_true", help="log every iteration, validate and save every 8"
    )
    # torch.distributed.launch passes it with a hyphen since PyTorch 2.0.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument(
        "--force_yml",
        nargs="+",
        metavar="KEY:KEY=VALUE",
        help="override values of the option file, e.g. train:ema_decay=0.99",
    )


def run(args: argparse.Namespace, is_train: bool) -> int:
    """Check the options, then hand over to BasicSR with the current folder as root.

    Args:
        args: What `add_arguments` parsed.
        is_train: Whether to train or to test.

    Returns:
        The exit status: 0, or 2 when the option file has errors (one line each on stderr).

    Raises:
        UserError: If a plugin cannot be imported or a --force_yml entry cannot be read.
    """
    import_plugins()
    from esc_arch.preflight import check_options

    force_yml = [checked_entry(entry) for entry in args.force_yml or []]
    check_parents(force_yml, args.opt)

    errors = check_options(args.opt, force_yml or None, is_train=is_train)
    if errors:
        # Under a launcher every process finds the same errors; one of them tells.
        if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
            for error in errors:
                print(f"basicsr: error: {error}", file=sys.stderr)
        return 2

    sys.argv = basicsr_argv(args, force_yml, "train" if is_train else "test")
    if is_train:
        from basicsr.train import train_pipeline as run_pipeline
    else:
        from basicsr.test import test_pipeline as run_pipeline
    run_pipeline(os.getcwd())

    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


def import_plugins() -> None:
    """Import every plugin that is registered under the entry-point group `basicsr.plugins`.

    Raises:
        UserError: If one of them cannot be imported.
    """
    # First, because BasicSR itself, which other plugins import, needs its compatibility patches.
    import esc_arch  # noqa: F401
    from esc_arch.errors import UserError

    for plugin in sorted(set(_registered_plugins())):
        name, module, distribution = plugin
        try:
            importlib.import_module(module)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(
                f"plugin '{name}' of the installed package '{distribution}' cannot be imported: "
                f"{reason} (python -c 'import {module}' shows where; mend or uninstall it)"
            ) from error


def _registered_plugins() -> Iterable[tuple[str, str, str]]:
    """(name, module, distribution) of each registered plugin."""
    for entry_point in importlib.metadata.entry_points(group=PLUGIN_GROUP):
        distribution = entry_point.dist.name if entry_point.dist else "unknown"
        yield entry_point.name, entry_point.module, distribution


def checked_entry(entry: str) -> str:
    """Check one --force_yml entry, and spell a number so that BasicSR reads it as one.

    BasicSR takes `1e-4` and `-1` for text; its own `!!float` prefix makes numbers of them.

    Args:
        entry: `key:key=value`.

    Returns:
        The entry as it is handed to BasicSR.

    Raises:
        UserError: If the entry is not of that form.
    """
    from esc_arch.errors import UserError

    keys, equals, value = entry.partition("=")
    keys, value = keys.strip(), value.strip()
    if not equals or not all(keys.split(":")):
        raise UserError(f"--force_yml {entry}: must be KEY:KEY=VALUE, e.g. train:ema_decay=0.99")
    if "=" in value:
        raise UserError(f"--force_yml {entry}: BasicSR takes no '=' in a value; edit the file")
    if any(character in keys for character in '"\\\n'):
        raise UserError(f"--force_yml {entry}: a key must be a plain name, not {keys!r}")
    if value.startswith("["):
        try:
            ast.literal_eval(value)
        except (SyntaxError, ValueError):
            raise UserError(
                f"--force_yml {entry}: {value} is not a list; text in it needs quotes"
            ) from None
    if _NUMBER.fullmatch(value) and not _BASICSR_NUMBER.fullmatch(value):
        value = f"!!float{value}"
    return f"{keys}={value}"


def check_parents(force_yml: Iterable[str], opt_path: str) -> None:
    """Check that every --force_yml entry sets a key of a section that the option file has.

    Args:
        force_yml: Entries of the form `key:key=value`.
        opt_path: The option file. One that cannot be read is left to the preflight.

    Raises:
        UserError: If a section is missing.
    """
    import yaml

    from esc_arch.errors import UserError

    try:
        with open(opt_path, encoding="utf-8") as file:
            options = yaml.safe_load(file)
    except (OSError, ValueError, yaml.YAMLError):
        return
    if not isinstance(options, dict):
        return
    for entry in force_yml:
        section = options
        parents = entry.partition("=")[0].split(":")[:-1]
        for depth, key in enumerate(parents):
            if not isinstance(section.get(key), dict):
                known = [name for name in section if isinstance(section[name], dict)]
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean '{close[0]}'?" if close else ""
                raise UserError(
                    f"--force_yml {entry}: {opt_path} has no section "
                    f"'{':'.join(parents[: depth + 1])}'{hint}"
                )
            section = section[key]


def basicsr_argv(args: argparse.Namespace, force_yml: list[str], subcommand: str) -> list[str]:
    """The command line as BasicSR's own parser expects it in `sys.argv`."""
    argv = [f"basicsr {subcommand}", "-opt", args.opt, "--launcher", args.launcher]
    argv += ["--local_rank", str(args.local_rank)]
    argv += ["--auto_resume"] if args.auto_resume else []
    argv += ["--debug"] if args.debug else []
    argv += ["--force_yml", *force_yml] if force_yml else []
    return argv
