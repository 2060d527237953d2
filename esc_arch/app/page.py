"""What the page shows, and what happens when somebody drops a picture."""

import functools
import os
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from esc_arch.app.visitors import Visitors
from esc_arch.errors import UserError, printable
from esc_arch.inference.load import load
from esc_arch.inference.picture_files import read_picture
from esc_arch.inference.upscaler import Upscaler
from esc_arch.inference.work import Job, Settings, run_job

# What the browser shows of a result; the file has all of it.
_LARGEST_SHOWN = 2048


@dataclass(frozen=True)
class Offer:
    """What visitors may do.

    Attributes:
        models: Checkpoints by the names that the page shows, and their scales.
        device: As for `esc_arch.load`.
        dtype: As for `esc_arch.load`.
        megapixels: Of the largest picture.
        megabytes: Of the largest file.
        waiting: Visitors in the queue; more are told to come again.
    """

    models: dict[str, int]
    device: str | None = None
    dtype: str | None = None
    megapixels: int = 16
    megabytes: int = 32
    waiting: int = 20


def build_page(offer: Offer, visitors: Visitors) -> gr.Blocks:
    """The page; nothing is loaded from elsewhere."""

    @functools.lru_cache(2)
    def upscaler(name: str) -> Upscaler:
        return load(name, offer.device, offer.dtype)

    scales = sorted(set(offer.models.values()))

    def of_scale(scale: int) -> list[str]:
        return [name for name, own in offer.models.items() if own == scale]

    def choose(scale: int) -> Any:
        return gr.Dropdown(choices=of_scale(scale), value=of_scale(scale)[0])

    def upscale(
        upload: str | None, model: str, request: gr.Request, progress: gr.Progress = _PROGRESS
    ) -> tuple[Any, Any, str]:
        own = visitors.folder(request.cookies)
        if own is None:
            return None, None, "This page needs cookies, which keep visitors apart: allow them."
        if upload is None:
            return None, None, "Choose a picture first."
        if model not in offer.models:
            return None, None, f"{printable(model)}: no such model here."
        source = Path(upload).resolve()
        folder = source.parent
        if own not in folder.parents:
            return None, None, "Choose a picture of yours: this one was not uploaded by you."
        try:
            return _upscale(upscaler(model), source, offer.megapixels, progress)
        except UserError as error:
            # Not where it lies here, which is nobody's business.
            return None, None, str(error).replace(f"{folder}{os.sep}", "")
        except OSError as error:
            return None, None, f"{printable(source.name)}: {error.strerror or error}"
        finally:
            source.unlink(missing_ok=True)

    with gr.Blocks(title="ESC for BasicSR", analytics_enabled=False) as page:
        gr.Markdown("# Upscale a picture")
        with gr.Row():
            with gr.Column(scale=1):
                upload = gr.File(
                    label=f"PNG, JPEG, WebP, TIFF or BMP; at most {offer.megapixels} megapixels "
                    f"and {offer.megabytes} MB",
                    elem_id="upload",
                )
                scale = gr.Radio(
                    [(f"{one} times", one) for one in scales],
                    value=scales[0],
                    label="Larger by",
                    elem_id="scale",
                )
                model = gr.Dropdown(
                    of_scale(scales[0]),
                    value=of_scale(scales[0])[0],
                    label="Model",
                    elem_id="model",
                )
                button = gr.Button("Upscale", variant="primary", elem_id="go")
                message = gr.Textbox(label="What happened", interactive=False, elem_id="message")
                download = gr.DownloadButton("Download", elem_id="download")
            with gr.Column(scale=2):
                slider = gr.ImageSlider(
                    label="Before and after", type="filepath", interactive=False, elem_id="slider"
                )
        scale.change(choose, scale, model, api_visibility="private")
        button.click(
            upscale,
            [upload, model],
            [slider, download, message],
            concurrency_limit=1,
            api_visibility="private",
        ).then(lambda: None, None, upload, api_visibility="private")
    page.queue(max_size=offer.waiting)
    return page


_PROGRESS = gr.Progress()


def _upscale(
    upscaler: Upscaler, source: Path, megapixels: int, progress: gr.Progress
) -> tuple[tuple[str, str], str, str]:
    target = source.with_name(f"{source.stem or 'picture'}_x{upscaler.scale}.png")

    def watch(tiles: Iterable) -> Iterator:
        tiles = list(tiles)
        for number, tile in enumerate(tiles):
            progress((number, len(tiles)), desc="tiles")
            yield tile

    settings = Settings(largest=megapixels)
    result = run_job(Job(source, target), upscaler, settings, watch)
    height, width, _ = result.shape
    shown = min(1.0, _LARGEST_SHOWN / max(height, width))
    size = (max(1, round(width * shown)), max(1, round(height * shown)))
    pair = []
    for name, file in (("before", source), ("after", target)):
        preview = target.with_name(f"{name}-{secrets.token_hex(4)}.png")
        _shown(read_picture(file).pixels).resize(size, Image.Resampling.BICUBIC).save(preview)
        pair.append(str(preview))
    lines = [f"{target.name}: {width} x {height} pixels", *result.notes]
    text = "\n".join(lines).replace(f"{source.parent}{os.sep}", "")
    return (pair[0], pair[1]), str(target), text


def _shown(pixels: np.ndarray) -> Image.Image:
    """8 bits, as Pillow has them."""
    if pixels.dtype == np.uint16:
        pixels = (pixels / 257).round().astype(np.uint8)
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
