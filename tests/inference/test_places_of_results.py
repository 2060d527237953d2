"""Where `basicsr upscale` writes results: beside no input, over nothing else, within its folder."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

import esc_arch  # noqa: F401
from esc_arch.cli.main import main
from esc_arch.errors import UserError
from esc_arch.inference.planning import Naming, plan_jobs
from esc_arch.inference.work import Job, run_job


def upscale(*arguments: object) -> int:
    return main(["upscale", "--device", "cpu", *map(str, arguments)])


def test_folders_keep_their_structure(folder, model, crop):
    for name in ("a.png", "sub/b.jpg", "sub/deep er/c.bmp"):
        path = Path("in") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(crop).save(path)
    Path("in/notes.txt").write_text("not a picture")
    Path("in/._a.png").write_text("left by macOS")
    assert upscale("in", "-o", "out", "--model", model) == 0
    written = {
        path.relative_to("out").as_posix()
        for path in Path("out").rglob("*.*")
        if path.suffix != ".jsonl"
    }
    assert written == {"a.png", "sub/b.png", "sub/deep er/c.png"}


def test_several_folders_do_not_mix(folder, model, crop):
    for name in ("x/a.png", "y/a.png", "b.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.fromarray(crop).save(name)
    assert upscale("x", "y", "b.png", "-o", "out", "--model", model) == 0
    written = {path.relative_to("out").as_posix() for path in Path("out").rglob("*.png")}
    assert written == {"x/a.png", "y/a.png", "b.png"}


def test_results_of_an_earlier_run_are_not_upscaled_again(folder, model, crop):
    Image.fromarray(crop).save("a.png")
    for _ in range(2):
        assert upscale(".", "-o", "out", "--model", model) == 0
    assert [path.as_posix() for path in sorted(Path(".").rglob("*.png"))] == ["a.png", "out/a.png"]


def test_existing_results_are_kept_unless_overwritten(folder, model, crop, capsys):
    Image.fromarray(crop).save("a.png")
    assert upscale("a.png", "-o", "out", "--model", model) == 0
    mine = Image.new("RGB", (60, 40))
    mine.save("out/a.png")
    assert upscale("a.png", "-o", "out", "--model", model) == 0
    assert "out/a.png: kept" in capsys.readouterr().out
    assert Image.open("out/a.png").getextrema() == ((0, 0),) * 3
    assert upscale("a.png", "-o", "out", "--model", model, "--overwrite") == 0
    assert Image.open("out/a.png").getextrema() != ((0, 0),) * 3
    assert {path.name for path in Path("out").iterdir()} == {"a.png", ".basicsr-upscaled.jsonl"}


def test_a_picture_is_done_anew_by_other_weights_as_in_folders(folder, model, crop, capsys):
    Image.fromarray(crop).save("a.png")
    params = torch.load(model)["params"]
    torch.save({"params": {name: value * 1.5 for name, value in params.items()}}, "other.pth")
    assert upscale("a.png", "-o", "out", "--model", model) == 0
    for told in ("done anew: what is there was made by other weights", "kept"):
        capsys.readouterr()
        assert upscale("a.png", "-o", "out", "--model", "other.pth") == 0
        assert f"out/a.png: {told}" in capsys.readouterr().out
    # Where a file is named nothing is left beside it.
    assert upscale("a.png", "-o", "b.png", "--model", model) == 0
    assert Path("b.png").exists() and not list(Path().glob(".basicsr*"))


@pytest.mark.parametrize("what", ["newer source", "other size", "no picture", "empty", "half"])
def test_a_result_of_something_else_is_done_anew_and_that_is_said(
    what, folder, model, crop, capsys
):
    Image.fromarray(crop).save("a.png")
    assert upscale("a.png", "-o", "out", "--model", model) == 0
    expected = Path("out/a.png").read_bytes()
    if what == "newer source":
        Image.fromarray(crop[::-1]).save("a.png")
        os.utime("out/a.png", (1, 1))
    elif what == "other size":
        Image.new("RGB", (30, 20)).save("out/a.png")
    else:
        content = {"no picture": b"mine", "empty": b"", "half": expected[:20]}[what]
        Path("out/a.png").write_bytes(content)
    found = Path("out/a.png").read_bytes()
    capsys.readouterr()
    assert upscale("a.png", "-o", "out", "--model", model) == 0
    said = capsys.readouterr().out
    assert "out/a.png: done anew: " in said
    assert Image.open("out/a.png").size == (60, 40)
    # What is not in the record may have been a picture of the user's own.
    is_known = found == expected or not found
    assert Path("out/a.png~").exists() == ("it is now out/a.png~" in said) == (not is_known)
    assert is_known or Path("out/a.png~").read_bytes() == found
    assert (Path("out/a.png").read_bytes() == expected) == (what != "newer source")


def test_each_of_two_that_are_replaced_is_kept(folder, model, crop):
    Image.fromarray(crop).save("a.jpg")
    for side in (30, 31):
        Image.new("RGB", (side, 20)).save("a.png")
        assert upscale("a.jpg", "-o", ".", "--model", model) == 0
    assert [Image.open(name).size[0] for name in ("a.png", "a.png~", "a.png~1")] == [60, 30, 31]


def test_nothing_is_left_where_a_result_cannot_be_written(folder, upscaler, crop):
    Image.fromarray(crop).save("a.png")
    Path("file").touch()
    with pytest.raises(UserError, match="file/a.png: cannot be written"):
        run_job(Job(Path("a.png"), Path("file/a.png")), upscaler)


def test_a_single_picture_can_be_named(folder, model, crop):
    Image.fromarray(crop).save("a.jpg")
    assert upscale("a.jpg", "-o", "sub/large.png", "--model", model) == 0
    assert Image.open("sub/large.png").size == (60, 40)


@pytest.mark.parametrize("out", ["a.jpg", "large.png", "x.gif", "x.AVIF"])
def test_an_output_that_cannot_be_is_refused(out, folder, model, crop, capsys):
    Image.fromarray(crop).save("a.jpg")
    before = Path("a.jpg").read_bytes()
    assert upscale("a.jpg", "a.jpg", "-o", out, "--model", model) == 2
    assert capsys.readouterr().err.startswith(f"basicsr: error: -o {out}: ")
    assert Path("a.jpg").read_bytes() == before and len(list(folder.iterdir())) == 1


def test_of_two_pictures_with_one_result_the_first_is_upscaled(folder, model, crop, capsys):
    Path("in").mkdir()
    for name in ("a.png", "a.jpg", "b.png"):
        Image.fromarray(crop).save(f"in/{name}")
    assert upscale("in", "-o", "out", "--model", model) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "basicsr: error: in/a.png: its result out/a.png is also that of in/a.jpg"
    )
    assert sorted(path.name for path in Path("out").glob("*.png")) == ["a.png", "b.png"]


def test_two_pictures_with_one_result_are_told_apart(folder, crop):
    for name in ("a.png", "a.jpg"):
        Image.fromarray(crop).save(name)
    inputs = [Path("a.png"), Path("a.jpg")]
    plan = plan_jobs(inputs, Naming(Path("out")))
    assert [job.source.name for job in plan.jobs] == ["a.png"]
    assert len(plan.problems) == 1
    assert plan.problems[0].startswith("a.jpg: its result out/a.png is also that")
    plan = plan_jobs(inputs, Naming(Path("out"), keep_suffix=True))
    assert [job.target.name for job in plan.jobs] == ["a.png.png", "a.jpg.png"]


@pytest.mark.parametrize("out", [".", "in"])
def test_a_result_never_replaces_an_input(out, folder, model, crop):
    Path("in").mkdir()
    Image.fromarray(crop).save("in/a.png")
    before = Path("in/a.png").read_bytes()
    source = "in/a.png" if out == "in" else "."
    os.chdir("in" if out == "." else ".")
    assert (
        upscale("a.png" if out == "." else source, "-o", out, "--model", model, "--overwrite") == 1
    )
    os.chdir(folder)
    assert Path("in/a.png").read_bytes() == before


@pytest.mark.skipif(os.name != "posix", reason="makes symbolic links")
def test_links_cannot_lead_out_of_the_output_folder(folder, model, crop, capsys):
    Path("in/sub").mkdir(parents=True)
    Path("outside").mkdir()
    Path("out").mkdir()
    Path("outside/b.png").write_text("precious")
    Image.fromarray(crop).save("in/sub/a.png")
    Image.fromarray(crop).save("in/b.png")
    Path("out/sub").symlink_to(Path("outside").resolve())
    Path("out/b.png").symlink_to(Path("outside/b.png").resolve())
    Path("in/loop").symlink_to(Path("in").resolve())
    assert upscale("in", "-o", "out", "--model", model, "--overwrite") == 1
    assert "outside" in capsys.readouterr().err
    assert [path.name for path in Path("outside").iterdir()] == ["b.png"]
    assert Path("outside/b.png").read_text() == "precious"
    assert Image.open("out/b.png").size == (60, 40)
