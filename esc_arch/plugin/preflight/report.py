"""What the checks share: the options, and the findings so far."""

from dataclasses import dataclass, field
from typing import Any

from esc_arch.plugin.preflight.wording import one_line

Path = tuple[str, ...]
"""Keys from the root of the options downwards."""


@dataclass
class Report:
    """The findings about one option file.

    Attributes:
        options: The options, with overrides applied.
        is_train: Whether they are for `basicsr train` or `basicsr test`.
        errors: Lines about what is surely wrong; the run must not start.
        warnings: Lines about what is suspect; it may.
        wrong: Options that have an error.
        unread: Options that nothing reads.
        measured: Height and width of the smallest validation image, where it is known.
    """

    options: dict[str, Any]
    is_train: bool = True
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    wrong: set[Path] = field(default_factory=set)
    unread: set[Path] = field(default_factory=set)
    measured: tuple[int, int] | None = None

    def error(self, path: Path, message: str) -> None:
        """Add an error of the option at `path`."""
        self.wrong.add(path)
        self._add(self.errors, path, message)

    def warn(self, path: Path, message: str) -> None:
        """Add a warning of the option at `path`."""
        self._add(self.warnings, path, message)

    @staticmethod
    def _add(lines: list[str], path: Path, message: str) -> None:
        line = f"{one_line(':'.join(map(str, path)))}: {message}"
        if line not in lines:
            lines.append(line)

    def get(self, *path: str) -> Any:
        """Value at a path; None where it is absent or was found wrong."""
        value: Any = self.options
        for key in path:
            if not isinstance(value, dict) or key not in value:
                return None
            value = value[key]
        return None if path in self.wrong else value

    def section(self, *path: str) -> dict[str, Any]:
        """Section at a path, with keys that are text; empty where there is none."""
        value = self.get(*path)
        if not isinstance(value, dict):
            return {}
        return {key: part for key, part in value.items() if isinstance(key, str)}

    def is_wrong(self, path: Path) -> bool:
        """Whether anything at or below a path has an error."""
        return any(wrong[: len(path)] == path for wrong in self.wrong)

    def is_unread(self, path: Path) -> bool:
        """Whether nothing reads an option, or the section that it is in."""
        return any(path[: depth + 1] in self.unread for depth in range(len(path)))
