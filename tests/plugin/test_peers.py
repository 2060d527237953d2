"""Networks of others are built by option files' names, and can be trained."""

import subprocess
import sys

import pytest
import torch
from basicsr.archs import build_network

import esc_arch  # noqa: F401
from esc_arch.errors import UserError
from esc_arch.plugin.preflight import check_options

SWIN = {
    "upscale": 2,
    "in_chans": 3,
    "img_size": 16,
    "img_range": 1.0,
    "embed_dim": 12,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "window_size": 8,
    "mlp_ratio": 2,
    "upsampler": "pixelshuffledirect",
    "resi_connection": "1conv",
}
TINY = {
    "ATD": {**SWIN, "category_size": 16, "num_tokens": 8, "reducted_dim": 4},
    "SRFormer": SWIN,
    "OmniSR": {"num_feat": 16, "res_num": 1, "up_scale": 2},
    "PLKSR": {"dim": 16, "n_blocks": 1, "upscaling_factor": 2},
}


@pytest.mark.parametrize("name", TINY)
def test_a_peer_is_built_by_its_name_and_learns(name, write_train_options):
    pytest.importorskip("spandrel_extra_arches")
    network_g = {"type": name, **TINY[name]}
    if name == "ATD":
        network_g["use_checkpoint"] = False  # As its authors' option files have it.
    assert check_options(write_train_options({"network_g": network_g})).errors == []
    torch.manual_seed(0)
    network = build_network(network_g).train()
    lq, gt = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 32, 32)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        loss = (network(lq) - gt).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_what_a_peer_cannot_do_is_said():
    pytest.importorskip("spandrel")
    with pytest.raises(UserError, match="use_checkpoint is true; ATD of spandrel cannot"):
        build_network({"type": "ATD", **TINY["ATD"], "use_checkpoint": True})
    with pytest.raises(UserError, match="HiT_SRF is in no package that pip installs"):
        build_network({"type": "HiT_SRF", "upscale": 4})


def test_a_missing_package_is_one_line_and_costs_nothing_before():
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "spandrel":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import esc_arch
from basicsr.archs import build_network
assert not any(name.startswith("spandrel") for name in sys.modules)
from esc_arch.errors import UserError
def atd():
    build_network({"type": "ATD", "upscale": 2})
def install():
    import esc_arch.spandrel
for build in (atd, install):
    try:
        build()
    except UserError as error:
        print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines() == [
        "ATD needs the package spandrel: pip install 'esc-arch[peers]'",
        "esc_arch.spandrel needs spandrel: pip install spandrel",
    ]
