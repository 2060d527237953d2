"""Entry point of the `basicsr` command: picks the subcommand and turns errors into statuses."""

import argparse
import difflib
import importlib
import importlib.metadata
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from esc_arch.cli import PluginError
from esc_arch.cli.memory import keep_freed_memory
from esc_arch.errors import UserError

# Name of a subcommand -> its module. A module has HELP, add_arguments(parser) and run(args) -> int,
# and imports nothing heavy at its top level, since all of them are imported for --help.
SUBCOMMANDS: dict[str, str] = {
    "train": "esc_arch.cli.train",
    "test": "esc_arch.cli.test",
    "demo": "esc_arch.cli.demo",
    "reproduce": "esc_arch.cli.reproduce",
    "analyze": "esc_arch.cli.analyze",
    "checkpoints": "esc_arch.cli.checkpoints",
    "convert": "esc_arch.cli.convert",
    "upscale": "esc_arch.cli.upscale",
    "bench": "esc_arch.cli.bench",
}

# The last two are what a shell gives for the signals.
OK, FAILED, USER_ERROR, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141


class _Parser(argparse.ArgumentParser):
    """Prints an error as one line, without the usage in front of it."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"basicsr: error: {message} (see {self.prog} --help)\n")

    def _check_value(self, action: argparse.Action, value: object) -> None:
        # argparse suggests nothing for a misspelt subcommand before Python 3.14.
        is_subcommand = isinstance(action, argparse._SubParsersAction)
        if is_subcommand and isinstance(value, str) and value not in action.choices:
            close = difflib.get_close_matches(value, action.choices, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"one of {', '.join(action.choices)}"
            self.error(f"unknown subcommand '{value}': {hint}")
        super()._check_value(action, value)


class _Version(argparse.Action):
    """Reads the installed versions only when they are asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        print(f"esc-arch {_version('esc-arch')}")
        print(f"basicsr {_version('basicsr', 'basicsr-fixed')}")
        print(f"torch {_version('torch')}")
        parser.exit(OK)


def _version(*distributions: str) -> str:
    """The version of the first of these distributions that is installed."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not installed"


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command, with one subparser a subcommand."""
    parser = _Parser(
        prog="basicsr",
        description="Train, test and use super-resolution networks through BasicSR.",
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="print the installed versions and exit"
    )
    subparsers = parser.add_subparsers(
        title="subcommands", dest="subcommand", metavar="SUBCOMMAND", required=True
    )
    for name, module_name in SUBCOMMANDS.items():
        module = importlib.import_module(module_name)
        subparser = subparsers.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run, subparser=subparser)
    return parser


def _refuse(unknown: Sequence[str], subparser: argparse.ArgumentParser) -> NoReturn:
    """Name arguments that nobody takes, and the help of the subcommand that might."""
    flags = [flag for action in subparser._actions for flag in action.option_strings]
    close = difflib.get_close_matches(unknown[0].partition("=")[0], flags, n=1)
    hint = f": did you mean {close[0]}?" if close else ""
    subparser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `basicsr` command.

    Args:
        argv: The arguments after the command's name; those of the process by default.

    Returns:
        The exit status: 0 when all went well, 2 when the user can mend it (the reason is one line
        on stderr), 130 after Ctrl-C. Any other failure is raised, and so ends with status 1.
    """
    for stream in (sys.stdout, sys.stderr):
        # Names that the terminal cannot show are printed with escapes.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    args, unknown = build_parser().parse_known_args(argv)
    if unknown:
        _refuse(unknown, args.subparser)
    if args.subcommand != "bench":  # Which measures what any process would see.
        keep_freed_memory()
    try:
        status = args.run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # As in `| head`: nobody reads on. Python would complain once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        print("basicsr: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (PluginError, UserError) as error:
        print(f"basicsr: error: {error}", file=sys.stderr)
        return USER_ERROR
