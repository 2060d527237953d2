"""The `basicsr` command itself: help, versions, statuses and one-line errors, without torch."""

import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from esc_arch.cli import main as command
from esc_arch.cli.pipeline import basicsr_argv, spell_number

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize("name", command.SUBCOMMANDS)
def test_every_subcommand_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command.main([name, "--help"])
    assert end.value.code == 0
    assert f"usage: basicsr {name}" in capsys.readouterr().out


def test_help_lists_the_subcommands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command.main(["--help"])
    assert end.value.code == 0
    listed = re.findall(r"^    (\w[\w-]*)", capsys.readouterr().out, flags=re.MULTILINE)
    assert listed == list(command.SUBCOMMANDS)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["train", "--help"], ["prepare", "div2k", "--help"]]
)
def test_help_and_version_import_neither_torch_nor_numpy(arguments: list[str]) -> None:
    code = (
        "import sys; from esc_arch.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print({'torch', 'numpy', 'cv2', 'basicsr', 'requests'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True
    )
    assert result.stdout.splitlines()[-1] == "set()", result.stderr


def test_version_names_what_is_installed(run_basicsr: Run) -> None:
    import torch

    result = run_basicsr("--version")
    assert result.returncode == 0
    assert result.stdout.splitlines()[0].startswith("esc-arch ")
    assert f"torch {torch.__version__.split('+')[0]}" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown subcommand 'trian': did you mean 'train'?"),
        (["xyzzy"], "unknown subcommand 'xyzzy': one of train, test"),
        ([], "the following arguments are required: SUBCOMMAND"),
        (["train"], "the following arguments are required: -opt"),
        (["train", "-opt", "a.yml", "--launcher", "mpi"], "invalid choice: 'mpi'"),
        (
            ["train", "-opt", "a.yml", "--autoresume"],
            "unrecognized arguments: --autoresume: did you mean --auto_resume? "
            "(see basicsr train --help)",
        ),
        (
            ["checkpoints", "list", "--all"],
            "unrecognized arguments: --all (see basicsr checkpoints --help)",
        ),
        (["upscale", ""], "INPUT: is empty (see basicsr upscale --help)"),
        (["upscale", "a.png", "-o", ""], "-o/--output: is empty (see basicsr upscale --help)"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        command.main(arguments)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("basicsr: error: ")
    assert message in line


def with_subcommand(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[object], int], name: str = "task"
) -> None:
    """Add a subcommand, as a module in the table, that does `run`."""
    import types

    module = types.ModuleType("task_module")
    module.HELP = "A task."
    module.add_arguments = lambda parser: None
    module.run = run
    monkeypatch.setitem(sys.modules, "task_module", module)
    monkeypatch.setitem(command.SUBCOMMANDS, name, "task_module")


def test_a_user_error_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from esc_arch.errors import UserError

    def run(args: object) -> int:
        raise UserError("scale: 5 is not one of 2, 3, 4")

    with_subcommand(monkeypatch, run)
    assert command.main(["task"]) == 2
    assert capsys.readouterr().err == "basicsr: error: scale: 5 is not one of 2, 3, 4\n"


def test_ctrl_c_is_one_line_and_status_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: object) -> int:
        raise KeyboardInterrupt

    with_subcommand(monkeypatch, run)
    assert command.main(["task"]) == 130
    assert capsys.readouterr().err == "basicsr: interrupted\n"


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(args: object) -> int:
        raise ValueError("a defect")

    with_subcommand(monkeypatch, run)
    with pytest.raises(ValueError, match="a defect"):
        command.main(["task"])


@pytest.mark.parametrize(
    ("entry", "spelt"),
    [
        ("train:optim_g:lr=1e-4", 1e-4),
        ("train:optim_g:lr=5E-4", 5e-4),
        ("train:warmup_iter=-1", -1),
        ("train:ema_decay=0.999", 0.999),
        ("val:val_freq=8", 8),
        ("name=run-2", "run-2"),
        ("name=1e", "1e"),
        ("path:resume_state=~", None),
        ("datasets:train:use_rot=false", False),
        ("train:optim_g:betas=[0.9, 0.99]", [0.9, 0.99]),
    ],
)
def test_values_of_force_yml_reach_basicsr_as_what_they_are(entry: str, spelt: object) -> None:
    from basicsr.utils.options import _postprocess_yml_value

    keys, _, value = spell_number(entry).partition("=")
    assert keys == entry.partition("=")[0]
    result = _postprocess_yml_value(value)
    assert result == spelt
    assert isinstance(result, str) == isinstance(spelt, str)


def test_basicsr_parses_every_flag_as_it_was_given(
    write_train_options: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    from basicsr.utils.options import parse_options

    path = str(write_train_options())
    flags = ["--auto_resume", "--debug", "--local_rank", "3", "--force_yml", "a=1", "b:c=x y"]
    args = command.build_parser().parse_args(["train", "-opt", path, *flags])
    entries = ["scale=3", "train:optim_g:lr=1e-4"]
    monkeypatch.setattr(sys, "argv", basicsr_argv(args, entries, "train"))
    opt, parsed = parse_options("root", is_train=True)
    assert (parsed.opt, parsed.launcher, parsed.local_rank) == (path, "none", 3)
    assert opt["auto_resume"] is True
    assert opt["name"] == "debug_tiny"
    assert opt["scale"] == 3
    assert args.force_yml == ["a=1", "b:c=x y"]
