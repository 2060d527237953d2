"""What libvips does not tell or read of TIFF: what its pages are, tiles, planes, and Lab.

libvips gives black for a tile that it cannot read, and says nothing of it; strips it refuses. So
each column of tiles is shown to it as a picture of strips, and each separate plane as a grey one.
"""

from pathlib import Path
from typing import Any

from esc_arch.errors import UserError, printable
from esc_arch.inference import tiff_fields as fields
from esc_arch.inference.tiff_fields import Directory, View

_SAVE_AS = "save it as PNG or TIFF with 8 or 16 bits a value"
_ASSOCIATED_ALPHA = 1
_CMYK_INKS = 1
_SEPARATE = 2
_REDUCED, _MASK = 1, 4
_WHITE, _GREY, _RGB, _PALETTE, _CMYK, _YCBCR, _CIELAB, _ICCLAB = 0, 1, 2, 3, 5, 6, 8, 9
_SENSOR = {32803: "a colour filter array", 34892: "linear values of its sensor"}
_COLOURS = {10: "ITU L*a*b*", 32844: "LogL", 32845: "LogLuv"}
_COMPLEX = (5, 6)
_FLOAT = 3
_SIGNED = 2
# Leaves room for a directory behind the file within 32 bits.
_LARGEST = (1 << 32) - (1 << 28)
_JPEG = (6, 7)
_COMPRESSIONS = {
    34661: "JBIG",
    34712: "JPEG 2000",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34887: "LERC",
    34892: "lossy JPEG of DNG",
    34925: "LZMA",
    34933: "PNG",
    34934: "JPEG XR",
    50000: "Zstandard",
    50002: "JPEG XL",
    52546: "JPEG XL",
}


def full_pages(path: Path, pages: int) -> list[int]:
    """Those pages of a TIFF that are no smaller versions (thumbnails) and no masks of others.

    Args:
        path: The file.
        pages: How many it has.
    """
    try:
        kinds = [page.first(fields.SUB_FILE_TYPE) for page in fields.directories(path)[:pages]]
    except (OSError, ValueError):  # Without knowing more, every page counts.
        return list(range(pages))
    return [n for n, kind in enumerate(kinds) if not kind & (_REDUCED | _MASK)] or [0]


def load_tiff(vips: Any, path: Path, options: dict[str, Any], keep: list[Any]) -> Any | None:
    """A page of which libvips alone would make something else.

    Args:
        vips: The library.
        path: The file.
        options: For its loader.
        keep: Takes what must live as long as the image.

    Returns:
        The image; None if libvips itself reads it right, or tells what is wrong.

    Raises:
        UserError: It is of a kind that cannot be read.
    """
    number = options.get("page", 0)
    try:
        pages = fields.directories(path)
        page = pages[number]
    except (OSError, ValueError, IndexError):
        return None
    _refuse(printable(path), page)
    changed: dict[int, Any] = {}
    if not 1 <= page.first(fields.ORIENTATION, 1) <= 8:
        changed[fields.ORIENTATION] = None
    if not 1 <= page.first(fields.RESOLUTION_UNIT, 2) <= 3:
        changed[fields.RESOLUTION_UNIT] = None
    colours = page.first(fields.PHOTOMETRIC, _GREY)
    lab = colours in (_CIELAB, _ICCLAB)
    separate = page.first(fields.PLANES, 1) == _SEPARATE and page.first(fields.SAMPLES, 1) > 1
    tiled = fields.TILE_OFFSETS in page.values
    inverted = colours == _WHITE and page.first(fields.FORMAT, 1) == _FLOAT
    if not (changed or lab or separate or tiled or inverted):
        return None
    _check_whole(path, page)
    if lab:
        changed[fields.PHOTOMETRIC] = (_RGB,)
    opened = _Opened(vips, path, page, {k: v for k, v in options.items() if k != "page"}, keep)
    image = opened.planes(changed) if separate else opened.tiles(changed)
    if lab:
        image = _from_lab(image, colours)
    elif inverted:
        image = _inverted(image)
    image = image.copy()
    if len(pages) > 1:
        image.set_type(vips.GValue.gint_type, "n-pages", len(pages))
    return image


def _refuse(shown: str, page: Directory) -> None:
    """Raise for a kind that cannot be read right."""
    if not page.fields:
        raise UserError(f"{shown}: damaged, or not a picture: a page says nothing of itself")
    colours = page.first(fields.PHOTOMETRIC, _GREY)
    reduced = page.first(fields.SUB_FILE_TYPE) & _REDUCED and fields.SUB_DIRECTORIES in page.fields
    if colours in _SENSOR or fields.DNG_VERSION in page.fields or reduced:
        raise UserError(
            f"{shown}: a camera's raw data ({_SENSOR.get(colours, 'a preview and more')}); develop "
            "it first, and save it as PNG or TIFF"
        )
    if colours in _COLOURS:
        raise UserError(f"{shown}: its colours are {_COLOURS[colours]}; save it as RGB")
    if colours == _CMYK and page.first(fields.INKS, _CMYK_INKS) != _CMYK_INKS:
        raise UserError(f"{shown}: its colours are inks other than CMYK; save it as RGB")
    samples = page.first(fields.SAMPLES, 1)
    bits = page.values.get(fields.BITS, (1,))
    form = page.first(fields.FORMAT, 1)
    if len(set(bits)) > 1:
        told = ", ".join(map(str, bits[:5]))
        raise UserError(f"{shown}: its channels have {told} bits a value; {_SAVE_AS}")
    if form in _COMPLEX:
        raise UserError(f"{shown}: its values are complex numbers; {_SAVE_AS}")
    if bits[0] == 64:
        kind = {_SIGNED: "signed numbers", _FLOAT: "floats"}.get(form, "unsigned numbers")
        raise UserError(f"{shown}: its values are 64-bit {kind}; {_SAVE_AS}")
    if bits[0] not in (1, 2, 4, 8, 16, 32) or bits[0] < 8 and samples > 1:
        many = f"{samples} channels of " if samples > 1 else ""
        raise UserError(f"{shown}: has {many}{bits[0]} bits a value; {_SAVE_AS}")
    if colours == _PALETTE and (bits[0] > 16 or samples > 1):
        told = "with transparency" if samples > 1 else f"of {bits[0]} bits"
        raise UserError(f"{shown}: has a palette {told}; save it as RGB")
    if form == _FLOAT and colours not in (_WHITE, _GREY, _RGB):
        raise UserError(f"{shown}: its values are floats that are neither grey nor RGB; {_SAVE_AS}")
    if colours in (_CIELAB, _ICCLAB) and (
        bits[0] not in (8, 16) or samples < 3 or form not in (1, _SIGNED, 4)
    ):
        raise UserError(f"{shown}: L*a*b* of a kind that cannot be read; save it as RGB")
    compression = page.first(fields.COMPRESSION, 1)
    # What is no JPEG libvips takes for RGB.
    if colours == _YCBCR and (
        compression not in _JPEG or page.first(fields.PLANES, 1) == _SEPARATE
    ):
        raise UserError(f"{shown}: its colours are YCbCr of a kind that cannot be read; {_SAVE_AS}")
    if compression in _COMPRESSIONS:
        raise UserError(
            f"{shown}: compressed by {_COMPRESSIONS[compression]}, which cannot be read here; save "
            "it with LZW or Deflate"
        )


def _check_whole(path: Path, page: Directory) -> None:
    """Raise where pixels are missing: a `View` puts something else where a file has been cut."""
    tiled = fields.TILE_OFFSETS in page.values
    offsets = page.values.get(fields.TILE_OFFSETS if tiled else fields.STRIP_OFFSETS, ())
    sizes = page.values.get(fields.TILE_BYTES if tiled else fields.STRIP_BYTES, ())
    size = path.stat().st_size
    reason = None
    if not offsets or len(offsets) != len(sizes) or 0 in sizes:
        reason = "parts of it are missing"
    elif any(start + count > size for start, count in zip(offsets, sizes, strict=True)):
        reason = "it is cut off"
    elif not page.form.big and size > _LARGEST:
        reason = "it is too large for this kind of TIFF"
    if reason is not None:
        raise UserError(f"{printable(path)}: damaged, or not a picture: {reason}")


class _Opened:
    """A page whose parts are opened one by one."""

    def __init__(
        self, vips: Any, path: Path, page: Directory, options: dict[str, Any], keep: list[Any]
    ) -> None:
        self.vips, self.path, self.page, self.options, self.keep = vips, path, page, options, keep

    def planes(self, changed: dict[int, Any]) -> Any:
        """All channels, of which each stands alone in the file."""
        page, samples = self.page, self.page.first(fields.SAMPLES, 1)
        colours = page.first(fields.PHOTOMETRIC, _GREY)
        tags = (fields.STRIP_OFFSETS, fields.STRIP_BYTES, fields.TILE_OFFSETS, fields.TILE_BYTES)
        single = {
            **changed,
            fields.SAMPLES: (1,),
            fields.PLANES: (1,),
            fields.PHOTOMETRIC: (_GREY,),
            fields.EXTRA: None,
            fields.BITS: (page.first(fields.BITS, 1),),
            fields.FORMAT: (page.first(fields.FORMAT, 1),),
        }
        parts = []
        for plane in range(samples):
            lists = {}
            for tag in tags:
                values = page.values.get(tag, ())
                each = len(values) // samples
                if values:
                    lists[tag] = values[plane * each : (plane + 1) * each]
            parts.append(self.tiles({**single, **lists}))
        if colours == _WHITE:
            parts[0] = _inverted(parts[0])
        first = parts[0]
        image = first.bandjoin(parts[1:])
        deep = first.format == "ushort"
        spaces = ("grey16", "rgb16", "cmyk") if deep else ("b-w", "srgb", "cmyk")
        kind = 0 if colours in (_WHITE, _GREY) else 2 if colours == _CMYK else 1
        image = image.copy(interpretation=spaces[kind])
        if page.values.get(fields.EXTRA, ())[:1] == (_ASSOCIATED_ALPHA,):
            largest = {"uchar": 255, "ushort": 65535}.get(image.format)
            space, values = image.interpretation, image.format
            image = image.unpremultiply(max_alpha=largest or 1)
            image = image.rint().cast(values) if largest else image
            image = image.copy(interpretation=space)
        return image

    def tiles(self, changed: dict[int, Any]) -> Any:
        """The whole of a page in tiles or strips."""
        page = self.page
        offsets = changed.get(fields.TILE_OFFSETS, page.values.get(fields.TILE_OFFSETS))
        if offsets is None:
            return self.view(changed)
        sizes = changed.get(fields.TILE_BYTES, page.values.get(fields.TILE_BYTES, ()))
        width, height = page.first(fields.WIDTH), page.first(fields.HEIGHT)
        across, down = page.first(fields.TILE_WIDTH), page.first(fields.TILE_HEIGHT)
        shown = printable(self.path)
        if min(width, height, across, down) < 1:
            raise UserError(f"{shown}: damaged, or not a picture: its size is not told")
        columns, rows = -(-width // across), -(-height // down)
        if len(offsets) < columns * rows or len(sizes) < columns * rows:
            raise UserError(f"{shown}: damaged, or not a picture: tiles are missing")
        parts = []
        for column in range(columns):
            strips = {
                fields.WIDTH: (across,),
                fields.HEIGHT: (rows * down,),
                fields.STRIP_ROWS: (down,),
                fields.STRIP_OFFSETS: offsets[column : columns * rows : columns],
                fields.STRIP_BYTES: sizes[column : columns * rows : columns],
            }
            none = dict.fromkeys(
                (fields.TILE_WIDTH, fields.TILE_HEIGHT, fields.TILE_OFFSETS, fields.TILE_BYTES)
            )
            parts.append(self.view({**changed, **none, **strips}))
        image = self.vips.Image.arrayjoin(parts, across=columns) if columns > 1 else parts[0]
        return image.crop(0, 0, width, height)

    def view(self, changed: dict[int, Any]) -> Any:
        """The page as if it said other things of itself."""
        view = View(self.path, self.page, changed)
        source = self.vips.SourceCustom()
        source.on_read(view.read)
        source.on_seek(view.seek)
        self.keep.append(source)
        return self.vips.Image.tiffload_source(source, **{"access": "sequential", **self.options})


def _inverted(image: Any) -> Any:
    """White and black exchanged in the first channel."""
    largest = {"uchar": 255, "ushort": 65535}.get(image.format, 1)
    factors = [-1] + [1] * (image.bands - 1)
    inverted = image.linear(factors, [largest] + [0] * (image.bands - 1))
    return inverted.cast(image.format).copy(interpretation=image.interpretation)


def _from_lab(image: Any, colours: int) -> Any:
    """CIE L*a*b* as floats, from its bare values of 8 or 16 bits, with what stands beside it."""
    deep = image.format in ("ushort", "short")
    full = 65536 if deep else 256
    image = image.cast("ushort" if deep else "uchar").cast("float")
    rest = image[3:] if image.bands > 3 else None
    if colours == _ICCLAB:
        white, zero = (65280, 32768) if deep else (255, 128)
        lab = image.extract_band(0, n=3).linear(
            [100 / white] + [256 / full] * 2, [0] + [-zero * 256 / full] * 2
        )
    else:
        light, signed = image[0] * (100 / (full - 1)), image.extract_band(1, n=2)
        signed = (signed >= full // 2).ifthenelse(signed - full, signed) * (256 / full)
        lab = light.bandjoin(signed)
    lab = lab if rest is None else lab.bandjoin(rest)
    lab = lab.cast("float").copy(interpretation="lab")
    lab.set("bits-per-sample", 16 if deep else 8)
    return lab
