"""What libvips does not tell or read of TIFF: what its pages are, tiles, planes, and Lab.

libvips gives black for a tile that it cannot read, and says nothing of it; strips it refuses. So
each column of tiles is shown to it as a picture of strips, and each separate plane as a grey one.
"""

from pathlib import Path
from typing import Any

from esc_arch.errors import UserError, printable
from esc_arch.inference import tiff_fields as fields
from esc_arch.inference.tiff_fields import Directory, View

SAVE_AS = "save it as PNG or TIFF with 8 or 16 bits a value"
_ASSOCIATED_ALPHA = 1
_CMYK_INKS = 1
_SEPARATE = 2
_REDUCED, _MASK = 1, 4
_WHITE, _GREY, _RGB, _PALETTE, _CMYK, _YCBCR, _CIELAB, _ICCLAB = 0, 1, 2, 3, 5, 6, 8, 9
_SENSOR = {32803: "a colour filter array", 34892: "linear values of its sensor"}
_LAB = (_CIELAB, _ICCLAB)
# Kind of colours -> how many channels they have at least; of other kinds, what they are.
_CHANNELS = {_WHITE: 1, _GREY: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3, _CIELAB: 3, _ICCLAB: 3}
_COLOURS = {4: "a mask", 10: "ITU L*a*b*", 32844: "LogL", 32845: "LogLuv"}
_SIGNED, _FLOAT, _COMPLEX = 2, 3, (5, 6)
_NUMBERS = {_SIGNED: "signed numbers", _FLOAT: "floats"} | dict.fromkeys(
    _COMPLEX, "complex numbers"
)
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
    if (fault := _fault(page)) is not None:
        raise UserError(f"{printable(path)}: {fault}")
    changed: dict[int, Any] = {}
    if not 1 <= page.first(fields.ORIENTATION, 1) <= 8:
        changed[fields.ORIENTATION] = None
    if not 1 <= page.first(fields.RESOLUTION_UNIT, 2) <= 3:
        changed[fields.RESOLUTION_UNIT] = None
    colours = page.first(fields.PHOTOMETRIC, _GREY)
    lab = colours in _LAB
    separate = page.first(fields.PLANES, 1) == _SEPARATE and page.first(fields.SAMPLES, 1) > 1
    tiled = fields.TILE_OFFSETS in page.values
    inverted = colours == _WHITE and page.first(fields.FORMAT, 1) == _FLOAT
    if not (changed or lab or separate or tiled or inverted):
        return None
    if not page.form.big and path.stat().st_size > fields.FARTHEST:
        raise UserError(f"{printable(path)}: too large for its kind of TIFF; save it as BigTIFF")
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


def _fault(page: Directory) -> str | None:
    """Why a page cannot be read right, if it cannot."""
    if not page.fields:
        return "damaged, or not a picture: a page says nothing of itself"
    if any(0 in page.values.get(tag, ()) for tag in (fields.STRIP_OFFSETS, fields.TILE_OFFSETS)):
        return "damaged, or not a picture: parts of it are missing"
    colours, samples = page.first(fields.PHOTOMETRIC, _GREY), page.first(fields.SAMPLES, 1)
    bits, form = page.values.get(fields.BITS, (1,)), page.first(fields.FORMAT, 1)
    reduced = page.first(fields.SUB_FILE_TYPE) & _REDUCED and fields.SUB_DIRECTORIES in page.fields
    if colours in _SENSOR or fields.DNG_VERSION in page.fields or reduced:
        what = _SENSOR.get(colours, "a preview and more")
        return f"a camera's raw data ({what}); develop it first, and save it as PNG or TIFF"
    if colours not in _CHANNELS:
        return f"its colours are {_COLOURS.get(colours, f'of kind {colours}')}; save it as RGB"
    if samples < _CHANNELS[colours]:
        return f"damaged, or not a picture: has {samples} of its {_CHANNELS[colours]} channels"
    if colours == _CMYK and page.first(fields.INKS, _CMYK_INKS) != _CMYK_INKS:
        return "its colours are inks other than CMYK; save it as RGB"
    if len(set(bits)) > 1:
        return f"its channels have {', '.join(map(str, bits[:5]))} bits a value; {SAVE_AS}"
    if bits[0] > (32 if form == _FLOAT else 16) or form in (_SIGNED, *_COMPLEX):
        if form != _SIGNED or bits[0] > 16 or colours not in _LAB:
            return (
                f"its values are {bits[0]}-bit {_NUMBERS.get(form, 'unsigned numbers')}; {SAVE_AS}"
            )
    if bits[0] not in (1, 2, 4, 8, 16, 32) or bits[0] < 8 and samples > 1:
        many = f"{samples} channels of " if samples > 1 else ""
        return f"has {many}{bits[0]} bits a value; {SAVE_AS}"
    if colours == _PALETTE and samples > 1:
        return "has a palette with transparency; save it as RGB"
    if colours == _PALETTE and len(page.values.get(fields.PALETTE, ())) != 3 << bits[0]:
        return "damaged, or not a picture: its palette is missing, or some of it"
    if form == _FLOAT and colours not in (_WHITE, _GREY, _RGB):
        return f"its values are floats that are neither grey nor RGB; {SAVE_AS}"
    compression = page.first(fields.COMPRESSION, 1)
    separate = page.first(fields.PLANES, 1) == _SEPARATE
    # What is no JPEG libvips takes for RGB.
    if colours == _YCBCR and (compression not in _JPEG or separate):
        return f"its colours are YCbCr of a kind that cannot be read; {SAVE_AS}"
    if compression in _COMPRESSIONS:
        what = _COMPRESSIONS[compression]
        return f"compressed by {what}, which cannot be read here; save it with LZW or Deflate"
    return None


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
        tags = {fields.STRIP_OFFSETS, fields.STRIP_BYTES, fields.TILE_OFFSETS, fields.TILE_BYTES}
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
            for tag in tags & page.values.keys():
                each = len(page.values[tag]) // samples
                lists[tag] = page.values[tag][plane * each :][:each]
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
        columns, rows = -(-width // max(across, 1)), -(-height // max(down, 1))
        if min(width, height, across, down) < 1 or min(len(offsets), len(sizes)) < columns * rows:
            raise UserError(f"{printable(self.path)}: damaged, or not a picture: tiles are missing")
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
    # Signed values as the same bits without sign.
    image = (image.cast("int") & (full - 1)).cast("float")
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
