"""`basicsr compare`: the metrics are the definitions', the square is the one asked for."""

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from esc_arch.cli.main import main
from esc_arch.prepare.imresize import imresize
from esc_arch.study.comparison import make_panels, most_different


@pytest.fixture
def pictures(tmp_path, monkeypatch, photographs):
    """hr.png, lr.png at half its size, and two results: a.png blurred, b.png off by 2 levels."""
    monkeypatch.chdir(tmp_path)
    hr = cv2.cvtColor(photographs["chelsea"][100:181, 150:271], cv2.COLOR_RGB2BGR)
    cv2.imwrite("hr.png", hr)
    hr = hr[:80, :120]
    cv2.imwrite("lr.png", imresize(hr, 0.5))
    cv2.imwrite("a.png", cv2.GaussianBlur(hr, (5, 5), 1.5))
    cv2.imwrite("b.png", np.clip(hr.astype(int) + 2, 0, 255).astype(np.uint8))
    return tmp_path


def test_bicubic_comes_first_and_the_ground_truth_last(pictures, capsys):
    done = main(["compare", "a.png", "b.png", "--reference", "hr.png", "--lr", "lr.png"])
    assert done == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[:4]] == ["bicubic", "a", "b", "ground truth"]
    assert lines[4] == "PSNR and SSIM on Y, without a border of 2 pixels"
    assert cv2.imread("comparison.png").std() > 0
    assert "older" not in lines[5]


def test_an_older_figure_is_said_to_be_replaced(pictures, capsys):
    for _ in range(2):
        assert main(["compare", "a.png", "b.png"]) == 0
    first, second = capsys.readouterr().out.split("comparison.png: ")[1:]
    assert "older" not in first
    assert ", in place of an older file" in second


def test_psnr_is_that_of_the_definition(pictures):
    panels, border = make_panels(
        [("b", pictures / "b.png")], pictures / "hr.png", pictures / "lr.png"
    )
    images = [cv2.imread(str(pictures / f"{name}.png"))[:80, :120] for name in ("b", "hr")]
    weights = np.array([24.966, 128.553, 65.481]) / 255  # ITU-R BT.601, BGR.
    difference = ((images[0].astype(float) - images[1]) @ weights)[2:-2, 2:-2]
    assert border == 2
    psnr = 10 * np.log10(255**2 / (difference**2).mean())
    assert panels[1].psnr == pytest.approx(psnr, abs=0.01)
    assert panels[0].psnr < panels[1].psnr and panels[2].psnr is None


def test_the_square_is_where_the_pictures_differ_most(pictures):
    changed = cv2.imread("b.png")
    changed[40:56, 90:106] = 255 - changed[40:56, 90:106]
    cv2.imwrite("c.png", changed)
    panels, _ = make_panels([(n, pictures / f"{n}.png") for n in ("b", "c")], None, None)
    left, top = most_different(panels, 16)
    assert abs(left - 90) <= 1 and abs(top - 40) <= 1


def test_pictures_of_16_bits_grey_and_transparent_are_compared(pictures):
    grey = cv2.imread("a.png", cv2.IMREAD_GRAYSCALE)
    cv2.imwrite("grey16.png", grey.astype(np.uint16) * 257)
    cv2.imwrite("clear.png", np.dstack([cv2.imread("a.png"), np.zeros_like(grey)]))
    panels, _ = make_panels([(n, pictures / f"{n}.png") for n in ("grey16", "clear")], None, None)
    np.testing.assert_array_equal(panels[0].pixels, np.repeat(grey[..., None], 3, axis=2))
    assert (panels[1].pixels == 255).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.png", "lr.png"], "lr.png: is 60x40, and a.png is 120x80; one size is needed"),
        (["a.png", "--reference", "lr.png"], "--reference lr.png: is 60x40, and a.png is 120x80"),
        (
            ["lr.png", "--lr", "a.png"],
            "--lr a.png: is 120x80, and lr.png is 60x40: no multiple of it",
        ),
        (["a.png", "--crop", "100", "10", "40"], "--crop 100 10 40: not a square of 4 pixels"),
        (["a.png", "--names", "A", "B"], "--names: 2 for 1 pictures"),
        (["a.png", "-o", "a.gif"], "--output a.gif: must end in .png, .pdf, .svg"),
        (["none.png"], "none.png: "),
    ],
)
def test_mistakes_are_one_line(pictures, capsys, arguments, message):
    assert main(["compare", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("basicsr: error: ") and error.count("\n") == 1
    assert message in error


def test_upscale_writes_bicubic_and_result_side_by_side(pictures):
    assert main(["upscale", "lr.png", "--compare"]) == 0
    result, both = (cv2.imread(f"upscaled/{name}.png") for name in ("lr", "lr_compare"))
    assert both.shape == (80, 2 * 120 + 8, 3)
    np.testing.assert_array_equal(both[:, :120], imresize(cv2.imread("lr.png"), 2))
    np.testing.assert_array_equal(both[:, 128:], result)


def test_a_comparison_replaces_no_result(pictures, capsys):
    Path("in").mkdir()
    for name in ("lr.png", "lr_compare.png"):
        shutil.copy("lr.png", f"in/{name}")
    for _ in range(2):
        assert main(["upscale", "in", "--compare"]) == 1
        told = "in/lr.png: its comparison would replace upscaled/lr_compare.png"
        assert told in capsys.readouterr().err
        assert np.array_equal(cv2.imread("upscaled/lr_compare.png"), cv2.imread("upscaled/lr.png"))


@pytest.mark.parametrize("option", [[], ["--reference"], ["--lr"]])
def test_the_figure_replaces_no_picture(option, pictures, capsys):
    before = Path("hr.png").read_bytes()
    assert main(["compare", "a.png", *option, "hr.png", "-o", "./hr.png"]) == 2
    assert "--output hr.png: is one of the pictures" in capsys.readouterr().err
    assert Path("hr.png").read_bytes() == before
    # Under another name, too, as one of other letter case is on macOS and Windows.
    os.link("hr.png", "other.png")
    assert main(["compare", "a.png", *option, "hr.png", "-o", "other.png"]) == 2
    assert Path("other.png").read_bytes() == before


def test_a_result_that_was_there_is_compared_too(pictures, capsys):
    assert main(["upscale", "lr.png"]) == 0
    assert main(["upscale", "lr.png", "--compare"]) == 0
    assert Path("upscaled/lr_compare.png").is_file()
    out = capsys.readouterr().out
    assert "upscaled/lr.png: kept" in out and "upscaled/lr_compare.png: bicubic" in out
    assert main(["upscale", "lr.png", "--compare"]) == 0
    assert "lr_compare.png" not in capsys.readouterr().out


def test_results_of_one_name_are_told_apart_by_their_folders(pictures, capsys):
    for folder in ("ours", "theirs"):
        (pictures / folder).mkdir()
        cv2.imwrite(f"{folder}/cat.png", cv2.imread("a.png"))
    paths = [f"{folder}/cat.png" for folder in ("ours", "theirs")]
    assert main(["compare", *paths, "--crop", "8", "8", "32", "-o", "figure.pdf"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        *("ours", "theirs"),
        "figure.pdf: 32x32 at 8, 8",
    ]
    assert (pictures / "figure.pdf").read_bytes().startswith(b"%PDF")
