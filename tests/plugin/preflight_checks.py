"""What tests of preflight ask it, with what must hold of any answer."""

from collections.abc import Callable
from pathlib import Path

from esc_arch.plugin.preflight import Report, check_options

OPTIONS = Path(__file__).parents[2] / "options"
BASICSR_OPTIONS = sorted((Path(__file__).parents[1] / "data" / "basicsr_options").glob("*.yml"))

WriteOptions = Callable[..., Path]


def find(path: Path, force_yml: list[str] | None = None, is_train: bool = True) -> Report:
    """Preflight, with what must hold of any result."""
    report = check_options(path, force_yml, is_train)
    for line in report.errors + report.warnings:
        assert len(line.splitlines()) == 1
        assert len(line) < 1500
    return report


def check(path: Path, force_yml: list[str] | None = None, is_train: bool = True) -> list[str]:
    """The errors that preflight finds."""
    return find(path, force_yml, is_train).errors


def only_error(path: Path, force_yml: list[str] | None = None, is_train: bool = True) -> str:
    errors = check(path, force_yml, is_train)
    assert len(errors) == 1, errors
    return errors[0]
