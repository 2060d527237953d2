"""Pictures of what `esc_arch.study.analysis` computes, as PNG."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LogNorm, PowerNorm, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from esc_arch.study.analysis import Attribution

# Values of a receptive field below this share of its largest look alike.
ERF_FLOOR = 1e-5


def draw_erf(fields: Sequence[tuple[str, Tensor]]) -> bytes:
    """Draw effective receptive fields side by side, each relative to its largest value.

    Args:
        fields: Title and (H, W) field of each network.

    Returns:
        A PNG file.
    """
    figure = Figure(figsize=(4.2 * len(fields), 4), layout="constrained")
    axes = figure.subplots(1, len(fields), squeeze=False)[0]
    for axis, (title, field) in zip(axes, fields, strict=True):
        shown = (field / field.max()).clamp(min=ERF_FLOOR).numpy()
        image = axis.imshow(shown, norm=LogNorm(ERF_FLOOR, 1), cmap="viridis")
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
    figure.colorbar(image, ax=axes, label="mean |gradient|, relative to its largest")
    return _png(figure)


def draw_attribution(
    picture: Tensor, attributions: Sequence[tuple[str, Attribution]], scales: Sequence[int]
) -> bytes:
    """Draw local attribution maps, a row for each network.

    Args:
        picture: The LR picture (3, H, W), RGB in [0, 1].
        attributions: Title and map of each network.
        scales: Scale of each network.

    Returns:
        A PNG file.
    """
    figure = Figure(figsize=(12, 3.6 * len(attributions)), layout="constrained")
    rows = figure.subplots(len(attributions), 3, squeeze=False)
    lr = picture.clamp(0, 1).permute(1, 2, 0).cpu().numpy()
    for axes, (title, one), scale in zip(rows, attributions, scales, strict=True):
        top, left, side = one.patch
        axes[0].imshow(lr)
        corner = (left / scale - 0.5, top / scale - 0.5)
        axes[0].add_patch(
            Rectangle(corner, side / scale, side / scale, fill=False, color="red", linewidth=1.5)
        )
        axes[0].set_title(f"{title}: input and square", fontsize=9)
        values = one.values.abs().numpy()
        shown = values / max(values.max(), np.finfo(np.float64).tiny)
        axes[1].imshow(lr.mean(-1), cmap="gray", vmin=-1, vmax=2)
        image = axes[1].imshow(
            shown, cmap="inferno", norm=PowerNorm(0.5, 0, 1), alpha=np.sqrt(shown)
        )
        axes[1].set_title(f"diffusion index {one.diffusion_index:.2f}", fontsize=9)
        figure.colorbar(image, ax=axes[1], label="|attribution|, relative to its largest")
        sr = one.result.clamp(0, 1).permute(1, 2, 0).numpy()
        axes[2].imshow(sr[top : top + side, left : left + side], interpolation="nearest")
        axes[2].set_title("result within the square", fontsize=9)
        for axis in axes:
            axis.set_axis_off()
    return _png(figure)


def draw_biases(networks: Sequence[tuple[str, dict[str, Tensor]]]) -> bytes:
    """Draw position biases, a row for each attention (numbered) and a column for each head.

    Args:
        networks: Title of each network and its maps (heads, 2h - 1, 2w - 1) by attention.

    Returns:
        A PNG file.
    """
    heads = [max(len(grid) for grid in maps.values()) for _, maps in networks]
    # The same number of rows for each, so that all maps are of one size.
    rows = max(len(maps) for _, maps in networks)
    height = 1.1 * rows + 0.8
    figure = Figure(figsize=(1.15 * sum(heads) + 1.6 * len(networks), height), layout="constrained")
    parts = figure.subfigures(1, len(networks), squeeze=False, width_ratios=heads)[0]
    for part, columns, (title, maps) in zip(parts, heads, networks, strict=True):
        part.suptitle(title, fontsize=9)
        axes = part.subplots(rows, columns, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        largest = max(float(grid.abs().max()) for grid in maps.values()) or 1.0
        for number, grid in enumerate(maps.values()):
            for head, values in enumerate(grid):
                axis = axes[number, head]
                norm = TwoSlopeNorm(0, -largest, largest)
                image = axis.imshow(values.numpy(), norm=norm, cmap="RdBu_r")
                axis.set_title(f"{number}, head {head}", fontsize=6, pad=2)
        part.colorbar(image, ax=axes, label="bias", shrink=min(1.0, 4 / height))
    return _png(figure)


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()
