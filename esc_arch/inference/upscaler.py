"""Upscaling the user's own pictures: reading and writing them, and running the network."""

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor, nn

from esc_arch.errors import UserError
from esc_arch.inference.tiling import global_pools, super_resolve_tiled
from esc_arch.ops.windows import pad_to_multiple
from esc_arch.prepare.images import IMAGE_SUFFIXES
from esc_arch.zoo.store import write_atomically

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
# More frames than one are a film or several pages; those of MPO (phones) belong to its first.
_FRAMES_MATTER = ("PNG", "WEBP", "TIFF")
# Beyond this the features of a picture take gigabytes, and it goes tile by tile.
LARGEST_WHOLE = 1024 * 1024
DEFAULT_TILE = 512
_EXIF_ORIENTATION = 0x0112
_TIFF_BITS = 258
# What numpy has to do for each EXIF orientation: quarter turns counterclockwise, then a mirroring.
_TURNS = {1: (0, 0), 2: (0, 1), 3: (2, 0), 4: (2, 1), 5: (3, 1), 6: (3, 0), 7: (1, 1), 8: (1, 0)}


@dataclass(frozen=True)
class Picture:
    """A picture in memory.

    Attributes:
        pixels: (H, W, C) uint8 or uint16; grey, grey with alpha, RGB or RGBA.
        icc_profile: The colour profile that the values are meant in, if the file names one.
    """

    pixels: np.ndarray
    icc_profile: bytes | None = None


def read_picture(path: Path) -> Picture:
    """Read a PNG, JPEG, WebP, TIFF or BMP, upright as its EXIF orientation says.

    Args:
        path: The file; what it holds counts, not its name.

    Raises:
        UserError: One line: missing, not a whole picture, several pictures, or neither 8 nor 16
            bits a value.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.format in _FRAMES_MATTER and getattr(image, "n_frames", 1) > 1:
                raise UserError(f"{path}: has {image.n_frames} pictures in it; one is needed")
            # Also where OpenCV decodes: it fills what a truncated file lacks, and says nothing.
            image.load()
            pixels = _decode_16_bit(content, image) if _is_16_bit(content, image) else None
            if pixels is None:
                pixels = np.asarray(_to_8_bit(path, image))
            icc_profile = image.info.get("icc_profile")
    except UnidentifiedImageError:
        raise UserError(
            f"{path}: not a picture that can be read (PNG, JPEG, WebP, TIFF or BMP, "
            "8 or 16 bits a value)"
        ) from None
    except UserError:
        raise
    except Exception as error:
        # Pillow raises a different class for each kind of damage in each format.
        raise UserError(f"{path}: damaged, or not a picture: {_one_line(error)}") from None
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    space = b"GRAY" if pixels.shape[2] < 3 else b"RGB "
    if icc_profile is not None and icc_profile[16:20] != space:
        icc_profile = None
    return Picture(np.ascontiguousarray(pixels), icc_profile)


def _is_16_bit(content: bytes, image: Image.Image) -> bool:
    # Pillow reads colour of 16 bits as 8 without saying so.
    if image.format == "PNG":
        return content[24] == 16
    if image.format == "TIFF":
        return set(image.tag_v2.get(_TIFF_BITS, (1,))) == {16}
    return False


def _decode_16_bit(content: bytes, image: Image.Image) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise ValueError(f"{image.mode} of 16 bits in {image.format} cannot be decoded")
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(
            pixels, cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
        )
    if image.format != "TIFF":  # OpenCV turns TIFF itself.
        turns, mirrored = _TURNS.get(image.getexif().get(_EXIF_ORIENTATION, 1), (0, 0))
        pixels = np.rot90(pixels, turns)
        pixels = pixels[:, ::-1] if mirrored else pixels
    return pixels


def _to_8_bit(path: Path, image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode in ("I", "F") or mode.startswith("I;"):
        raise UserError(f"{path}: its values are of kind {mode}; 8 or 16 bits are needed")
    grey = mode in ("1", "L", "LA", "La")
    alpha = image.has_transparency_data
    image = ImageOps.exif_transpose(image)
    return image.convert({(1, 0): "L", (1, 1): "LA", (0, 0): "RGB", (0, 1): "RGBA"}[grey, alpha])


def encode_png(picture: Picture) -> bytes:
    """PNG bytes of a picture, values, alpha and colour profile as they are."""
    pixels = picture.pixels
    if pixels.dtype == np.uint8:
        buffer = io.BytesIO()
        squeezed = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
        Image.fromarray(squeezed).save(buffer, "PNG", icc_profile=picture.icc_profile)
        return buffer.getvalue()
    if pixels.shape[2] >= 3:
        pixels = cv2.cvtColor(
            pixels, cv2.COLOR_RGB2BGR if pixels.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
        )
    done, content = cv2.imencode(".png", pixels)
    if not done:
        raise RuntimeError(f"OpenCV could not encode an image of shape {pixels.shape}")
    return _with_icc_profile(content.tobytes(), picture.icc_profile)


def _with_icc_profile(png: bytes, icc_profile: bytes | None) -> bytes:
    """Put a colour profile into a PNG file; OpenCV 4 cannot."""
    if icc_profile is None:
        return png
    body = b"iCCP" + b"ICC Profile\0\0" + zlib.compress(icc_profile)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    header = 8 + 25  # The signature and IHDR, which must be first.
    return png[:header] + chunk + png[header:]


@dataclass(frozen=True)
class Upscaler:
    """A network with how it is run.

    Attributes:
        network: In evaluation mode; its device and dtype are where and in what it computes.
        window_size: Multiple that whole pictures are padded to.
        tile_size: Side of tiles in LR pixels; 0 for whole pictures; None for whole ones up to
            `LARGEST_WHOLE` pixels and tiles of `DEFAULT_TILE` beyond.
        tile_pad: Margin of tiles in LR pixels; None for two windows, with which seams stay below
            1/255 on photographs (benchmarks/tiling.py).
    """

    network: nn.Module
    window_size: int
    tile_size: int | None = None
    tile_pad: int | None = None

    @torch.inference_mode()
    def upscale(self, lq: Tensor, watch: Callable[[Iterable], Iterable] = iter) -> Tensor:
        """Upscale one image as in the paper's evaluation: reflect-padded at the bottom and right.

        Args:
            lq: (1, 3, H, W) on any device, RGB in [0, 1].
            watch: Wraps the list of tiles, such as in a progress bar.

        Returns:
            (1, 3, s * H, s * W) in float32 on `lq`'s device, from 0 to 1.
        """
        weight = next(self.network.parameters())

        def run(tile: Tensor) -> Tensor:
            return self.network(tile.to(weight)).to(lq.device, torch.float32)

        height, width = lq.shape[-2:]
        padded = pad_to_multiple(lq, self.window_size)
        tile_size = self.tile_size
        if tile_size is None:
            tile_size = 0 if height * width <= LARGEST_WHOLE else DEFAULT_TILE
        if tile_size == 0:
            output = run(padded)
        else:
            tile_pad = 2 * self.window_size if self.tile_pad is None else self.tile_pad
            pools = global_pools(self.network)
            output = super_resolve_tiled(
                run, padded, tile_size, tile_pad, self.window_size, pools, watch
            )
        scale = output.shape[-1] // padded.shape[-1]
        return output[..., : height * scale, : width * scale].clamp_(0, 1)

    def upscale_picture(
        self, picture: Picture, watch: Callable[[Iterable], Iterable] = iter
    ) -> Picture:
        """Upscale a picture: its kind, depth and colour profile stay.

        Grey goes through the network as RGB of three equal channels, of which the mean is kept;
        alpha likewise, unless it is the same everywhere.

        Args:
            picture: Of any kind.
            watch: As for `upscale`.
        """
        pixels = picture.pixels
        channels = pixels.shape[2]
        colours = 3 if channels >= 3 else 1
        parts = [self._upscale_channels(pixels[:, :, :colours], watch)]
        if channels > colours:
            alpha = pixels[:, :, colours:]
            if (alpha == alpha[0, 0]).all():
                parts.append(np.full((*parts[0].shape[:2], 1), alpha[0, 0, 0]))
            else:
                parts.append(self._upscale_channels(alpha, watch))
        return replace(picture, pixels=np.concatenate(parts, axis=2))

    def _upscale_channels(
        self, pixels: np.ndarray, watch: Callable[[Iterable], Iterable]
    ) -> np.ndarray:
        largest = np.iinfo(pixels.dtype).max
        lq = torch.from_numpy(pixels.astype(np.float32) / largest).permute(2, 0, 1)[None]
        sr = self.upscale(lq.expand(-1, 3, -1, -1), watch)
        if pixels.shape[2] == 1:
            sr = sr.mean(1, keepdim=True)
        values = (sr[0].permute(1, 2, 0) * largest).round().numpy()
        return values.astype(pixels.dtype)


@dataclass(frozen=True)
class Job:
    """One picture to upscale.

    Attributes:
        source: Where it is.
        target: Where its result goes.
    """

    source: Path
    target: Path


def plan_jobs(inputs: Iterable[Path], out: Path) -> tuple[list[Job], list[str]]:
    """Decide where the result of each picture goes.

    A file's goes to `OUT/STEM.png`, or to OUT itself if that ends in .png and there is only this
    one. A folder's go below OUT as they lie in the folder, and if it is not the only input,
    below `OUT/FOLDER`. Files of other suffixes in folders, and hidden ones, are no pictures; links
    to folders are not followed; results of an earlier run, below OUT, are not taken again.

    Args:
        inputs: Files and folders.
        out: The folder for the results.

    Returns:
        The jobs, and a line for each input that cannot be done.

    Raises:
        UserError: OUT cannot be what it is.
    """
    inputs = list(inputs)
    if out.suffix.lower() == ".png" and not out.is_dir():
        if len(inputs) != 1 or inputs[0].is_dir():
            raise UserError(f"-o {out}: is a file; for several pictures a folder is needed")
        out_folder, single = out.parent, out
    elif out.suffix.lower() in IMAGE_SUFFIXES and not out.is_dir():
        raise UserError(f"-o {out}: results are PNG; use {out.with_suffix('.png')} or a folder")
    elif out.exists() and not out.is_dir():
        raise UserError(f"-o {out}: is a file; a folder is needed")
    else:
        out_folder, single = out, None

    jobs, problems = [], []
    for path in inputs:
        if path.is_dir():
            target_folder = out_folder if len(inputs) == 1 else out_folder / path.resolve().name
            found = _pictures_below(path, out_folder)
            if not found:
                problems.append(f"{path}: no pictures in this folder")
            jobs += [
                Job(file, target_folder / file.relative_to(path).with_suffix(".png"))
                for file in found
            ]
        else:
            jobs.append(Job(path, single or out_folder / f"{path.stem}.png"))
    return _without_collisions(jobs, out_folder, problems), problems


def _pictures_below(folder: Path, out_folder: Path) -> list[Path]:
    found = []
    for parent, folders, files in os.walk(folder):
        here = Path(parent)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and (here / name).resolve() != out_folder.resolve()
        )
        found += [
            here / name
            for name in sorted(files)
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES
        ]
    return found


def _without_collisions(jobs: list[Job], out_folder: Path, problems: list[str]) -> list[Job]:
    """The jobs whose targets are below OUT, and neither another's target nor anyone's source."""
    sources = {job.source.resolve() for job in jobs}
    root = out_folder.resolve()
    taken: dict[Path, Path] = {}
    kept = []
    for job in jobs:
        # A link within OUT could lead elsewhere. The last part of the path is replaced, not
        # followed.
        target = job.target.parent.resolve() / job.target.name
        if root not in target.parents:
            problems.append(f"{job.source}: its result {job.target} would lie outside {out_folder}")
        elif target in sources:
            problems.append(f"{job.source}: its result would replace the picture {job.target}")
        elif target in taken:
            problems.append(
                f"{job.source}: its result {job.target} is also that of {taken[target]}; rename one"
            )
        else:
            taken[target] = job.source
            kept.append(job)
    return kept


def run_job(
    job: Job, upscaler: Upscaler, watch: Callable[[Iterable], Iterable] = iter
) -> tuple[int, int]:
    """Upscale one picture and write the result, whole or not at all.

    Args:
        job: What to do.
        upscaler: What to do it with.
        watch: As for `Upscaler.upscale`.

    Returns:
        Width and height of the result.

    Raises:
        UserError: One line: the picture is bad, too large for the memory, or the result cannot be
            written.
    """
    picture = read_picture(job.source)
    height, width = picture.pixels.shape[:2]
    try:
        result = upscaler.upscale_picture(picture, watch)
        content = encode_png(result)
    except (torch.cuda.OutOfMemoryError, MemoryError) as error:
        raise _too_large(job, width, height) from error
    except RuntimeError as error:
        # What torch raises for the CPU's memory has no class of its own.
        if "not enough memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        raise _too_large(job, width, height) from error
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(job.target, content)
    except OSError as error:
        raise UserError(f"{job.target}: cannot be written: {error.strerror or error}") from None
    return result.pixels.shape[1], result.pixels.shape[0]


def _too_large(job: Job, width: int, height: int) -> UserError:
    return UserError(
        f"{job.source}: {width} x {height} pixels are too many for the memory at once; use --tile "
        "with fewer pixels, such as --tile 256"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
