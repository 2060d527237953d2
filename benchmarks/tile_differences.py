"""How far tiles are from the whole image, with the weights that ship, on photographs.

    python benchmarks/tile_differences.py

prints Markdown: the difference of the results in levels of 8 bits (1/255), with what ConvAttn pools
shared among the tiles, as the package does, and with each tile on its own.
"""

import platform

import numpy as np
import torch

import esc_arch  # noqa: F401  (registers)
from esc_arch.inference.tiling import global_pools, super_resolve_tiled
from esc_arch.ops.windows import pad_to_multiple
from esc_arch.prepare.demo_data import photograph
from esc_arch.zoo.catalogue import default_model
from esc_arch.zoo.loading import load_network

PHOTOGRAPHS = ("coffee", "chelsea", "astronaut")
TILES = ((128, 32), (128, 64), (256, 32))


def differences(network: torch.nn.Module, window_size: int, lq: torch.Tensor) -> list[list[float]]:
    """Mean and largest difference from the whole image, in levels, for each of `TILES`.

    Args:
        network: The network.
        window_size: Multiple that it is given.
        lq: LR image (1, 3, H, W), RGB in [0, 1].

    Returns:
        For each of `TILES`: mean and maximum with shared pooling, mean and maximum without.
    """
    lq = pad_to_multiple(lq, window_size)
    whole = network(lq).clamp(0, 1)
    rows = []
    for tile_size, tile_pad in TILES:
        row = []
        for pools in (global_pools(network), []):
            tiled = super_resolve_tiled(network, lq, tile_size, tile_pad, window_size, pools)
            error = (tiled.clamp(0, 1) - whole).abs() * 255
            row += [error.mean().item(), error.max().item()]
        rows.append(row)
    return rows


@torch.inference_mode()
def main() -> None:
    """Measure and print."""
    path = default_model()
    network, network_g = load_network(path)
    print(f"{path.stem}, torch {torch.__version__}, {platform.machine()}, float32\n")
    print("| LR image | tile, margin | mean | largest | mean, tiles alone | largest, tiles alone |")
    print("|---|---|---:|---:|---:|---:|")
    for name in PHOTOGRAPHS:
        pixels = np.ascontiguousarray(photograph(name)[:, :, ::-1])
        lq = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        size = f"{name} {pixels.shape[1]}x{pixels.shape[0]}"
        for tile, row in zip(
            TILES, differences(network, network_g["window_size"], lq), strict=True
        ):
            cells = " | ".join(f"{value:.3f}" for value in row)
            print(f"| {size} | {tile[0]}, {tile[1]} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
