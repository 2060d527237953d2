"""Option files that name networks as traiNNer-redux and neosr do."""

from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network
from basicsr.utils.options import parse_options
from safetensors.torch import save_file

from esc_arch.plugin.preflight import check_options
from esc_arch.plugin.scale_option import name_the_scale
from esc_arch.zoo.loading import load_network

TINY = {
    "dim": 16,
    "pdim": 4,
    "kernel_size": 5,
    "n_blocks": 1,
    "conv_blocks": 1,
    "window_size": 8,
    "num_heads": 2,
}


@pytest.mark.parametrize("name", ["escrealm", "escrealm_xl", "esc", "esc_light", "ESCRealM"])
def test_the_files_own_scale_is_the_networks(name, write_train_options, monkeypatch):
    path = write_train_options({"network_g": {"type": name, **TINY}})
    monkeypatch.setattr("sys.argv", ["train.py", "-opt", str(path)])
    assert check_options(path).errors == []
    opt, _ = parse_options(str(path.parent), is_train=True)
    network = build_network(opt["network_g"])
    assert network(torch.rand(1, 3, 8, 8)).shape == (1, 3, 16, 16)


@pytest.mark.parametrize("name", ["escrealm", "ESC", "ESCFP", "esc"])
def test_scale_in_a_network_means_upscaling_factor(name):
    options = {"scale": 3, "network_g": {"type": name, **TINY, "scale": 3}}
    name_the_scale(options)
    assert options["network_g"]["upscaling_factor"] == 3 and "scale" not in options["network_g"]
    assert build_network(options["network_g"]).upscaling_factor == 3


@pytest.mark.parametrize("network_g", [None, {}, {"type": 3}, {"type": ["esc"]}, {"type": "EDSR"}])
def test_other_networks_and_faults_are_left_alone(network_g):
    options = {"scale": 2, "network_g": network_g}
    name_the_scale(options)
    assert options == {"scale": 2, "network_g": network_g}


def test_a_scale_that_is_not_the_files_is_refused(write_train_options):
    path = write_train_options({"network_g": {"type": "escrealm", **TINY, "scale": 4}})
    assert check_options(path).errors == [
        "network_g:upscaling_factor: is 4, but scale is 2: they must be the same"
    ]


@pytest.mark.slow
def test_a_trainers_file_is_trained_on_by_its_names(write_train_options, run_basicsr, tmp_path):
    file = Path(__file__).parents[1] / "data" / "foreign" / "trainner_escrealm_lda_x2.pt"
    case = torch.load(file, weights_only=True)
    weights = tmp_path / "net_g_ema_1000.safetensors"
    save_file({name: value.contiguous() for name, value in case["params"].items()}, weights)
    network_g = {"type": "escrealm", **case["options"]}
    path = write_train_options(
        {
            "model_type": "ESCModel",
            "network_g": network_g,
            "path:pretrain_network_g": str(weights),
            "train:total_iter": 2,
            "logger:save_checkpoint_freq": 2,
        }
    )
    result = run_basicsr("train", "-opt", path)
    assert result.returncode == 0, result.stdout + result.stderr
    (trained,) = tmp_path.glob("experiments/*/models/net_g_2.pth")
    network, found = load_network(trained)
    assert found["upsampler"] == "lda" and found["upscaling_factor"] == 2
    # It went on from their weights, and changed them.
    name = "to_img.2.proj_q.weight"
    difference = (network.state_dict()[name] - case["params"][name]).abs().max()
    assert 0 < difference < 0.01
