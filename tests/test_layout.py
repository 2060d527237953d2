"""That a newcomer finds every module by its name, and can read it."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]


# Python and pytest prescribe these names, one a folder.
PRESCRIBED = ("__init__.py", "conftest.py")
FOLDERS = ("esc_arch", "tests", "benchmarks")


def modules(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted(path.relative_to(ROOT) for path in found)


def test_no_two_modules_have_one_name():
    by_name = defaultdict(list)
    for path in modules(*FOLDERS):
        if path.name not in PRESCRIBED:
            by_name[path.name].append(str(path))
    assert len(by_name) > 100
    assert [paths for paths in by_name.values() if len(paths) > 1] == []


def test_no_module_is_too_long_to_be_read_at_one_go():
    lengths = {str(path): (ROOT / path).read_text().count("\n") for path in modules(*FOLDERS)}
    assert len(lengths) > 100
    assert {path: length for path, length in lengths.items() if length > 400} == {}


def test_every_folder_says_what_it_is_for():
    folders = [path for path in modules("esc_arch") if path.name == "__init__.py"]
    assert len(folders) > 10
    for path in folders:
        docstring = ast.get_docstring(ast.parse((ROOT / path).read_text()))
        assert docstring and docstring.splitlines()[0].endswith("."), path


def test_the_other_folders_say_so_on_the_page_that_is_shown_with_them():
    for folder in ("benchmarks", "datasets_prep", "options", "recipes", "tests"):
        title, empty, text = (ROOT / folder / "README.md").read_text().splitlines()[:3]
        assert title.startswith("# ") and not empty and text, folder


def test_the_page_on_benchmarks_names_every_script():
    page = (ROOT / "benchmarks" / "README.md").read_text()
    for script in (ROOT / "benchmarks").iterdir():
        assert script.suffix not in (".py", ".sh") or f"`{script.name}`" in page, script.name
