"""What `basicsr train` and `basicsr test` share: flags, plugins, preflight, then BasicSR itself."""

import argparse
import os
import re
import shutil
import sys
from collections.abc import Sequence

from esc_arch.cli import PluginError
from esc_arch.cli.missing import need
from esc_arch.errors import UserError, printable

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
        help="what started this process: pytorch for torchrun, slurm for srun (default: none)",
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
    parser.add_argument(
        "--no-preflight",
        action="store_true",
        help="start without looking for mistakes in the option file first; where such a finding is "
        "wrong. What would run code or write outside the run's folders is refused all the same",
    )


def run(
    args: argparse.Namespace,
    is_train: bool,
    datasets: Sequence[str] | None = None,
    random_weights: bool = False,
) -> int:
    """Check the options, then hand over to BasicSR with the current folder as root.

    Args:
        args: What `add_arguments` parsed.
        is_train: Whether to train or to test.
        datasets: Data sets of the option file to test on; all by default.
        random_weights: Whether to test a network without weights is meant.

    Returns:
        The exit status: 0; 2 when the option file has errors (one line each on stderr); 128 plus
        the number of the signal that stopped the training.

    Raises:
        PluginError: If a plugin cannot be imported.
    """
    # Under a launcher all processes of a machine find the same errors; one of them tells.
    tells = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"
    problem = launcher_problem(args.launcher)
    if problem is not None:
        if tells:
            print(f"basicsr: error: {problem}", file=sys.stderr)
        return 2
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if tells and args.launcher == "none" and tasks != "1":
        print(
            f"basicsr: warning: srun started {tasks} tasks, and each of them runs alone; if they "
            "are to work together, add --launcher slurm",
            file=sys.stderr,
        )

    need("basicsr")
    import_plugins()
    from esc_arch.plugin.preflight import check_options

    force_yml = [spell_number(entry) for entry in args.force_yml or []]

    try:
        report = check_options(
            args.opt,
            force_yml,
            is_train,
            datasets,
            random_weights=random_weights,
            safety_only=args.no_preflight,
        )
    except Exception as error:
        # Its own fault: with files of any kind it must not look like the user's.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"-opt {args.opt}: cannot be checked ({reason}); please report this; --no-preflight "
            "starts without the check"
        ) from error
    for kind, lines in (("warning", report.warnings), ("error", report.errors)):
        for line in lines if tells else ():
            print(f"basicsr: {kind}: {printable(line)}", file=sys.stderr)
    if report.errors:
        return 2

    sys.argv = basicsr_argv(args, force_yml, "train" if is_train else "test")
    import torch.distributed

    from esc_arch.plugin import testing, training

    root = os.getcwd()
    status = training.train(root) if is_train else testing.test(root, datasets)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return status


def launcher_problem(launcher: str) -> str | None:
    """What is wrong between `--launcher` and what really started this process, if anything."""
    started_by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    if launcher == "none" and started_by_torchrun and os.environ.get("WORLD_SIZE", "1") != "1":
        return (
            "--launcher none: torchrun started several processes, and each would train alone in "
            "the same folder; add --launcher pytorch"
        )
    if launcher == "pytorch" and "RANK" not in os.environ:
        return (
            "--launcher pytorch: nothing set RANK; start it as: torchrun --nproc_per_node=2 "
            "--no-python basicsr train ... --launcher pytorch"
        )
    if launcher == "slurm" and "SLURM_PROCID" not in os.environ:
        return "--launcher slurm: SLURM_PROCID is not set; start it with srun"
    if launcher == "slurm" and shutil.which("scontrol") is None:
        return (
            "--launcher slurm: BasicSR asks scontrol for the first machine's name, and there is no "
            "scontrol here; start torchrun with srun instead, and use --launcher pytorch"
        )
    return None


def import_plugins() -> None:
    """Import every plugin that is registered under the entry-point group `basicsr.plugins`.

    Raises:
        PluginError: If one of them cannot be imported.
    """
    import importlib.metadata

    registered = {
        (entry_point.module, entry_point.dist.name if entry_point.dist else "unknown package")
        for entry_point in importlib.metadata.entry_points(group=PLUGIN_GROUP)
    }
    # This package first: BasicSR, which the other plugins import, needs its patches.
    for module, distribution in [("esc_arch", "esc-arch"), *sorted(registered)]:
        try:
            importlib.import_module(module)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise PluginError(
                f"plugin {module} (installed with {distribution}) cannot be imported: {reason}; "
                f"mend or uninstall it, python -c 'import {module}' shows where it fails"
            ) from error


def spell_number(entry: str) -> str:
    """Spell the number in a --force_yml entry so that BasicSR reads it as one.

    BasicSR takes `1e-4` and `-1` for text; its own `!!float` prefix makes numbers of them. All
    other entries are left to the preflight, which tells what is wrong with them.

    Args:
        entry: `key:key=value`.

    Returns:
        The entry as it is handed to BasicSR.
    """
    keys, equals, value = entry.partition("=")
    value = value.strip()
    if _NUMBER.fullmatch(value) and not _BASICSR_NUMBER.fullmatch(value):
        return f"{keys}{equals}!!float{value}"
    return entry


def basicsr_argv(args: argparse.Namespace, force_yml: list[str], subcommand: str) -> list[str]:
    """The command line as BasicSR's own parser expects it in `sys.argv`."""
    argv = [f"basicsr {subcommand}", "-opt", args.opt]
    argv += ["--launcher", args.launcher] if args.launcher != "none" else []
    argv += ["--local_rank", str(args.local_rank)] if args.local_rank else []
    argv += ["--auto_resume"] if args.auto_resume else []
    argv += ["--debug"] if args.debug else []
    argv += ["--force_yml", *force_yml] if force_yml else []
    return argv
