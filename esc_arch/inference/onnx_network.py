"""A model file (.onnx) in the place of a network."""

import contextlib
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esc_arch.errors import UserError, printable
from esc_arch.inference.onnx_files import open_session, reason_of
from esc_arch.inference.upscaler import Upscaler
from esc_arch.ops.windows import reflect_pad
from esc_arch.zoo.content import require_regular_file

_DTYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}
# For models of others, which do not tell: no smaller picture is needed by any network we know.
_PROBE = 64


class OnnxNetwork(nn.Module):
    """Runs a model in ONNX Runtime, as a network from (B, 3, H, W) to (B, 3, s * H, s * W).

    Args:
        path: The file.
        device: cpu or cuda.

    Attributes:
        upscaling_factor: Scale s.
        window_size: Multiple that pictures are padded to.
        shape: What the model takes, (B, 3, H, W), 0 where it takes any.
        properties: What the file says of itself.

    Raises:
        UserError: It cannot be run here, or is no model from pictures to larger ones.
    """

    def __init__(self, path: str | os.PathLike, device: torch.device) -> None:
        super().__init__()
        self._shown = shown = printable(path)
        require_regular_file(Path(path))
        self._session = open_session(os.fspath(path), _providers(device))
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        dtype = _DTYPES.get(inputs[0].type)
        if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4 or dtype is None:
            raise UserError(f"{shown}: is no model from one picture to one, of floats (B, 3, H, W)")
        self._names = inputs[0].name, outputs[0].name
        sides = [side if isinstance(side, int) else 0 for side in inputs[0].shape]
        if sides[1] not in (0, 3):
            raise UserError(f"{shown}: takes pictures of {sides[1]} channels; 3 are needed")
        self.shape = tuple(sides)
        # The dtype and device of a network are those of its parameters.
        self.placeholder = nn.Parameter(torch.zeros(1, dtype=dtype), requires_grad=False)
        self.properties = dict(self._session.get_modelmeta().custom_metadata_map)
        self.window_size = _number(self.properties, "window_size", 1)
        self.upscaling_factor = _number(self.properties, "scale", 0) or self._measured_scale(shown)

    def forward(self, x: Tensor) -> Tensor:
        """Upscale (B, 3, H, W), padded to what the model takes and cut."""
        batch, _, height, width = x.shape
        count, _, rows, columns = self.shape
        if 0 < rows < height or 0 < columns < width:
            raise UserError(
                f"the model takes pictures of {columns} x {rows} pixels, or smaller ones padded; "
                f"this one, padded to windows, has {width} x {height}"
            )
        x = reflect_pad(x, max(rows - height, 0), max(columns - width, 0))
        found = [self._run(part) for part in x.cpu().split(count or batch)]
        scale = self.upscaling_factor
        return torch.cat(found)[..., : height * scale, : width * scale]

    def _run(self, x: Tensor) -> Tensor:
        missing = max(self.shape[0] - len(x), 0)
        given = F.pad(x, (0, 0, 0, 0, 0, 0, 0, missing)).contiguous().numpy()
        found = self._computed(given)
        scale, (batch, channels, height, width) = self.upscaling_factor, given.shape
        expected = (batch, channels, height * scale, width * scale)
        if found.shape != expected:
            raise UserError(
                f"{self._shown}: makes {found.shape} of {given.shape}; by what it says of itself "
                f"that should be {expected}"
            )
        return torch.from_numpy(found[: len(x)])

    def _computed(self, given: np.ndarray) -> np.ndarray:
        try:
            (found,) = self._session.run([self._names[1]], {self._names[0]: given})
        except Exception as error:  # A class for each of its statuses.
            reason = reason_of(error)
            if "allocate" in str(error):
                raise MemoryError(reason) from error
            raise UserError(f"{self._shown}: ONNX Runtime cannot run it: {reason}") from None
        if not isinstance(found, np.ndarray) or found.dtype not in (np.float32, np.float16):
            raise UserError(f"{self._shown}: makes no floats")
        return found

    def _measured_scale(self, shown: str) -> int:
        batch, _, rows, columns = (side or _PROBE for side in self.shape)
        probe = np.zeros((batch if self.shape[0] else 1, 3, rows, columns), np.float32)
        dtype = str(self.placeholder.dtype).removeprefix("torch.")
        try:
            found = self._computed(probe.astype(dtype))
        except MemoryError as error:
            raise UserError(f"{shown}: ONNX Runtime cannot run it: {error}") from None
        scale = found.shape[-1] // columns
        if found.shape[1:] != (3, rows * scale, columns * scale) or scale == 0:
            raise UserError(f"{shown}: makes {found.shape} of {probe.shape}: no larger picture")
        return scale


def load_onnx(
    path: str | os.PathLike,
    device: torch.device,
    dtype: torch.dtype,
    tile: int | None,
    tile_pad: int | None,
) -> Upscaler:
    """An upscaler that runs a model in ONNX Runtime.

    Of a model for one shape, tiles are as large as fit it.

    Args:
        path: The file.
        device: cpu or cuda.
        dtype: What was asked for; float32, the default, leaves it to the file.
        tile: As for `Upscaler`.
        tile_pad: As for `Upscaler`.

    Raises:
        UserError: As for `OnnxNetwork`.
    """
    network = OnnxNetwork(path, device).eval()
    own = network.placeholder.dtype
    if dtype not in (torch.float32, own):
        asked, has = (str(one).removeprefix("torch.") for one in (dtype, own))
        raise UserError(f"--dtype {asked}: {printable(path)} computes in {has}; leave it out")
    sides = [side for side in network.shape[2:] if side]
    window = network.window_size
    if sides and tile is None:
        # A margin of a window if there is room for it and as much again in between.
        room = min(sides) // window * window
        tile_pad = (window if room >= 4 * window else 0) if tile_pad is None else tile_pad
        tile = max(room - 2 * tile_pad, 0)
    options = {
        "type": network.properties.get("architecture", Path(path).stem),
        "scale": network.upscaling_factor,
        "window_size": window,
    }
    return Upscaler(network, options, tile, tile_pad, network.properties)


def _providers(device: torch.device) -> list[str]:
    if device.type == "cpu":
        return ["CPUExecutionProvider"]
    with contextlib.suppress(ImportError):
        import onnxruntime

        wanted = f"{device.type.upper()}ExecutionProvider"
        if wanted in onnxruntime.get_available_providers():
            return [wanted, "CPUExecutionProvider"]
    raise UserError(
        f"--device {device}: this ONNX Runtime cannot use it; for cuda: pip install onnxruntime-gpu"
    )


def _number(properties: dict[str, str], key: str, default: int) -> int:
    text = properties.get(key, "")
    return int(text) if text.isdecimal() and 0 < int(text) <= 1024 else default
