"""An upscaler from the name or the path of a checkpoint."""

import os

import torch

from esc_arch.errors import UserError, printable
from esc_arch.inference.kinds import whole_number
from esc_arch.inference.onnx_network import load_onnx
from esc_arch.inference.replays import require_cuda
from esc_arch.inference.upscaler import Upscaler
from esc_arch.zoo.loading import build_network, read_checkpoint
from esc_arch.zoo.local import weights_of

DTYPES = ("float32", "bfloat16", "float16")


def load(
    name_or_path: str | os.PathLike | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    tile: int | None = None,
    *,
    tile_pad: int | None = None,
    scale: int | None = None,
    cuda_graphs: bool = False,
) -> Upscaler:
    """Load a checkpoint, ready to upscale.

    Args:
        name_or_path: The name of a published or shipped checkpoint, or a file, also an .onnx; None
            for the weights that came with the package.
        device: cpu, cuda, cuda:1, mps, ...; None for cuda if there is one.
        dtype: What to compute in: float32 (exact, the default), bfloat16 or float16.
        tile: Side of tiles in input pixels; 0 for whole pictures; None for tiles in large ones.
        tile_pad: Margin of tiles in input pixels; None for two windows.
        scale: How many times larger results shall be, where no checkpoint is named; of a named
            one it must be the scale.
        cuda_graphs: On a CUDA GPU, record the work on whole pictures of sizes that come again, see
            `Upscaler`.

    Raises:
        UserError: One line: which value is wrong, and what would be right.
    """
    if scale is not None:
        scale = whole_number("scale", scale, "a whole number, such as 2")
    path = weights_of(name_or_path, scale)
    if path.suffix.lower() == ".pt2":
        raise UserError(
            f"{printable(path)}: is a program of torch.export, which is not loaded here, since "
            "such files can run code; give the checkpoint or an .onnx"
        )
    if path.suffix.lower() == ".onnx":
        if cuda_graphs:
            raise UserError(f"cuda_graphs: {printable(path)} is run by ONNX Runtime, not by torch")
        upscaler = load_onnx(path, device_of(device or "cpu"), _dtype(dtype), tile, tile_pad)
    else:
        device, dtype = device_of(device), _dtype(dtype)
        if cuda_graphs:
            require_cuda("cuda_graphs", device)
        checkpoint = read_checkpoint(path, scale)
        network = build_network(checkpoint, device, dtype)
        card = checkpoint.metadata
        upscaler = Upscaler(network, checkpoint.network_g, tile, tile_pad, card, cuda_graphs)
    if scale is not None and scale != upscaler.scale:
        raise UserError(f"--scale {scale}: {path} upscales by {upscaler.scale}")
    return upscaler


def device_of(device: str | torch.device | None) -> torch.device:
    """The device of a name; without one, cuda if there is one.

    Raises:
        UserError: It cannot be used here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        try:
            found = torch.device(device)
        except (RuntimeError, TypeError):  # These name all that torch was ever built for.
            raise ValueError("it is no name of a device") from None
        # Others either hold no values (meta) or belong to backends that are not installed.
        if found.type in _devices() and torch.zeros(1, device=found).cpu().item() == 0:
            return found
        reason = f"{found.type} is none of this machine's"
    except Exception as error:  # Each backend raises classes of its own.
        reason = " ".join(str(error).split("\n")[0].split())[:200]
    here = ", ".join(_devices())
    raise UserError(f"--device {device}: cannot be used here: {reason}; there is: {here}")


def _devices() -> list[str]:
    found = ["cpu"]
    if torch.cuda.is_available():
        found += ["cuda"]
    if torch.backends.mps.is_available():
        found += ["mps"]
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        found += ["xpu"]
    return found


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise UserError(f"--dtype {dtype}: must be one of {', '.join(DTYPES)}")
    return getattr(torch, name)
