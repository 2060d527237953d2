"""What README and docs/ tell users to type is what the package takes, and the main of it runs."""

import ast
import functools
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import yaml

from esc_arch.cli.main import build_parser
from esc_arch.zoo.catalogue import PUBLISHED, shipped

ROOT = Path(__file__).parents[2]
FOLDERS = ("benchmarks", "datasets_prep", "options", "recipes", "tests")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [ROOT / folder / "README.md" for folder in FOLDERS]
SHELL = ("", "bash", "sh", "console")
# What stands in front of commands of ours, and what is not ours to check.
STARTERS = ("torchrun", "srun")
OTHERS = ("git", "pip", "source", "cd", "mkdir", "cp", "export", "apt-get", "brew")
OF_SHELL = ("status=$?", "if", "then", "fi", "exit")

# Commands that are run below, as they stand in the pages.
RUN = [
    "basicsr upscale photo.jpg",
    "basicsr upscale pictures/ -o larger/",
    "basicsr upscale photo.jpg --scale 4 --suffix _x4",
    "basicsr upscale photo.jpg -o photo_x2.png",
    "basicsr compare upscaled/photo.png --lr photo.jpg",
    "basicsr checkpoints list",
    "basicsr checkpoints info ESC_light_x2_BSD",
    "basicsr convert safetensors ESC_light_x2_BSD -o ESC_light_x2.safetensors",
    "basicsr checkpoints card net.pth --openmodeldb --url https://example.org/net.pth -o model.json"
    ' --set author="A. Uthor" --set license=CC-BY-4.0 --set description="For photographs."',
    "basicsr checkpoints verify net.pth",
    "basicsr convert flashbias --rank 16 32 48 ESC_light_x2_BSD",
    "basicsr analyze erf --checkpoint ESC_light_x2_BSD",
    "basicsr analyze lam --checkpoint ESC_light_x2_BSD --images photo.jpg --size 64 --at 120 80",
    "basicsr analyze bias --checkpoint ESC_light_x2_BSD",
    "basicsr reproduce --no-weights",
    "basicsr prepare benchmarks --src SR_benchmarks --out datasets/benchmarks --sets Set5 Set14",
    "basicsr reproduce --models ESC_light_BSD --scales 2",
]


def blocks(page, languages):
    """The fenced blocks of a page in some languages."""
    text = page.read_text(encoding="utf-8")
    for language, content in re.findall(
        r"^ *```(\w*)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL
    ):
        if language in languages:
            yield content


def commands(page):
    """The commands of a page's shell blocks as lists of words, continued lines joined."""
    for content in blocks(page, SHELL):
        for line in content.replace("\\\n", " ").splitlines():
            line = line.strip().removeprefix("$ ")
            if words := shlex.split(line.replace("&&", ";"), comments=True):
                yield from _simple_commands(words)


def _simple_commands(words):
    command = []
    for word in [*words, ";"]:
        if word.endswith(";"):
            if command + [word[:-1]] != [""]:
                yield [part for part in [*command, word[:-1]] if part]
            command = []
        else:
            command.append(word)


ALL = [(page.name, words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize(("page", "words"), ALL, ids=lambda value: str(value)[:60])
def test_commands_are_taken_by_what_they_call(page, words):
    if words[0] in STARTERS:
        words = words[words.index("basicsr") :]
    if words[0] == "basicsr":
        _, unknown = build_parser().parse_known_args(words[1:])
        assert not unknown
        _check_names(words)
    elif words[0] in ("python", "python3") and words[1].endswith(".py"):
        flags = {word for word in words[2:] if word.startswith("-")}
        assert flags <= _flags_of(words[1])
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert all(word in targets for word in words[1:] if "=" not in word)
    elif words[0].endswith((".sh", "/run")):
        assert (ROOT / words[0]).is_file()
    else:
        assert words[0] in (*OTHERS, *OF_SHELL, "python") or "=" in words[0], f"{page}: {words}"


def _check_names(words):
    """Option files exist, and so do checkpoints that are given by name."""
    for word in words:
        if word.startswith("options/"):
            assert (ROOT / word).is_file()
        if word.startswith("ESC_") and not Path(word).suffix and "download" in words:
            assert word in {*PUBLISHED, *shipped()}


@functools.cache
def _flags_of(script):
    done = subprocess.run(
        [sys.executable, ROOT / script, "--help"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"(?<![\w-])--?[\w-]+", done.stdout))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_of_options_are_yaml(page):
    for content in blocks(page, ("yaml", "yml")):
        assert isinstance(yaml.safe_load(content), dict)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_repository_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photographs):
    """A folder with what the commands need: photo.jpg, net.pth, pictures/, SR_benchmarks/."""
    path = tmp_path_factory.mktemp("user")
    photo = cv2.cvtColor(photographs["coffee"][100:228, 100:292], cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(path / "photo.jpg"), photo)
    (path / "pictures" / "more").mkdir(parents=True)
    cv2.imwrite(str(path / "pictures" / "more" / "b.png"), photo[:40, :60])
    for name, count in (("Set5", 5), ("Set14", 14)):
        (path / "SR_benchmarks" / name / "HR").mkdir(parents=True)
        for number in range(count):
            crop = photo[number : number + 48, 8 * number : 8 * number + 60]
            cv2.imwrite(str(path / "SR_benchmarks" / name / "HR" / f"{number}.png"), crop)
    made = run(["basicsr", "convert", "basicsr", "ESC_light_x2_BSD", "-o", "net.pth"], path)
    assert made.returncode == 0, made.stderr
    for name in ("datasets_prep", "options"):
        (path / name).symlink_to(ROOT / name)
    return path


def run(words, folder):
    command = {"basicsr": [sys.executable, "-m", "esc_arch.cli"], "python": [sys.executable]}
    return subprocess.run(
        [*command[words[0]], *words[1:]],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
@pytest.mark.parametrize("line", RUN)
def test_commands_of_the_pages_run(line, folder):
    assert shlex.split(line) in [words for _, words in ALL], "not in the pages any more"
    done = run(shlex.split(line), folder)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_of_the_pages_is_python(page):
    for content in blocks(page, ("python",)):
        compile(content, page.name, "exec")


# Other pages' need files that only their users have.
@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "docs/python.md"], ids=lambda page: page.name
)
def test_python_of_the_main_pages_runs(page, folder, tmp_path):
    shutil.copy(folder / "photo.jpg", tmp_path)
    for content in blocks(page, ("python",)):
        done = run(["python", "-c", content], tmp_path)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("material")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    html = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    fetched = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"?(https?://[^\s\">]+)", html)
    assert fetched == []


def extras():
    """The extras that setup.py declares."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "extras_require":
            return [key.value for key in node.value.keys]
    raise AssertionError("setup.py declares no extras")


def test_the_page_on_installing_names_every_extra_but_those_of_the_tests():
    text = (ROOT / "docs/install.md").read_text(encoding="utf-8").partition("## Extras")[2]
    named = re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE)
    assert sorted(named) == sorted(set(extras()) - {"test", "test-all"})


def test_extras_are_spelled_in_one_way_in_pages_and_messages():
    """The package is on no index: by its bare name pip finds it only where it is installed."""
    files = [*PAGES, *sorted((ROOT / "esc_arch").rglob("*.py"))]
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    # The one place says what it would do.
    assert [file.name for file, text in texts.items() if re.search(r"\.\[[a-z]+\]", text)] == [
        "install.md"
    ]
    found = [
        (quote, extra)
        for text in texts.values()
        for quote, extra in re.findall(
            r"pip install [^\n`]*?(['\"]?)esc-arch(?:\[([^\]]+)\])?", text
        )
    ]
    assert len(found) > 8
    # What `basicsr` says of a missing module is put together from the module's extra.
    assert all(quote == "'" and extra in [*extras(), "{extra}"] for quote, extra in found), found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_where_the_demo_is_made_the_command_is_put_on_the_path(page):
    lines = [*commands(page), []]
    for words, following in itertools.pairwise(lines):
        if words == ["make", "demo"]:
            assert following == ["source", ".venv/bin/activate"]


def test_the_first_page_leads_to_every_other():
    text = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\((\w+\.md)\)", text))
    assert linked == {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}


def test_the_navigation_has_every_page():
    listed = re.findall(r"\w+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_headings_lead_to_one(page):
    for target, heading in re.findall(r"\]\(([\w/]*\.md)?#([\w-]+)\)", page.read_text("utf-8")):
        text = (page.parent / target if target else page).read_text(encoding="utf-8")
        titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        assert heading in [
            re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in titles
        ]
