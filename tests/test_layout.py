"""That a newcomer finds every module by its name, and can read it."""

from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]


def modules(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted(path.relative_to(ROOT) for path in found if path.name != "__init__.py")


def test_no_two_modules_have_one_name():
    by_name = defaultdict(list)
    for path in modules("esc_arch", "tests", "benchmarks"):
        by_name[path.name].append(str(path))
    assert len(by_name) > 100
    assert [paths for paths in by_name.values() if len(paths) > 1] == []
