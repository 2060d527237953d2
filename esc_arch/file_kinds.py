"""What a file is, by its content: for what reads it, and for the line that says it cannot."""

import codecs

from esc_arch.errors import printable

HEAD = 1024
"""Bytes from the start of a file that tell."""

_STARTS = {
    "a PNG": (b"\x89PNG\r\n\x1a\n",),
    "a PNG that was damaged when it was sent as text": (b"\x89PNG",),
    "a JPEG": (b"\xff\xd8\xff",),
    "a TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "a GIF": (b"GIF8",),
    "a JPEG XL": (b"\xff\x0a", b"\0\0\0\x0cJXL "),
    "a JPEG 2000": (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  "),
    "a JPEG XR": (b"II\xbc\x01",),
    "a Photoshop file": (b"8BPS",),
    "a GIMP file": (b"gimp xcf",),
    "a PDF": (b"%PDF",),
    "PostScript": (b"%!PS",),
    "an OpenEXR": (b"v/1\x01",),
    "a Radiance HDR": (b"#?RADIANCE", b"#?RGBE"),
    "a DDS": (b"DDS ",),
    "a QOI": (b"qoif",),
    "a FITS": (b"SIMPLE  =",),
    "a PCX": (b"\x0a\x05\x01",),
    "an icon": (b"\0\0\1\0", b"icns"),
    "a camera's raw data": (b"FUJIFILMCCD", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FOVb"),
    "a film": (b"\x1aE\xdf\xa3",),
    "a zip": (b"PK\3\4",),
    "a RAR archive": (b"Rar!",),
    "a 7z archive": (b"7z\xbc\xaf",),
    "compressed by gzip": (b"\x1f\x8b",),
    "compressed by bzip2": (b"BZh",),
    "compressed by xz": (b"\xfd7zXZ",),
    "compressed by Zstandard": (b"\x28\xb5\x2f\xfd",),
    "an array of NumPy": (b"\x93NUMPY",),
    "an HDF5 file, such as Keras writes": (b"\x89HDF",),
    "a GGUF file": (b"GGUF",),
    "a program": (b"\x7fELF", b"MZ"),
    "what macOS keeps beside a file": (b"\0\5\x16\7",),
}
_NETPBM = tuple(f"P{letter}{end}".encode() for letter in "1234567fF" for end in "\n\r\t ")
_BRANDS = {
    "an AVIF": (b"avif", b"avis"),
    "an HEIC": (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"),
    "a camera's raw data": (b"crx ",),
}
_RIFF = {b"WEBP": "a WebP", b"AVI ": "a film", b"WAVE": "a sound"}
_PAGE = (
    b"<!doctype",
    b"<html",
    b"<head",
    b"<body",
    b"<script",
    b"<?xml",
    b"<h1",
    b"<!--",
    b"<title",
)


def kind_of_file(head: bytes) -> str | None:
    """Name the kind of a file by its first `HEAD` bytes; None where these tell nothing.

    Args:
        head: The bytes, fewer if there are no more.
    """
    if not head:
        return "empty"
    for name, starts in _STARTS.items():
        if head.startswith(starts):
            return name
    # As clipboards leave it, without a file's own head before the sizes of headers that there are.
    bare = head[:4] in (b"\x28\0\0\0", b"\x6c\0\0\0", b"\x7c\0\0\0")
    if head[:2] == b"BM" or bare and head[12:14] == b"\1\0":
        return "a BMP"
    if head[4:8] == b"ftyp":
        brands = {head[place : place + 4] for place in range(8, 64, 4)}
        found = (name for name, known in _BRANDS.items() if not brands.isdisjoint(known))
        return next(found, "a film")
    if head.startswith(b"RIFF"):
        return _RIFF.get(head[8:12])
    if head.startswith(_NETPBM):
        return "a netpbm picture"
    if head[257:262] == b"ustar":
        return "a tar archive"
    if head[4:8] in (b"TFL3", b"ORTM") or head[:1] == b"\x08" and head[2:3] == b"\x12":
        return "a network for TensorFlow Lite or ONNX Runtime"
    return _text_kind(head)


def _text_kind(head: bytes) -> str | None:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        head = head[: len(head) // 2 * 2].decode("utf-16", "ignore").encode()
    start = head.removeprefix(codecs.BOM_UTF8).lstrip(b" \r\n\t")
    lowered = start.lower()
    if start.startswith(b"version https://") and (b"git-lfs" in start or b"oid sha" in start):
        return "a Git LFS pointer (git lfs pull brings the file itself)"
    if lowered.startswith(b"<svg") or lowered.startswith(_PAGE) and b"<svg" in lowered:
        return "XML, such as SVG"
    if lowered.startswith(_PAGE):
        return "a web page (download it again)"
    try:
        # The last character may be cut.
        text = start.decode("utf-8", "strict" if len(head) < HEAD else "ignore")
    except UnicodeDecodeError:
        return None
    if not all(character.isprintable() or character in "\t\r\n" for character in text):
        return None
    if '"weight_map"' in text:
        return "an index of several files (the tensors are in those that it names)"
    return (
        "an option file" if "network_g:" in text else f"text ('{printable(text.strip()[:20])}...')"
    )
