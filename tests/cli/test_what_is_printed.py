"""Names from files forge no lines and move no cursor, wherever they are printed."""

import logging
import pickle
from pathlib import Path

import pytest

from esc_arch.cli.main import main
from esc_arch.errors import UserError

# A title for the terminal, a line of its own, one that is written over, text from right to left,
# and an escape sequence's shorter beginning.
EVIL = "a\x1b]0;title\x07\nbasicsr: error: forged\rb\u202ec\x9b2J"
SHOWN = "a\\x1b]0;title\\x07\\nbasicsr: error: forged\\rb\\u202ec\\x9b2J"


def test_an_error_escapes_what_is_not_printable_in_each_of_its_lines():
    error = UserError(f"{EVIL}: no", "another")
    assert str(error) == f"{SHOWN}: no\nanother"
    again = pickle.loads(pickle.dumps(error))  # As from a process that prepares data.
    assert (again.lines, str(again)) == (error.lines, str(error))


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "-opt", "FILE"],
        ["checkpoints", "verify", "FILE"],
        ["convert", "safetensors", "FILE", "-o", "x.safetensors"],
        ["export", "FILE"],
        ["upscale", "--FILE"],
        ["bench", "--size", "FILE"],
        ["prepare", "div2k", "--hr", "FILE"],
        ["analyze", "erf", "--images", "FILE", "--checkpoint", "ESC_light_x2_BSD"],
        ["FILE"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_command_that_fails_says_it_in_lines_of_its_own(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path(EVIL).write_bytes(b"\xff\x00")
    try:
        status = main([one.replace("FILE", EVIL) for one in arguments])
    except SystemExit as ended:
        status = ended.code
    printed = capsys.readouterr()
    assert status in (1, 2)
    assert SHOWN in printed.err
    assert "\nbasicsr: error: forged" not in printed.err
    assert all(one.isprintable() or one == "\n" for one in printed.out + printed.err)


def test_what_was_written_is_told_in_one_line(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = f"{EVIL}.safetensors"
    assert main(["convert", "safetensors", "ESC_light_x2_BSD", "-o", name]) == 0
    assert capsys.readouterr().out == f"written: {SHOWN}.safetensors\n"
    assert Path(name).is_file()


def test_the_log_of_a_run_has_no_lines_of_others():
    from basicsr.utils import get_root_logger

    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    logger = get_root_logger()
    logger.addHandler(handler)
    try:
        logger.warning("%s: skipped", EVIL)
        options = ("basicsr", logging.INFO, __file__, 1, "\n  name: tiny\t\x1b", (), None)
        logger.handle(logger.makeRecord(*options))
    finally:
        logger.removeHandler(handler)
    assert told == [f"{SHOWN}: skipped", "\n  name: tiny\t\\x1b"]
