"""`basicsr reproduce` gives what the paper prints and what `basicsr test` gives."""

import csv
import math
import re
from pathlib import Path

import cv2
import pytest
import torch
import yaml
from basicsr.metrics import calculate_niqe
from safetensors.torch import save_file

from esc_arch.archs import ESC, ESCReal
from esc_arch.cli.main import main
from esc_arch.prepare.imresize import imresize
from esc_arch.study import paper
from esc_arch.study.paper import MODELS, Complexity, measure_complexity, paper_table
from esc_arch.study.quality import measure_quality, measure_real_quality, read_log, remedies
from esc_arch.zoo.catalogue import PRETRAINED_FOLDER

OPTIONS = Path(__file__).parents[2] / "options"
SETS = ("Set5", "Set14")


def write_images(data, photographs, scale=2):
    """A picture of each set, with its LR picture, in the layout of the benchmark sets."""
    for dataset, (name, top) in zip(SETS, [("chelsea", 100), ("coffee", 60)], strict=True):
        # One row more than the LR images stand for, as the benchmarks' HR may have.
        hr = cv2.cvtColor(photographs[name][top : top + 49, 200:256], cv2.COLOR_RGB2BGR)
        (data / dataset / "HR").mkdir(parents=True)
        (data / dataset / "LR_bicubic" / f"X{scale}").mkdir(parents=True)
        cv2.imwrite(str(data / dataset / "HR" / f"{name}.png"), hr)
        lr = data / dataset / "LR_bicubic" / f"X{scale}" / f"{name}x{scale}.png"
        cv2.imwrite(str(lr), imresize(hr[:48], 1 / scale))


def write_weights(path, **options):
    """ESC-light's weights as BasicSR saves them: those in training, and their average."""
    network_g = yaml.safe_load((OPTIONS / "test_ESC_light_x2.yml").read_text())["network_g"]
    network_g.pop("type")
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        states.append(ESC(**{**network_g, **options}).state_dict())
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"params": states[0], "params_ema": states[1]}, path)


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("option", ["data", "real", "weights"])
def test_a_folder_that_is_named_and_missing_is_one_line(option, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    models = ["--models", "ESC_light_BSD", "--scales", "2"]
    assert main(["reproduce", *models, f"--{option}", "elsewhere"]) == 2
    assert capsys.readouterr().err == f"basicsr: error: --{option} elsewhere: no such folder\n"
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_the_figures_are_those_of_basicsr_test(tmp_path, photographs, run_basicsr):
    data, weights = tmp_path / "datasets/benchmarks", tmp_path / "experiments/pretrained_models"
    write_images(data, photographs)
    write_weights(weights / "ESC_light_X2.pth")

    done = run_basicsr("reproduce", "--models", "ESC_light", "--scales", 2)
    assert done.returncode == 0, done.stderr
    rows = read_csv(tmp_path / "results/reproduce/quality.csv")
    reproduced = {row[2]: (row[3], row[6]) for row in rows[1:] if row[3]}

    options = yaml.safe_load((OPTIONS / "test_ESC_light_x2.yml").read_text())
    options["datasets"] = {
        key: value for key, value in options["datasets"].items() if value["name"] in SETS
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump(options, sort_keys=False))
    tested = run_basicsr("test", "-opt", "test.yml")
    assert tested.returncode == 0, tested.stderr
    (log,) = (tmp_path / "results/test_ESC_light_x2").glob("*.log")
    found = re.findall(
        r"Validation (\S+)\n\t # psnr: ([\d.]+).*\n\t # ssim: ([\d.]+)", log.read_text()
    )
    assert reproduced == {dataset: (psnr, ssim) for dataset, psnr, ssim in found}
    assert set(reproduced) == set(SETS)

    by_set = {row[2]: row for row in rows[1:]}
    assert by_set["Set5"][4] == "38.24" and by_set["Set5"][7] == "0.9615"
    assert float(by_set["Set5"][5]) == pytest.approx(float(by_set["Set5"][3]) - 38.24, abs=0.00501)
    assert by_set["Set5"][10] == "1 images; the set has 5"
    assert by_set["Urban100"][10] == "no images: datasets/benchmarks/Urban100/HR"
    assert (
        "no images: make them with: basicsr prepare benchmarks --src DIR "
        "--out datasets/benchmarks --sets B100 Urban100 Manga109, where"
    ) in done.stdout
    assert "| ESC_light | x2    | Set5" in done.stdout
    assert done.stdout.startswith(
        (tmp_path / "results/reproduce/reproduce.md").read_text().splitlines()[0]
    )


def test_sizes_are_the_papers_for_all_classic_rows():
    printed = ("ESC", "ESC_light", "ESC_FP", "ESC_DFLIP")
    rows = [measure_complexity(model, scale) for model in printed for scale in (2, 3, 4)]
    assert len(rows) == 12
    assert {row.flops_agree for row in rows} == {"yes"}
    # 603,600 parameters are printed as 603.
    cut_off = [(row.model, row.scale) for row in rows if row.parameters_agree == "yes, cut off"]
    assert cut_off == [("ESC_light", 2)]
    assert {row.parameters_agree for row in rows} == {"yes", "yes, cut off"}


def test_models_that_the_tables_leave_out_are_measured_beside_empty_cells():
    row = measure_complexity("ESC_XL", 2)
    assert row.parameters == 12_455_916
    assert (row.paper_params_k, row.parameters_agree, row.flops_agree) == ("", "", "")
    assert measure_complexity("ESC_Real_GAN", 4).parameters == 2_265_307


@pytest.mark.parametrize(
    ("parameters", "flops", "agree"),
    [
        (603_499, 359_449_000_000, ("yes", "yes")),
        (603_999, 359_451_000_000, ("yes, cut off", "no")),
        (604_000, 359_349_000_000, ("no", "no")),
        (602_499, 0, ("no", "no")),
    ],
)
def test_sizes_agree_only_within_the_papers_rounding(parameters, flops, agree):
    row = Complexity("ESC_light", 2, parameters, flops, "603", "359.4")
    assert (row.parameters_agree, row.flops_agree) == agree


def test_without_weights_every_set_has_a_row_that_says_so(tmp_path):
    rows, error = measure_quality("ESC", 3, tmp_path, tmp_path / "weights", tmp_path)
    assert error is None
    assert [row.dataset for row in rows] == ["Set5", "Set14", "B100", "Urban100", "Manga109"]
    for row in rows:
        assert row.psnr == row.ssim == ""
        assert row.note == f"no weights: {tmp_path / 'weights' / 'ESC_DIV2K_X3.pth'}"
    assert (rows[3].paper_psnr, rows[3].paper_ssim) == ("29.28", "0.8739")
    assert remedies(rows, [], tmp_path, PRETRAINED_FOLDER) == [
        "no weights: get them with: basicsr checkpoints download ESC_DIV2K_X3"
    ]


def test_weights_of_another_network_give_a_row_and_an_error(tmp_path, photographs, run_basicsr):
    write_images(tmp_path / "data", photographs)
    write_weights(tmp_path / "weights" / "ESC_light_X2.pth", n_blocks=1)
    done = run_basicsr(
        "reproduce",
        *("--models", "ESC_light", "--scales", 2, "--data", "data", "--weights", "weights"),
        *("-o", "out"),
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr == (
        "basicsr: error: weights/ESC_light_X2.pth: is another network than ESC_light_X2: "
        "n_blocks is 1 in place of 3\n"
    )
    rows = read_csv(tmp_path / "out/quality.csv")
    assert rows[1][2] == "Set5" and rows[1][10].startswith("failed: ")
    assert rows[3][10] == "no images: data/B100/HR"
    assert read_csv(tmp_path / "out/complexity.csv")[1][:4] == [
        *("ESC_light", "x2", "640x360", "603600")
    ]


def test_shipped_weights_are_measured_beside_the_papers_with_their_own_data(
    tmp_path, photographs, monkeypatch
):
    monkeypatch.setattr(paper, "SHIPPED_FOLDER", tmp_path / "shipped")
    data = tmp_path / "data"
    write_images(data, photographs)
    rows, error = measure_quality("ESC_light_BSD", 2, data, tmp_path, tmp_path)
    assert error is None
    assert rows[0].note.startswith(f"no weights: {tmp_path / 'shipped/ESC_light_x2_BSD'}")
    assert remedies(rows, [], data, tmp_path) == []

    write_weights(tmp_path / "ESC_light.pth")
    weights = torch.load(tmp_path / "ESC_light.pth", weights_only=True)["params_ema"]
    (tmp_path / "shipped").mkdir()
    save_file(weights, tmp_path / "shipped/ESC_light_x2_BSD.safetensors")
    rows, error = measure_quality("ESC_light_BSD", 2, data, tmp_path, tmp_path)
    assert error is None
    row = next(row for row in rows if row.dataset == "Set5")
    assert float(row.psnr) > 0 and row.paper_psnr == "38.24"
    assert "trained on BSDS400 and T91; the paper's on DIV2K" in row.note

    hr = cv2.imread(str(data / "Set5/HR/chelsea.png"))[:48]
    upscaled = imresize(cv2.imread(str(data / "Set5/LR_bicubic/X2/chelseax2.png")), 2)
    # The weights of ITU-R BT.601 for blue, green and red.
    difference = (upscaled.astype(float) - hr) @ [24.966, 128.553, 65.481] / 255
    psnr = 10 * math.log10(255**2 / (difference[2:-2, 2:-2] ** 2).mean())
    assert float(row.bicubic.split(" / ")[0]) == pytest.approx(psnr, abs=0.006)


def test_an_unknown_model_is_one_line(capsys):
    assert main(["reproduce", "--models", "ESC_lite"]) == 2
    assert capsys.readouterr().err == (
        "basicsr: error: --models ESC_lite: no such model in the paper's tables; "
        "did you mean ESC_light?\n"
    )


@pytest.mark.slow
def test_real_photographs_are_scored_without_a_ground_truth(tmp_path, photographs, monkeypatch):
    real, weights = tmp_path / "photos", tmp_path / "weights"
    row, error = measure_real_quality("ESC_Real_GAN", 4, real, weights, tmp_path)
    assert (row.note, error) == (f"no weights: {weights}/ESC_Real_X4_GAN.pth", None)
    weights.mkdir()
    options = {**MODELS["ESC_Real_GAN"].network_g(4)}
    options.pop("type")
    torch.manual_seed(0)
    torch.save({"params_ema": ESCReal(**options).state_dict()}, weights / "ESC_Real_X4_GAN.pth")
    row, error = measure_real_quality("ESC_Real_GAN", 4, real, weights, tmp_path)
    assert row.note == f"no images: {real}"
    assert remedies([], [row], tmp_path, weights) == [
        "no photographs: name a folder of real ones with --real FOLDER"
    ]

    real.mkdir()
    lq = cv2.cvtColor(photographs["chelsea"][100:148, 200:248], cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(real / "chelsea.png"), lq)
    row, error = measure_real_quality("ESC_Real_GAN", 4, real, weights, tmp_path)
    assert error is None
    (result,) = (tmp_path / "results/ESC_Real_GAN_x4/visualization/photos").iterdir()
    niqe = calculate_niqe(cv2.imread(str(result)), crop_border=0)
    assert float(row.scores["niqe"]) == pytest.approx(float(niqe), abs=1e-4)
    try:
        import pyiqa  # noqa: F401
    except ImportError:
        assert row.note == "musiq, maniqa, clipiqa: pip install pyiqa"


def test_a_scale_that_a_model_has_not_is_one_line(capsys):
    assert main(["reproduce", "--models", "ESC_Real_GAN", "--scales", "2"]) == 2
    assert capsys.readouterr().err == ("basicsr: error: --models ESC_Real_GAN: is for x4 alone\n")


def test_every_model_of_the_tables_has_a_row_in_them():
    for model in MODELS.values():
        for scale in (2, 3, 4) if model.trained_on in ("DIV2K", "DFLIP") else ():
            assert (model.trained_on, model.method, scale) in paper_table()


def test_metrics_are_read_from_a_log_by_data_set():
    log = (
        "2024-01-01 00:00:00,000 INFO: Testing Set5...\n"
        "2024-01-01 00:00:00,000 INFO: Validation Set5\n"
        "\t # psnr: 38.1234\tBest: 38.1234 @ name iter\n"
        "\t # ssim: 0.9612\tBest: 0.9612 @ name iter\n"
        "\n"
        "2024-01-01 00:00:00,000 INFO: Validation Set14\n"
        "\t # psnr: 33.0000\tBest: 33.0000 @ name iter\n"
    )
    assert read_log(log) == {
        "Set5": {"psnr": "38.1234", "ssim": "0.9612"},
        "Set14": {"psnr": "33.0000"},
    }
