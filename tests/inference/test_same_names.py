"""Results whose names some file systems take for one, and pictures that several inputs name."""

import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from esc_arch.cli.main import main
from esc_arch.inference import same_names
from esc_arch.inference.planning import Naming, plan_jobs

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
PAIRS = [("Photo.jpg", "photo.png"), (f"{COMPOSED}.png", f"{DECOMPOSED}.jpg")]


def upscale(*arguments: object) -> int:
    return main(["upscale", "--device", "cpu", *map(str, arguments)])


def draw(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (90, 120, 150)).save(name)


def fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


@pytest.fixture
def merging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are looked up as macOS and Windows do, whose file systems Linux cannot mount."""

    def exists(path: Path) -> bool:
        return fold(path.name) in {fold(entry) for entry in os.listdir(path.parent)}

    monkeypatch.setattr(same_names, "exists", exists)


def needs_apart(first: str, second: str) -> None:
    """Skip where this file system takes both names for one."""
    Path(first).touch()
    if os.path.exists(second):
        pytest.skip("this folder takes the names for one")
    os.remove(first)


@pytest.mark.parametrize("pair", PAIRS)
def test_where_names_are_told_apart_both_are_done_and_one_line_warns(pair, folder, model, capsys):
    needs_apart(*(Path(name).stem for name in pair))
    draw(*(f"in/{name}" for name in pair))
    assert upscale("in", "-o", "out", "--model", model) == 0
    assert len(list(Path("out").glob("*.png"))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "differs from the name of another result in letter case or Unicode form only" in line


@pytest.mark.parametrize("pair", PAIRS)
def test_where_the_folder_takes_them_for_one_the_second_is_refused(pair, folder, merging):
    inputs = [Path(name) for name in pair]
    draw(*pair)
    plan = plan_jobs(inputs, Naming(Path("out")))
    assert [job.source for job in plan.jobs] == inputs[:1] and plan.notes == []
    (problem,) = plan.problems
    assert problem.startswith(f"{pair[1]}: its result out/{Path(pair[1]).stem}.png is also that of")
    assert "the folder takes both names for one; rename one, or use --keep-suffix" in problem
    plan = plan_jobs(inputs, Naming(Path("out"), keep_suffix=True))
    assert len(plan.jobs) == 2 and plan.problems == []


def test_folders_of_such_names_are_told_apart_as_files_are(folder, merging):
    draw("in/Sub/a.png", "in/sub/a.png", "in/sub/b.png")
    plan = plan_jobs([Path("in")], Naming(Path("out")))
    names = [job.source.as_posix() for job in plan.jobs]
    assert names == ["in/Sub/a.png", "in/sub/b.png"] and len(plan.problems) == 1


def test_a_picture_of_another_spelling_is_not_replaced(folder, merging):
    draw("in/a.PNG")
    plan = plan_jobs([Path("in")], Naming(Path("in")))
    assert plan.jobs == []
    assert plan.problems == ["in/a.PNG: its result would replace the picture in/a.png"]


def test_what_is_tried_leaves_nothing_behind_and_names_that_differ_stay_apart(folder):
    names = same_names.Names([folder / "a.png"])
    assert names.find(folder / "a.png") == folder / "a.png"
    assert names.find(folder / "b.png") is None
    Path("a.png").touch()
    assert (names.find(folder / "A.png") is not None) == os.path.exists("A.png")
    assert os.listdir() == ["a.png"]


def test_one_picture_that_two_inputs_name_is_done_once(folder, model, capsys):
    draw("in/a.png", "in/b.png")
    assert upscale("in/a.png", "in/../in/a.png", "in/b.png", "-o", "out", "--model", model) == 0
    assert capsys.readouterr().out.endswith("2 upscaled, 0 kept, 0 failed\n")


def test_advice_is_given_only_where_it_helps(folder):
    draw("x/a.png", "y/a.png")
    plan = plan_jobs([Path("x/a.png"), Path("y/a.png")], Naming(Path("out")))
    assert plan.problems[0].endswith("is also that of x/a.png; rename one")


def test_what_a_pattern_finds_keeps_its_folders(folder, model, capsys):
    draw("in/a.jpg", "in/x/a.jpg", "in/y/z/a.jpg", "in/y/b.png")
    for done in ("3 upscaled, 0 kept", "0 upscaled, 3 kept"):
        assert upscale("in/**/*.jpg", "-o", "in/out", "--model", model) == 0
        assert done in capsys.readouterr().out
    written = {path.relative_to("in/out").as_posix() for path in Path("in/out").rglob("*.png")}
    assert written == {"a.png", "x/a.png", "y/z/a.png"}
    # A folder that fits brings what is in it, once, and results are not taken again.
    plan = plan_jobs([Path("in/**")], Naming(Path("in/out")))
    assert len(plan.jobs) == 4 and plan.problems == []
    plan = plan_jobs([Path("in/[xy]")], Naming(Path("out")))
    assert {job.target.as_posix() for job in plan.jobs} == {
        "out/x/a.png",
        "out/y/b.png",
        "out/y/z/a.png",
    }


def test_results_beside_their_sources_do_not_fit_the_pattern_again(folder, model):
    draw("a.png")
    for _ in range(2):
        assert upscale("*.png", "-o", ".", "--suffix", "_x2", "--model", model) == 0
    assert sorted(path.name for path in folder.glob("*.png")) == ["a.png", "a_x2.png"]


def test_names_too_long_for_a_file_are_one_line_and_the_others_are_done(folder, model, capsys):
    draw("in/a.png", f"in/{'b' * 250}.png")
    assert upscale("in", "-o", "out", "--suffix", "_x2", "--model", model) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("cannot be written: File name too long")
    assert [path.name for path in Path("out").glob("*.png")] == ["a_x2.png"]
    for wrong, status in (
        (["-o", "x" * 300], 2),
        (["-o", "x" * 300 + ".png"], 1),
        (["--model", "x" * 300], 2),
    ):
        assert upscale("in/a.png", "--model", model, *wrong) == status
        assert capsys.readouterr().err.count("\n") == 1
