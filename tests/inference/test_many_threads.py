"""What is told of pictures that several threads read at once."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from esc_arch.errors import UserError
from esc_arch.inference.picture_files import open_picture


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Pictures cut in the middle, of which each is refused for its own reason, and a good one."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    contents = {}
    for kind in ("png", "jpeg", "webp", "tiff"):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        whole = file.getvalue()
        contents[f"cut.{kind}"] = whole[: len(whole) * 6 // 10]
        if kind == "jpeg":
            # libvips warns of this one: two bytes before the pixels are too many.
            contents["good.jpeg"] = whole.replace(b"\xff\xda", b"\0\0\xff\xda", 1)
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return [tmp_path / name for name in contents]


def _told(file: Path, rows: int) -> str:
    try:
        source = open_picture(file)
        read = source.open_rows()
        for _ in range(0, source.height, rows):
            read(rows)
    except UserError as error:
        return str(error)
    return "good"


@pytest.mark.parametrize("rows", [300, 20], ids=["whole", "in rows"])
def test_each_file_has_its_own_reason_when_threads_read_others(files: list[Path], rows: int):
    alone = {file: _told(file, rows) for file in files}
    assert [file.name for file in files if alone[file] == "good"] == ["good.jpeg"]
    assert len(set(alone.values())) == len(files)
    many = files * 12
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda file: _told(file, rows), many))
    assert found == [alone[file] for file in many]
