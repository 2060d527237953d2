"""The smallest data that an option file can be run on."""

from pathlib import Path
from typing import Any

import cv2
import lmdb
import numpy as np


def make_data(
    options: dict[str, Any], folder: Path, pictures: tuple[str, ...] = ("first", "second")
) -> list[str]:
    """Make a few pictures a data set, and a file for each checkpoint.

    Args:
        options: A parsed option file.
        folder: Where to make them.
        pictures: Names of the pictures.

    Returns:
        Entries for --force_yml that point the options there.
    """
    entries = []
    for key, data in options["datasets"].items():
        is_lmdb = data["io_backend"]["type"] == "lmdb"
        # Patches must fit in, and make a batch.
        side = max(12, -(-data.get("gt_size", 0) // options.get("scale", 1)))
        batch = data.get("batch_size", data.get("batch_size_per_gpu", 1))
        if batch > len(pictures):
            entries.append(f"datasets:{key}:dataset_enlarge_ratio={batch}")
        template = data.get("filename_tmpl", "{}")
        for kind, scale in (("gt", options.get("scale", 1)), ("lq", 1)):
            if f"dataroot_{kind}" not in data:
                continue
            root = folder / f"{key}_{kind}{'.lmdb' if is_lmdb else ''}"
            images = {
                (template if kind == "lq" else "{}").format(name): picture(side * scale)
                for name in pictures
            }
            (write_lmdb if is_lmdb else write_folder)(root, images)
            entries.append(f"datasets:{key}:dataroot_{kind}={root}")
        for name in ("meta_info", "meta_info_file"):
            if data.get(name) and not is_lmdb:
                listing = folder / f"{key}_{name}.txt"
                listing.write_text("".join(f"{name}.png (12,12,3) 1\n" for name in pictures))
                entries.append(f"datasets:{key}:{name}={listing}")
    for key, value in options["path"].items():
        if key.startswith("pretrain_network_") and value is not None:
            weights = folder / "net_g_latest.pth"
            write_weights(weights, options.get(key.removeprefix("pretrain_"), {}))
            entries.append(f"path:{key}={weights}")
    spynet = options["network_g"].get("spynet_path")
    return entries + ([] if spynet is None else ["network_g:spynet_path=~"])


def write_weights(path: Path, network: dict[str, Any]) -> None:
    """Write zeros of the right shapes."""
    import torch
    from basicsr.archs import build_network

    from esc_arch.errors import UserError

    try:
        with torch.device("meta"):
            shapes = {
                name: value.shape for name, value in build_network(network).state_dict().items()
            }
    except (KeyError, RuntimeError, NotImplementedError, UserError):
        shapes = {"unknown": (1,)}
    state = {name: torch.zeros(shape) for name, shape in shapes.items()}
    torch.save({"params": state, "params_ema": state}, path)


def write_empty_vgg19(folder: Path) -> None:
    """Put a file where BasicSR looks for VGG19's weights, below the current folder."""
    path = folder / "experiments" / "pretrained_models" / "vgg19-dcbb9e9d.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def picture(side: int) -> np.ndarray:
    """A smooth picture (side, side, 3), BGR in 0..255."""
    row = np.linspace(0, 255, side)
    return np.stack([np.add.outer(row, row) / 2] * 3, axis=-1).astype(np.uint8)


def write_folder(root: Path, images: dict[str, np.ndarray]) -> None:
    """Write pictures as PNG."""
    root.mkdir()
    for name, image in images.items():
        cv2.imwrite(str(root / f"{name}.png"), image)


def write_lmdb(root: Path, images: dict[str, np.ndarray]) -> None:
    """Write pictures into an LMDB as BasicSR wants it."""
    root.mkdir()
    with lmdb.open(str(root), map_size=2**20) as environment, environment.begin(write=True) as txn:
        for name, image in images.items():
            txn.put(name.encode(), cv2.imencode(".png", image)[1].tobytes())
    lines = [
        f"{name}.png ({image.shape[0]},{image.shape[1]},3) 1\n" for name, image in images.items()
    ]
    (root / "meta_info.txt").write_text("".join(lines))
