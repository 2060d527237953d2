"""Checkpoints of the ESC family: the published ones, and what network a file holds.

The network is found from the names and shapes of a file's tensors alone, so a file needs no option
file beside it.
"""

import difflib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from esc_arch.archs import NETWORKS
from esc_arch.errors import UserError
from esc_arch.prepare.download import download, file_sha256
from esc_arch.zoo.store import load_state, select_params, write_atomically

RELEASE_URL = "https://github.com/dslisleedh/ESC/releases/download/1.0.0"
MIRROR_VARIABLE = "ESC_CHECKPOINTS_URL"
PRETRAINED_FOLDER = Path("experiments/pretrained_models")
SHIPPED_FOLDER = Path(__file__).parent / "weights"
DEFAULT_MODEL = "ESC_light_x2_BSD"
# What `resolve` looks for, in this order.
_SUFFIXES = (".pth", ".safetensors")
PARAM_KEYS = ("params_ema", "params")


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
    ]
}


@dataclass(frozen=True)
class Checkpoint:
    """A file's network.

    Attributes:
        path: The file.
        network_g: The option block that builds the network.
        params: The tensors under `params`, `params_ema` or both. A file of bare tensors has them
            under `params`.
        metadata: Text that a .safetensors file carries beside its tensors.
    """

    path: Path
    network_g: dict[str, Any]
    params: dict[str, dict[str, Tensor]]
    metadata: dict[str, str]

    @property
    def best(self) -> dict[str, Tensor]:
        """The averaged weights (EMA) where there are any, as in the paper's evaluation."""
        return next(self.params[key] for key in PARAM_KEYS if key in self.params)

    @property
    def parameters(self) -> int:
        """Number of parameters of the network; buffers do not count."""
        return sum(value.numel() for value in build_on_meta(self.network_g).parameters())


def identify(state_dict: Mapping[str, Tensor], source: str = "the file") -> dict[str, Any]:
    """Find the option block of a network from the names and shapes of its tensors.

    Args:
        state_dict: The network's tensors by name; the values are not looked at.
        source: What to call it in an error.

    Returns:
        The `network_g` block that builds a network with exactly these tensors. Options that do
        not show in them (`attn_type`, but for FlashBias) are left out, as is `use_ln: false`.

    Raises:
        UserError: The tensors are another network's, or some are missing or have other shapes.
    """
    shapes = {name: tuple(value.shape) for name, value in state_dict.items()}
    try:
        network_g = _read_options(shapes)
        built = build_on_meta(network_g).state_dict()
    except (LookupError, ValueError, ArithmeticError, TypeError, RuntimeError):
        known = ", ".join(list(shapes)[:2]) or "none"
        raise UserError(
            f"{source}: not a network of the ESC family: its {len(shapes)} tensors are others "
            f"({known}, ...)"
        ) from None
    expected = {name: tuple(value.shape) for name, value in built.items()}
    missing = [name for name in expected if name not in shapes]
    unknown = [name for name in shapes if name not in expected]
    for problem, names in (("lacks", missing), ("has no place for", unknown)):
        if names:
            subject = "it" if problem == "lacks" else "the network"
            raise UserError(
                f"{source}: looks like {network_g['type']}, but {subject} {problem} "
                f"{len(names)} of its {len(expected if names is missing else shapes)} tensors, "
                f"such as '{names[0]}'"
            )
    for name, shape in shapes.items():
        if shape != expected[name]:
            raise UserError(
                f"{source}: looks like {network_g['type']}, but '{name}' has the shape "
                f"{list(shape)} in place of {list(expected[name])}"
            )
    return network_g


def _read_options(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The option block, taken from single tensors; a KeyError or IndexError means another one."""
    real = "skip.0.weight" in shapes
    factored = "lk_channel" in shapes
    large_kernel = shapes["lk_spatial" if factored else "plk_filter"]
    dim = shapes["proj.weight"][0]
    flashbias = shapes.get("blocks.0.attn.flashbias_q")
    if flashbias is None:
        num_heads, table = shapes["blocks.0.attn.relative_position_bias"]
        window_size = (math.isqrt(table) + 1) // 2
    else:
        num_heads, pixels, _ = flashbias
        window_size = math.isqrt(pixels)
    network_g = {
        "type": "ESCReal" if real else "ESCFP" if factored else "ESC",
        "dim": dim,
        "pdim": large_kernel[0],
        "kernel_size": large_kernel[-1],
        "n_blocks": _count(shapes, r"blocks\.(\d+)\."),
        "conv_blocks": _count(shapes, r"blocks\.0\.convffns\.(\d+)\."),
        "window_size": window_size,
        "num_heads": num_heads,
        "exp_ratio": _clean_ratio(dim, shapes["blocks.0.convffns.0.proj.weight"][0]),
        "upscaling_factor": 4 if real else math.isqrt(shapes["to_img.weight"][0] // 3),
    }
    if network_g["type"] == "ESC" and "blocks.0.lns.0.weight" in shapes:
        network_g["use_ln"] = True
    if real and "to_img.offset.weight" in shapes:
        network_g["use_dysample"] = True
    if flashbias is not None:
        network_g |= {"attn_type": "FlashBias", "flashbias_rank": flashbias[2]}
    return network_g


def _count(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> int:
    """How many different numbers there are; a gap among them shows later as tensors missing."""
    return len({match[1] for name in shapes if (match := re.match(pattern, name))})


def _clean_ratio(dim: int, hidden: int) -> float | int:
    """The plainest number with int(dim * number) == hidden."""
    exact = Fraction(hidden, dim)
    if exact.denominator == 1:
        return exact.numerator
    if 100 % exact.denominator == 0:
        return hidden / dim
    for digits in range(1, 16):
        ratio = math.ceil(exact * 10**digits) / 10**digits
        if int(dim * ratio) == hidden:
            return ratio
    raise ValueError(f"no ratio gives {hidden} of {dim}")


def build_on_meta(network_g: Mapping[str, Any]) -> nn.Module:
    """Build a network without memory for its parameters, for their names and shapes."""
    options = dict(network_g)
    with torch.device("meta"):
        return NETWORKS[options.pop("type")](**options)


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Read a file and find out what network it holds.

    Args:
        path: A .pth as BasicSR saves it, a file of bare tensors, or a .safetensors.

    Returns:
        Its network and tensors.

    Raises:
        UserError: One line: the file is missing, damaged, or holds something else.
    """
    path = Path(path)
    state = load_state(path)
    if "optimizers" in state and "schedulers" in state:
        raise UserError(
            f"{path}: is a training state, which has no network in it; the networks of a run are "
            "in its models folder"
        )
    keys = [key for key in PARAM_KEYS[::-1] if key in state] or ["params"]
    params = {key: select_params(state, path, key) for key in keys}
    for tensors in params.values():
        for name, value in tensors.items():
            if not value.is_floating_point():
                raise UserError(f"{path}: '{name}' is of {value.dtype}; a network's are floats")
    networks = [
        identify(tensors, f"{path}{f' ({key})' if len(keys) > 1 else ''}")
        for key, tensors in params.items()
    ]
    if any(network != networks[0] for network in networks):
        raise UserError(f"{path}: params and params_ema are of different networks")
    return Checkpoint(path, networks[0], params, _read_metadata(path))


def _read_metadata(path: Path) -> dict[str, str]:
    if path.suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def load_network(
    path: str | os.PathLike,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[nn.Module, dict[str, Any]]:
    """Build the network that a file holds, for evaluation, with its best weights.

    Args:
        path: As for `read_checkpoint`.
        device: Where to put it.
        dtype: What to compute in.

    Returns:
        The network in evaluation mode without gradients, and its option block.

    Raises:
        UserError: As `read_checkpoint`.
    """
    checkpoint = read_checkpoint(path)
    network = build_on_meta(checkpoint.network_g)
    network.load_state_dict(checkpoint.best, strict=True, assign=True)
    return network.eval().requires_grad_(False).to(device, dtype), checkpoint.network_g


def shipped() -> dict[str, Path]:
    """The weights that came with this package, by name."""
    return {path.stem: path for path in sorted(SHIPPED_FOLDER.glob("*.safetensors"))}


def default_model() -> Path:
    """The weights to use where the user names none.

    Raises:
        UserError: None came with this package.
    """
    here = shipped()
    if not here:
        raise UserError(
            "--model is missing, and no weights came with this installation; get some with: "
            "basicsr checkpoints download ESC_light_X2, then use --model ESC_light_X2"
        )
    return here.get(DEFAULT_MODEL) or next(iter(here.values()))


def find(name_or_path: str | os.PathLike) -> Path | None:
    """The file that `resolve` returns, or None where it raises."""
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    name = _checkpoint_name(name_or_path)
    if name is None:
        return None
    if name in shipped():
        return shipped()[name]
    downloaded = [PRETRAINED_FOLDER / f"{name}{suffix}" for suffix in _SUFFIXES]
    return next((file for file in downloaded if file.is_file()), None)


def resolve(name_or_path: str | os.PathLike) -> Path:
    """The file that a path, or the name of a published or shipped checkpoint, stands for.

    Nothing is downloaded: a run that starts unattended, perhaps on many machines, should not.

    Args:
        name_or_path: A path (`~` is the home folder), the name of a shipped checkpoint, or of a
            published one that is in `experiments/pretrained_models` below the current folder.

    Returns:
        The file. Where it is a published one, its checksum is as published or as recorded.

    Raises:
        UserError: There is none; the message says how to get it. Or the checksum is wrong.
    """
    path = find(name_or_path)
    if path is not None:
        check_checksum(path)
        return path
    given = os.fspath(name_or_path)
    if Path(given).expanduser().is_dir():
        raise UserError(f"{given}: is a folder; a checkpoint file is expected")
    stem = Path(given).name.removesuffix(".pth").removesuffix(".safetensors")
    if stem in PUBLISHED:
        raise UserError(
            f"{given}: no such checkpoint here; get it with: basicsr checkpoints download {stem}"
        )
    hint = _did_you_mean(stem)
    if not hint and _is_bare_name(given):
        hint = "; it is neither a file nor a name that `basicsr checkpoints list` shows"
    raise UserError(f"{given}: no such checkpoint{hint}")


def _did_you_mean(name: str) -> str:
    """The end of an error: the checkpoint that was probably meant, in any letter case."""
    known = {other.lower(): other for other in (*PUBLISHED, *shipped())}
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.75)
    return f"; did you mean {known[close[0]]}?" if close else ""


def _is_bare_name(name_or_path: str | os.PathLike) -> bool:
    given = os.fspath(name_or_path)
    return os.path.basename(given) == given and not given.endswith(_SUFFIXES)


def _checkpoint_name(name_or_path: str | os.PathLike) -> str | None:
    """The name of a published or shipped checkpoint in its usual spelling, or None."""
    if not _is_bare_name(name_or_path):
        return None
    spelling = {name.lower(): name for name in (*PUBLISHED, *shipped())}
    return spelling.get(os.fspath(name_or_path).lower())


def published(name: str) -> Published:
    """Look up a published checkpoint.

    Raises:
        UserError: There is none of that name.
    """
    entry = PUBLISHED.get(_checkpoint_name(name.removesuffix(".pth")) or "")
    if entry is None:
        raise UserError(
            f"{name}: not a published checkpoint"
            f"{_did_you_mean(name) or '; `basicsr checkpoints list` shows their names'}"
        )
    return entry


def download_checkpoint(name: str, base_url: str | None = None, progress: bool = True) -> Path:
    """Download a published checkpoint into `experiments/pretrained_models`, unless it is there.

    The file takes its place only after it was found whole and to hold the network of that name.
    Its checksum is compared with the one known or, if none is, recorded beside it for later.

    Args:
        name: A key of `PUBLISHED`.
        base_url: Where the files are, `BASE_URL/NAME.pth`; by default the environment variable
            `ESC_CHECKPOINTS_URL`, and without that the authors' release.
        progress: Whether to show a progress bar.

    Returns:
        The file.

    Raises:
        UserError: No such name, no connection, or a file that is not what it should be.
    """
    entry = published(name)
    path = PRETRAINED_FOLDER / f"{entry.name}.pth"
    if path.is_file():
        verify_checkpoint(path)
        return path
    base_url = base_url or os.environ.get(MIRROR_VARIABLE) or RELEASE_URL
    url = f"{base_url.rstrip('/')}/{entry.name}.pth"
    incoming = path.with_name(f"{path.name}.incoming")
    digest = download(url, incoming, sha256=_expected_sha256(path), progress=progress)
    try:
        _check_published(entry, incoming, url)
        if entry.sha256 is None:
            _record_sha256(path, digest)
        os.replace(incoming, path)
    finally:
        incoming.unlink(missing_ok=True)
    return path


def verify_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Check a file as thoroughly as can be: checksum, tensors, and the network its name promises.

    Args:
        path: The file. One named as a published checkpoint must hold that network.

    Returns:
        What it holds.

    Raises:
        UserError: One line, what is wrong.
    """
    path = Path(path)
    check_checksum(path)
    entry = PUBLISHED.get(path.stem)
    return read_checkpoint(path) if entry is None else _check_published(entry, path, str(path))


def _check_published(entry: Published, path: Path, source: str) -> Checkpoint:
    try:
        checkpoint = read_checkpoint(path)
    except UserError as error:
        raise UserError(str(error).replace(str(path), source)) from None
    found = {key: checkpoint.network_g.get(key) for key in entry.network_g}
    wrong = [key for key, value in entry.network_g.items() if found[key] != value]
    if wrong:
        raise UserError(
            f"{source}: is another network than {entry.name}: {wrong[0]} is {found[wrong[0]]} in "
            f"place of {entry.network_g[wrong[0]]}"
        )
    return checkpoint


def checksum_known(path: Path) -> bool:
    """Whether there is a checksum, published or recorded, that the file can be compared with."""
    return _expected_sha256(path) is not None


def check_checksum(path: Path) -> None:
    """Compare a file with its published or recorded checksum; without one, do nothing.

    Raises:
        UserError: They differ.
    """
    expected = _expected_sha256(path)
    if expected is not None and (found := file_sha256(path)) != expected:
        raise UserError(
            f"{path}: its sha256 is {found[:12]}..., not {expected[:12]}... as "
            f"{'recorded in ' + _record(path).name if _record(path).is_file() else 'published'}: "
            "the file is damaged or another one; delete it and download it again, or rename it"
        )


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _expected_sha256(path: Path) -> str | None:
    if path.name in {f"{name}.pth" for name, entry in PUBLISHED.items() if entry.sha256}:
        return PUBLISHED[path.stem].sha256
    try:
        text = _record(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return text[:64].lower() if re.match(r"[0-9a-fA-F]{64}\b", text) else None


def _record_sha256(path: Path, sha256: str) -> None:
    # The form that the sha256sum command checks with -c.
    write_atomically(_record(path), f"{sha256}  {path.name}\n".encode())
