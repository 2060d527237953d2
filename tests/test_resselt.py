"""The real resselt loads our networks, and its own as before."""

import copy
from pathlib import Path

import pytest
import torch

resselt = pytest.importorskip("resselt")

import esc_arch.resselt as ours  # noqa: E402
from esc_arch.archs import NETWORKS  # noqa: E402
from esc_arch.inference.upscaler import Upscaler  # noqa: E402
from esc_arch.zoo.catalogue import default_model  # noqa: E402
from esc_arch.zoo.loaders import network_type  # noqa: E402

DATA = Path(__file__).parent / "data"
FILES = [
    *sorted(DATA.glob("esc*_small_*.pt")),
    *sorted((DATA / "foreign").glob("*.pt")),
]


@pytest.fixture(scope="module", autouse=True)
def installed():
    assert ours.install() == ["ESC", "ESCFP", "ESCReal", "ESCRealM"]
    assert ours.install() == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_layout_is_loaded_and_gives_what_we_give(path, tmp_path):
    case = torch.load(path, weights_only=True)
    torch.save({"params": case["params"]}, tmp_path / "net.pth")
    network = resselt.load_from_file(str(tmp_path / "net.pth")).eval()
    name, lq, sr = type(network).__name__, case["lq"], case["sr"]
    assert isinstance(network, NETWORKS[name])
    info = network.parameters_info
    scale = sr.shape[-1] // lq.shape[-1]
    assert (info.name, info.in_channels, info.out_channels, info.upscale) == (name, 3, 3, scale)
    plain = NETWORKS[name].forward
    options = {"window_size": network.window_size, "upscaling_factor": scale}
    with torch.no_grad():
        torch.testing.assert_close(plain(network, lq), sr, atol=2e-4, rtol=0)
        for size in ((1, 1), (5, 9), tuple(lq.shape[-2:])):
            small = lq[:1, :, : size[0], : size[1]]
            expected = Upscaler(network, options).upscale(small)
            assert torch.equal(network(small).clamp(0, 1), expected)
            assert torch.equal(copy.deepcopy(network)(small).clamp(0, 1), expected)


def test_the_shipped_weights_load_from_safetensors():
    network = resselt.load_from_file(str(default_model(2)))
    assert isinstance(network, NETWORKS["ESC"])


def test_networks_of_others_are_not_claimed():
    from resselt.archs.span.arch import SPAN

    state = SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2).state_dict()
    assert network_type(state) is None
    assert type(resselt.load_from_state_dict(state)).__name__ == "SPAN"
