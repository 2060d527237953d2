"""The paper's tables 2 and 4, the models in them, and these models' sizes."""

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from esc_arch.zoo.catalogue import PUBLISHED, SHIPPED_FOLDER

CUT_OFF = "yes, cut off"

# What the paper prints that cannot be meant: (trained_on, method, scale, column) -> why.
MISPRINTS = {
    ("DIV2K", "ESC-FP", 3, "manga109"): "the paper's SSIM repeats Urban100's: a misprint",
    ("DIV2K", "ESC-FP", 4, "set5"): "the paper's SSIM is 0.01 below every other: a misprint",
}


@dataclass(frozen=True)
class PaperModel:
    """A model of the paper's tables.

    Attributes:
        checkpoint: Name of its published checkpoint, but for the scale.
        trained_on: Its training data, as in the tables.
        method: Its name, as in the tables.
        shipped: Name of weights of the same network that ship with this package, but for the
            scale, if they are to be measured in place of the published ones.
        shipped_data: What those were trained on.
        scales: The scales that it was trained for.
        is_real: Whether it is for photographs without a ground truth, on which there is neither
            PSNR nor SSIM.
    """

    checkpoint: str
    trained_on: str
    method: str
    shipped: str = ""
    shipped_data: str = ""
    scales: tuple[int, ...] = (2, 3, 4)
    is_real: bool = False

    def weights(self, scale: int) -> str:
        """Name of the checkpoint to measure at this scale."""
        return (self.shipped or self.checkpoint).format(scale=scale)

    def file(self, scale: int, folder: Path) -> Path:
        """Where that checkpoint lies, given the folder of published ones."""
        if self.shipped:
            return SHIPPED_FOLDER / f"{self.weights(scale)}.safetensors"
        return folder / f"{self.weights(scale)}.pth"

    def network_g(self, scale: int) -> dict[str, Any]:
        """The network's option block."""
        return dict(PUBLISHED[self.checkpoint.format(scale=scale)].network_g)


MODELS: dict[str, PaperModel] = {
    "ESC": PaperModel("ESC_DIV2K_X{scale}", "DIV2K", "ESC"),
    "ESC_light": PaperModel("ESC_light_X{scale}", "DIV2K", "ESC-light"),
    "ESC_FP": PaperModel("ESC_FP_X{scale}", "DIV2K", "ESC-FP"),
    "ESC_DFLIP": PaperModel("ESC_DFLIP_X{scale}", "DFLIP", "ESC"),
    "ESC_XL": PaperModel("ESC_XL_DF2K_X{scale}_FT", "DF2K", "ESC-XL"),
    "ESC_Real_MSE": PaperModel(
        "ESC_Real_X{scale}_MSE", "DF2K and OST", "ESC-Real", scales=(4,), is_real=True
    ),
    "ESC_Real_GAN": PaperModel(
        "ESC_Real_X{scale}_GAN", "DF2K and OST", "ESC-Real", scales=(4,), is_real=True
    ),
    "ESC_light_BSD": PaperModel(
        "ESC_light_X{scale}",
        "DIV2K",
        "ESC-light",
        "ESC_light_x{scale}_BSD",
        "BSDS400 and T91",
    ),
}


@dataclass(frozen=True)
class Complexity:
    """Size of a model, measured and as printed.

    Attributes:
        model: A key of `MODELS`.
        scale: Its scale.
        parameters: Number of learned values.
        flops: Multiply-accumulates at an output of 1280x720.
        paper_params_k: Thousands of parameters, as printed; empty for a model that the paper's
            tables 2 and 4 leave out.
        paper_flops_g: Billions of multiply-accumulates, likewise.
    """

    model: str
    scale: int
    parameters: int
    flops: int
    paper_params_k: str
    paper_flops_g: str

    @property
    def parameters_agree(self) -> str:
        """yes, no, `CUT_OFF` where the paper dropped digits in place of rounding, or empty."""
        if not self.paper_params_k:
            return ""
        if f"{self.parameters / 1000:.0f}" == self.paper_params_k:
            return "yes"
        return CUT_OFF if str(self.parameters // 1000) == self.paper_params_k else "no"

    @property
    def flops_agree(self) -> str:
        """Whether the figure, rounded, is the paper's: yes, no, or empty if none is printed."""
        if not self.paper_flops_g:
            return ""
        return "yes" if f"{self.flops / 1e9:.1f}" == self.paper_flops_g else "no"


@cache
def paper_table() -> dict[tuple[str, str, int], dict[str, str]]:
    """The paper's tables 2 and 4 as printed: rows by (trained_on, method, scale)."""
    text = (
        resources.files("esc_arch.study").joinpath("paper_tables.csv").read_text(encoding="utf-8")
    )
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {
        (row["trained_on"], row["method"], int(row["scale"])): row for row in csv.DictReader(lines)
    }


def measure_complexity(model: str, scale: int) -> Complexity:
    """Count parameters and FLOPs of a model and put the paper's beside them.

    Args:
        model: A key of `MODELS`.
        scale: 2, 3 or 4.

    Returns:
        Both.
    """
    printed = printed_row(model, scale)
    network_g = MODELS[model].network_g(scale)
    parameters, flops = _complexity(yaml.safe_dump(network_g))
    figures = printed.get("params_k", ""), printed.get("flops_g", "")
    return Complexity(model, scale, parameters, flops, *figures)


@cache
def _complexity(network_g: str) -> tuple[int, int]:
    # Not at the top: the names of the models need no torch.
    from esc_arch.study.complexity import paper_complexity

    return paper_complexity(yaml.safe_load(network_g))


def printed_row(model: str, scale: int) -> dict[str, str]:
    """What the paper's tables print of a model, by column; empty for one that they leave out."""
    return paper_table().get((MODELS[model].trained_on, MODELS[model].method, scale), {})
