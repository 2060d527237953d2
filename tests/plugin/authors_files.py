"""Option files in the form of the authors' repository: its model types, names and keys.

Written from facts, on top of what our own files say of the same trainings; networks are small.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

OPTIONS = Path(__file__).parents[2] / "options"
SMALL = {"dim": 16, "pdim": 4, "kernel_size": 5, "n_blocks": 1, "conv_blocks": 1}
SMALL.update(window_size=8, num_heads=2)
TRANSFORMER = {
    "in_chans": 3,
    "img_size": 16,
    "img_range": 1.0,
    "embed_dim": 12,
    "depths": [1],
    "num_heads": [2],
    "window_size": 8,
    "mlp_ratio": 2,
    "upsampler": "pixelshuffle",
    "resi_connection": "1conv",
}
PEERS = {
    "ATD": {
        **TRANSFORMER,
        "category_size": 16,
        "num_tokens": 8,
        "reducted_dim": 4,
        "use_checkpoint": False,
    },
    "SRFormer": TRANSFORMER,
    "HiT_SRF": {**TRANSFORMER, "base_win_size": [8, 8]},
}


def all_files() -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and contents: of each of their trainings and tests, at each scale."""
    for path in sorted(OPTIONS.glob("*.yml")):
        # Those of this package alone.
        if "demo" not in path.stem and "BSD" not in path.stem:
            yield path.stem, in_their_form(yaml.safe_load(path.read_text(encoding="utf-8")))
    for peer, network in PEERS.items():
        for scale in (2, 3, 4):
            yield f"test_{peer}_DFLIP_x{scale}", of_a_peer(peer, network, scale)


def in_their_form(ours: dict[str, Any]) -> dict[str, Any]:
    """What one of our files would be in their repository."""
    options = copy.deepcopy(ours)
    if "HAT" not in options["model_type"]:
        options["model_type"] = "ESRModel"
    options["network_g"].update(SMALL)
    options["network_g"].setdefault("attn_type", "Flex")
    options["use_ema"] = True
    train = options["datasets"].get("train")
    if train is None:
        options["num_gpu"] = 1
        return options
    # One process is started for what says 4 GPUs: 4 times 16 images, here 4 times 2.
    options["num_gpu"] = 4
    options["path"]["experiments_root"] = "experiments"
    train.pop("batch_size")
    train["batch_size_per_gpu"] = 2
    if train["type"] == "DownsampleImageDataset":
        train.update(mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
    if options["model_type"] == "ESRModel":
        loss = {"type": "L1Loss", "loss_weight": 0.5, "reduction": "mean"}
        options["train"].update(gradient_clip=0.5, reset_momentum_iter=2, wave_opt=loss)
        options["train"]["mesa_opt"] = {**loss, "start_ratio": 0.33}
    if "network_d" in options:
        options["network_d"].update(type="DeepUNetDiscriminatorSN", num_feat=8)
        options["train"]["gan_opt"].update(use_gp=True, gp_lambda=10)
    return options


def of_a_peer(name: str, network: dict[str, Any], scale: int) -> dict[str, Any]:
    """A file that tests one of the paper's peers."""
    options = in_their_form(yaml.safe_load((OPTIONS / f"test_ESC_DFLIP_x{scale}.yml").read_text()))
    options.pop("use_ema")
    options["name"] = f"test_{name}_DFLIP_x{scale}"
    options["network_g"] = {"type": name, "upscale": scale, **network}
    options["path"]["pretrain_network_g"] = f"experiments/pretrained_models/{name}_DFLIP.pth"
    return options
