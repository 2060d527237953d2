"""The checkpoints that have a name: those the authors published, and those of this package."""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esc_arch.errors import UserError

RELEASE_URL = "https://github.com/dslisleedh/ESC/releases/download/1.0.0"
MIRROR_VARIABLE = "ESC_CHECKPOINTS_URL"
PRETRAINED_FOLDER = Path("experiments/pretrained_models")
SHIPPED_FOLDER = Path(__file__).parent / "weights"
# What a name may end in as a file.
SUFFIXES = (".pth", ".safetensors")
# The weights to use where the user names none, by scale; the first are the default.
DEFAULT_MODELS: Mapping[int, str] = {2: "ESC_light_x2_BSD", 4: "ESC_light_x4_BSD"}


@dataclass(frozen=True)
class Published:
    """A checkpoint that the authors of ESC published.

    Attributes:
        name: Its name, also that of its file without `.pth`.
        data: What it was trained on, in a few words.
        network_g: The option block of its network.
        sha256: Checksum of its file, where it is known.
    """

    name: str
    data: str
    network_g: dict[str, Any]
    sha256: str | None = None

    @property
    def scale(self) -> int:
        """How many times larger its results are."""
        return self.network_g["upscaling_factor"]


_ESC: dict[str, Any] = {
    "type": "ESC",
    "dim": 64,
    "pdim": 16,
    "kernel_size": 13,
    "n_blocks": 5,
    "conv_blocks": 5,
    "window_size": 32,
    "num_heads": 4,
    "exp_ratio": 1.25,
}
_ESC_LIGHT = {**_ESC, "n_blocks": 3}
_ESC_FP = {**_ESC, "type": "ESCFP", "dim": 48, "num_heads": 3}
_ESC_XL = {
    **_ESC,
    "dim": 192,
    "pdim": 48,
    "n_blocks": 8,
    "window_size": 48,
    "num_heads": 12,
    "use_ln": True,
}
_ESC_REAL = {**_ESC, "type": "ESCReal", "n_blocks": 10, "exp_ratio": 2, "upscaling_factor": 4}
_FLASHBIAS = {"attn_type": "FlashBias", "flashbias_rank": 48}

PUBLISHED: dict[str, Published] = {
    entry.name: entry
    for entry in [
        *(
            Published(f"{name}_X{scale}{suffix}", data, {**network_g, "upscaling_factor": scale})
            for name, suffix, data, network_g in (
                ("ESC_DIV2K", "", "DIV2K", _ESC),
                ("ESC_light", "", "DIV2K", _ESC_LIGHT),
                ("ESC_FP", "", "DIV2K", _ESC_FP),
                ("ESC_DFLIP", "", "DFLIP", _ESC),
                ("ESC_XL_DF2K", "_FT", "DF2K", _ESC_XL),
            )
            for scale in (2, 3, 4)
        ),
        Published(
            "ESC_DIV2K_FB_R48_X2",
            "DIV2K, biases factored",
            {**_ESC, "upscaling_factor": 2, **_FLASHBIAS},
        ),
        Published(
            "ESC_Real_X4_MSE",
            "real-world, L1",
            _ESC_REAL,
            "ba22ae75b5f77382b1046e68634f58a53fc7ff5ffa46714133bfba30811ad943",
        ),
        Published(
            "ESC_Real_X4_GAN",
            "real-world, GAN",
            _ESC_REAL,
            "d6932bd01e29c9335f5f678b0e9b31ede906a42244887ab8888b1d39a8667f2d",
        ),
        Published(
            "ESC_Real_FB_R48_GAN_X4",
            "real-world, GAN, biases factored",
            {**_ESC_REAL, **_FLASHBIAS},
        ),
    ]
}


def shipped() -> dict[str, Path]:
    """The weights that came with this package, by name."""
    return {path.stem: path for path in sorted(SHIPPED_FOLDER.glob("*.safetensors"))}


def default_model(scale: int | None = None) -> Path:
    """The weights to use where the user names none.

    Args:
        scale: How many times larger results shall be; None for whatever the default does.

    Raises:
        UserError: None for this scale came with this package.
    """
    here = shipped()
    names = DEFAULT_MODELS.values() if scale is None else [DEFAULT_MODELS.get(scale)]
    for name in names:
        if name in here:
            return here[name]
    if scale is None:
        raise UserError(
            "--model is missing, and no weights came with this installation; get some with: "
            "basicsr checkpoints download ESC_light_X2, then use --model ESC_light_X2"
        )
    scales = " and ".join(f"{key}" for key, name in DEFAULT_MODELS.items() if name in here)
    others = [name for name, entry in PUBLISHED.items() if entry.scale == scale]
    told = f"weights for {scales} came with this package" if scales else "no weights came with it"
    hint = (
        f"; for {scale}: basicsr checkpoints download ESC_light_X{scale}, then --model "
        f"ESC_light_X{scale}"
        if others
        else "; --model names others"
    )
    raise UserError(f"--scale {scale}: {told}{hint}")


def published(name: str) -> Published:
    """Look up a published checkpoint.

    Raises:
        UserError: There is none of that name.
    """
    entry = PUBLISHED.get(spelled_as_listed(name.removesuffix(".pth")) or "")
    if entry is None:
        raise UserError(
            f"{name}: not a published checkpoint"
            f"{did_you_mean(name) or '; `basicsr checkpoints list` shows their names'}"
        )
    return entry


def did_you_mean(name: str) -> str:
    """The end of an error: the checkpoint that was probably meant, in any letter case."""
    known = {other.lower(): other for other in (*PUBLISHED, *shipped())}
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.75)
    return f"; did you mean {known[close[0]]}?" if close else ""


def is_bare_name(name_or_path: str | os.PathLike) -> bool:
    """Whether it could be a name: neither a path of several parts nor one with a suffix."""
    given = os.fspath(name_or_path)
    return os.path.basename(given) == given and not given.lower().endswith(SUFFIXES)


def spelled_as_listed(name_or_path: str | os.PathLike) -> str | None:
    """The name of a published or shipped checkpoint in its usual spelling, or None."""
    if not is_bare_name(name_or_path):
        return None
    spelling = {name.lower(): name for name in (*PUBLISHED, *shipped())}
    return spelling.get(os.fspath(name_or_path).lower())
