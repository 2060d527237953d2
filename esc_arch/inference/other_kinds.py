"""What a file is that cannot be read as a picture: for the line that says so."""

_STARTS = (
    ((b"GIF8",), "a GIF"),
    ((b"\xff\x0a", b"\0\0\0\x0cJXL "), "a JPEG XL"),
    ((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  "), "a JPEG 2000"),
    ((b"II\xbc\x01",), "a JPEG XR"),
    ((b"8BPS",), "a Photoshop file"),
    ((b"%PDF",), "a PDF"),
    ((b"%!PS",), "PostScript"),
    ((b"v/1\x01",), "an OpenEXR"),
    ((b"#?RADIANCE", b"#?RGBE"), "a Radiance HDR"),
    ((b"DDS ",), "a DDS"),
    ((b"qoif",), "a QOI"),
    ((b"\0\0\1\0", b"icns"), "an icon"),
    ((b"PK\3\4",), "a zip"),
    ((b"Rar!",), "a RAR archive"),
    ((b"7z\xbc\xaf",), "a 7z archive"),
    ((b"\x1f\x8b",), "compressed by gzip"),
    ((b"version https://git-lfs",), "a Git LFS pointer (git lfs pull brings the file itself)"),
)
_BRANDS = {
    b"avif": "an AVIF",
    b"avis": "an AVIF",
    b"heic": "an HEIC",
    b"heix": "an HEIC",
    b"mif1": "an HEIC",
    b"crx ": "a camera's raw data",
}


def other_kind(head: bytes) -> str | None:
    """Name the kind of a file by its first 64 bytes; None where these tell nothing.

    Args:
        head: The bytes, fewer if there are no more.
    """
    if not head:
        return "empty"
    for starts, name in _STARTS:
        if head.startswith(starts):
            return name
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "a film")
    text = head.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    if text.startswith((b"<svg", b"<?xml")):
        return "XML, such as SVG"
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page"
    if head[:1] == b"P" and head[1:2] in b"1234567" and head[2:3].isspace():
        return "a netpbm picture"
    return None
