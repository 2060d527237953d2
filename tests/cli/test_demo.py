"""`basicsr demo`: the whole of it for a few iterations, and its option file."""

import re
from pathlib import Path

import cv2
import pytest
from basicsr.metrics import calculate_psnr, calculate_ssim

from esc_arch.cli.demo import find_option_file
from esc_arch.plugin.preflight import check_options
from esc_arch.prepare.imresize import imresize


@pytest.mark.slow
def test_trains_compares_and_draws(tmp_path: Path, run_basicsr):
    process = run_basicsr("demo", "--iterations", "2", "--picture", "shown/demo.png")
    output = process.stdout
    # After so few iterations ESC is behind, and the demo says so.
    assert process.returncode == 1, process.stderr[-2000:]
    assert "ESC is not ahead of bicubic on" in output
    assert (tmp_path / "experiments/train_ESC_demo_x2/models/net_g_latest.pth").is_file()

    rows = re.findall(
        r"^(\w+) +([\d.]+) / ([\d.]+) +([\d.]+) / ([\d.]+) +([+-][\d.]+)$", output, re.MULTILINE
    )
    assert {row[0] for row in rows} == {"chelsea", "coffee"}
    for name, *figures in rows:
        psnr, ssim, esc_psnr, _, gain = map(float, figures)
        lr = cv2.imread(str(tmp_path / f"datasets/demo/val/LR_bicubic/X2/{name}x2.png"))
        upscaled = imresize(lr, 2)
        height, width = upscaled.shape[:2]
        gt = cv2.imread(str(tmp_path / f"datasets/demo/val/HR/{name}.png"))[:height, :width]
        expected = calculate_psnr(upscaled, gt, 2, test_y_channel=True)
        assert psnr == pytest.approx(expected, abs=0.006)
        expected = calculate_ssim(upscaled, gt, 2, test_y_channel=True)
        assert ssim == pytest.approx(expected, abs=6e-5)
        assert gain == pytest.approx(esc_psnr - psnr, abs=0.016)

    # The picture: wide enough for three crops, and not empty anywhere.
    picture = cv2.imread(str(tmp_path / "shown/demo.png"))
    assert picture.shape[0] > 600 and picture.shape[1] > 600
    thirds = [picture[:, left : left + picture.shape[1] // 3] for left in (0, 300, 600)]
    assert all(third.std() > 20 for third in thirds)

    # It ends by upscaling a photograph with the weights that came with the package.
    assert "1 upscaled, 0 kept, 0 failed" in output
    assert cv2.imread(str(tmp_path / "shown/coffee.png")).shape == (800, 1200, 3)


def test_its_option_file_passes_the_preflight_once_the_data_are_there():
    errors = check_options(str(find_option_file())).errors
    assert all("datasets/demo" in error for error in errors)


def test_a_senseless_number_of_iterations_is_refused(run_basicsr):
    process = run_basicsr("demo", "--iterations", "0")
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1 and "--iterations: 0" in process.stderr
