"""What a picture carries beside its pixels, and what of it is kept in the upscaled one."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import PIL.Image

_ORIENTATION, _PIXEL_WIDTH, _PIXEL_HEIGHT, _EXIF_FOLDER = 0x0112, 0xA002, 0xA003, 0x8769
_PREFIX = b"Exif\0\0"


@dataclass(frozen=True)
class Metadata:
    """What goes along with pixels.

    Attributes:
        icc_profile: The colour profile that the values are meant in.
        colour_chunks: PNG's other ways to say it, bodies by name.
        exif: EXIF as it stands in the file, upright already.
        xmp: XMP.
        resolution: Pixels per millimetre, across and down, where the file says it.
    """

    icc_profile: bytes | None = None
    colour_chunks: dict[bytes, bytes] = field(default_factory=dict)
    exif: bytes | None = None
    xmp: bytes | None = None
    resolution: tuple[float, float] | None = None

    def of(self, channels: int) -> "Metadata":
        """Without a profile of other colours than the picture's, which has 1 to 4 channels."""
        space = b"GRAY" if channels < 3 else b"RGB "
        fits = self.icc_profile is not None and self.icc_profile[16:20] == space
        return self if fits else replace(self, icc_profile=None)

    def stripped(self) -> "Metadata":
        """Only what says which colours the values mean."""
        return replace(self, exif=None, xmp=None, resolution=None)


def upright_exif(exif: bytes | None, width: int, height: int) -> bytes | None:
    """EXIF for a picture that stands upright and has another size.

    Args:
        exif: As it stands in a file.
        width: Of the new picture.
        height: Of the new picture.

    Returns:
        The same with orientation 1, the new size where the old one stood, and no thumbnail, which
        shows the old picture; None where it cannot be understood.
    """

    def change(tags: "PIL.Image.Exif") -> bytes | None:
        if not len(tags):
            return None
        if _ORIENTATION in tags:
            tags[_ORIENTATION] = 1
        folder = tags.get_ifd(_EXIF_FOLDER)
        for tag, value in ((_PIXEL_WIDTH, width), (_PIXEL_HEIGHT, height)):
            if tag in folder:
                folder[tag] = value
        return tags.tobytes().removeprefix(_PREFIX)

    return None if exif is None else _understood(exif, change)


def orientation(exif: bytes) -> int:
    """How a picture is turned, from 1 (upright) to 8; 1 where it cannot be understood."""
    told = _understood(exif, lambda tags: tags.get(_ORIENTATION))
    return told if told in range(1, 9) else 1


def _understood(exif: bytes, use: "Callable[[PIL.Image.Exif], Any]") -> Any:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tags = Image.Exif()
            tags.load(exif if exif.startswith(_PREFIX) else _PREFIX + exif)
            return use(tags)
    except Exception:
        # Pillow raises a different class for each kind of damage; metadata never decides.
        return None
