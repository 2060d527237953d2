"""Entry point of the `basicsr` command: picks the subcommand and turns errors into statuses."""

import argparse
import errno
import importlib
import os
import select
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from esc_arch.cli import PluginError
from esc_arch.cli.memory import keep_freed_memory
from esc_arch.cli.missing import how_to_bring
from esc_arch.errors import UserError, printable
from esc_arch.plugin.imports import load_elsewhere

# Also in processes that are started anew, which import this module first. One of NVIDIA's libraries
# looks for libcuda.so.1 in the current folder before the system's; a matplotlibrc there may run TeX
# and, in matplotlib 3.9, code.
load_elsewhere("torch", "matplotlib")

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
    "export": "esc_arch.cli.export",
    "bench": "esc_arch.cli.bench",
    "compare": "esc_arch.cli.compare",
    "app": "esc_arch.cli.app",
    "prepare": "esc_arch.cli.prepare",
    "install-basicsr": "esc_arch.cli.install_basicsr",
}
# Not those that measure what any process would see, or fill the memory with small images.
KEEP_NO_MEMORY = ("bench", "prepare", "install-basicsr")

# The last two are what a shell gives for the signals.
OK, FAILED, USER_ERROR, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 130, 141


class _Parser(argparse.ArgumentParser):
    """Prints an error as one line, without the usage in front of it."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"basicsr: error: {printable(message)} (see {self.prog} --help)\n")

    def _get_values(self, action: argparse.Action, strings: list[str]) -> Any:
        # Path("") is the current folder, which nobody means by an empty variable of a shell.
        if action.type is Path and "" in strings:
            self.error(f"{'/'.join(action.option_strings) or action.metavar}: is empty")
        return super()._get_values(action, strings)

    def _check_value(self, action: argparse.Action, value: object) -> None:
        # argparse suggests nothing for a misspelt subcommand before Python 3.14.
        is_subcommand = isinstance(action, argparse._SubParsersAction)
        if is_subcommand and isinstance(value, str) and value not in action.choices:
            close = _most_alike(value, action.choices)
            hint = f"did you mean '{close}'?" if close else f"one of {', '.join(action.choices)}"
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
    import importlib.metadata

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


def _most_alike(word: str, choices: Iterable[str]) -> str | None:
    """What is so much like a word that it may be meant."""
    import difflib

    return next(iter(difflib.get_close_matches(word, choices, n=1)), None)


def _refuse(unknown: Sequence[str], subparser: argparse.ArgumentParser) -> NoReturn:
    """Name arguments that nobody takes, and the help of the subcommand that might."""
    flags = [flag for action in subparser._actions for flag in action.option_strings]
    close = _most_alike(unknown[0].partition("=")[0], flags)
    hint = f": did you mean {close}?" if close else ""
    subparser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `basicsr` command.

    Args:
        argv: The arguments after the command's name; those of the process by default.

    Returns:
        The exit status: 0 when all went well, 2 when the user can mend it (the reason is one line
        on stderr), 130 after Ctrl-C, 141 when what reads stdout has ended, as `head` does. Any
        other failure is raised, and so ends with status 1; `train` and `test` make a line of
        theirs too, with the traceback in the log.
    """
    for stream in (sys.stdout, sys.stderr):
        # File names need not be characters of the terminal's encoding, nor characters at all.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return _run(argv)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt:
        print("basicsr: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        if not _nobody_reads_stdout():
            raise
        # Python would flush it once more at the end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except (PluginError, UserError) as error:
        lines = error.lines if isinstance(error, UserError) else str(error).splitlines()
        for line in lines:
            print(f"basicsr: error: {printable(line)}", file=sys.stderr)
        return USER_ERROR


def _run(argv: Sequence[str] | None) -> int:
    args, unknown = build_parser().parse_known_args(argv)
    if unknown:
        _refuse(unknown, args.subparser)
    if args.subcommand not in KEEP_NO_MEMORY:
        keep_freed_memory()
    # Not at the top: --help need not wait for it.
    from esc_arch.children import keep_current_folder_out

    keep_current_folder_out()
    try:
        return args.run(args)
    except OSError as error:
        # Python's own questions to paths raise this, and only what the user wrote is so long.
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise UserError(f"{str(error.filename)[:80]}...: this name is too long") from error
    except ModuleNotFoundError as error:
        message = how_to_bring(error.name)
        if message is None:
            raise
        raise UserError(message) from error


def _nobody_reads_stdout() -> bool:
    if not hasattr(select, "poll"):
        return True
    pipe = select.poll()
    pipe.register(sys.stdout.fileno(), 0)  # Errors are told without being asked for.
    return bool(pipe.poll(0))
