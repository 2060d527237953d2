import json
import shutil
import subprocess
import sys

import cv2
import lmdb
import numpy as np
import pytest
from basicsr.data.data_util import paths_from_lmdb
from basicsr.utils import FileClient, imfrombytes

from esc_arch.errors import UserError
from esc_arch.prepare.images import encode_png
from esc_arch.prepare.lmdb_writer import Fingerprint, LmdbWriter

RECIPE = {"scale": 1, "crop_size": 24}


def pictures(count: int, side: int = 24) -> list[np.ndarray]:
    generator = np.random.default_rng(count)
    return [generator.integers(0, 256, (side, side + 2, 3), np.uint8) for _ in range(count)]


def encoded(images: list[np.ndarray]) -> list[bytes]:
    return [encode_png(image) for image in images]


def contents(path) -> dict[bytes, bytes]:
    with lmdb.open(str(path), readonly=True, lock=False) as environment:
        with environment.begin() as transaction:
            return dict(transaction.cursor())


def test_basicsr_reads_what_was_written(tmp_path):
    path = tmp_path / "set.lmdb"
    first, second = pictures(2), pictures(1)
    with LmdbWriter(path, RECIPE) as writer:
        writer.put("b", Fingerprint("2", "sum"), encoded(second))
        writer.put("a", Fingerprint("1", "sum"), encoded(first))
        assert not path.exists()
        writer.finish({"a": "1", "b": "2"})
    lines = (path / "meta_info.txt").read_text().splitlines()
    assert lines == [f"{key}.png (24,26,3) 1" for key in ("a_s001", "a_s002", "b_s001")]
    assert paths_from_lmdb(str(path)) == ["a_s001", "a_s002", "b_s001"]
    client = FileClient("lmdb", db_paths=[str(path)], client_keys=["gt"])
    for key, image in zip(paths_from_lmdb(str(path)), first + second, strict=True):
        assert np.array_equal(imfrombytes(client.get(key, "gt")), image)


def test_an_unfinished_lmdb_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "set.lmdb"
    with LmdbWriter(path, RECIPE) as writer:
        writer.put("a", Fingerprint("1", "sum"), encoded(pictures(2)))
    with LmdbWriter(path, RECIPE) as writer:
        assert writer.has("a", "1")
        assert not writer.has("a", "other")
        assert not writer.has("b", "1")
        writer.put("b", Fingerprint("1", "sum"), encoded(pictures(1)), note="grey")
        writer.finish({"a": "1", "b": "1"})
        assert writer.counts() == {"sources": 2, "sub-images": 3, "grey": 1}
    with LmdbWriter(path, RECIPE) as writer:
        assert writer.complete
        assert writer.has("b", "1")
        assert writer.counts() == {"sources": 2, "sub-images": 3, "grey": 1}


def test_a_source_whose_record_was_torn_is_made_again(tmp_path):
    path = tmp_path / "set.lmdb"
    with LmdbWriter(path, RECIPE) as writer:
        writer.put("a", Fingerprint("1", "sum"), encoded(pictures(2)))
        writer.put("bee", Fingerprint("22", "sum"), encoded(pictures(1)))
    record = tmp_path / "set.lmdb.partial" / "sources.tsv"
    record.write_text(record.read_text()[:-4])
    with LmdbWriter(path, RECIPE) as writer:
        assert writer.has("a", "1")
        assert not writer.has("bee", "22")
        writer.put("bee", Fingerprint("22", "sum"), encoded(pictures(1)))
        writer.finish({"a": "1", "bee": "22"})
    assert sorted(contents(path)) == [b"a_s001", b"a_s002", b"bee_s001"]


def test_a_changed_or_removed_source_leaves_none_of_its_sub_images(tmp_path):
    path = tmp_path / "set.lmdb"
    with LmdbWriter(path, RECIPE) as writer:
        writer.put("a", Fingerprint("1", "sum"), encoded(pictures(3)))
        writer.put("b", Fingerprint("1", "sum"), encoded(pictures(1)))
    new = encoded(pictures(2))
    with LmdbWriter(path, RECIPE) as writer:
        writer.put("a", Fingerprint("2", "sum"), new)
        writer.finish({"a": "2"})
    assert contents(path) == {b"a_s001": new[0], b"a_s002": new[1]}


@pytest.mark.parametrize("finished", [False, True])
def test_a_new_stamp_of_the_same_files_is_remembered(tmp_path, finished):
    with LmdbWriter(tmp_path / "set.lmdb", RECIPE) as writer:
        writer.put("a", Fingerprint("1", "sum"), encoded(pictures(1)))
        if finished:
            writer.finish({"a": "1"})
    with LmdbWriter(tmp_path / "set.lmdb", RECIPE) as writer:
        assert writer.checksum("a") == "sum"
        assert writer.checksum("b") is None
        writer.restamp({"a": "2"})
    with LmdbWriter(tmp_path / "set.lmdb", RECIPE) as writer:
        assert writer.has("a", "2")
        assert not writer.has("a", "1")
        assert writer.checksum("a") == "sum"


def test_a_record_that_cannot_be_read_is_an_error_of_one_line(tmp_path):
    with LmdbWriter(tmp_path / "set.lmdb", RECIPE) as writer:
        writer.put("a", Fingerprint("1", "sum"), encoded(pictures(1)))
        writer.finish({"a": "1"})
    (tmp_path / "set.lmdb" / "sources.tsv").write_text("a\t1\t1\t\n")
    with pytest.raises(UserError, match="sources.tsv: not as this version .*; remove") as error:
        LmdbWriter(tmp_path / "set.lmdb", RECIPE)
    assert "\n" not in str(error.value)


def test_sub_images_of_one_source_have_one_shape(tmp_path):
    with LmdbWriter(tmp_path / "set.lmdb", RECIPE) as writer:
        images = encoded(pictures(1) + pictures(1, side=30))
        with pytest.raises(ValueError, match="a: sub-images of several shapes"):
            writer.put("a", Fingerprint("1", "sum"), images)


def test_it_cannot_be_finished_before_every_source_is_in(tmp_path):
    with LmdbWriter(tmp_path / "set.lmdb", RECIPE) as writer:
        writer.put("a", Fingerprint("1", "sum"), encoded(pictures(1)))
        with pytest.raises(RuntimeError, match="1 sources missing, such as b"):
            writer.finish({"a": "1", "b": "1"})
    assert not (tmp_path / "set.lmdb").exists()


@pytest.mark.parametrize("finished", [False, True])
def test_other_settings_are_not_mixed_in(tmp_path, finished):
    with LmdbWriter(tmp_path / "set.lmdb", RECIPE) as writer:
        writer.put("a", Fingerprint("1", "sum"), encoded(pictures(1)))
        if finished:
            writer.finish({"a": "1"})
    with pytest.raises(UserError, match="made with crop_size 24, now 48 is asked for"):
        LmdbWriter(tmp_path / "set.lmdb", {**RECIPE, "crop_size": 48})


def test_a_beginning_without_any_source_does_not_hold_to_its_settings(tmp_path):
    with LmdbWriter(tmp_path / "set.lmdb", RECIPE):
        pass
    other = {**RECIPE, "crop_size": 48}
    with LmdbWriter(tmp_path / "set.lmdb", other) as writer:
        writer.put("a", Fingerprint("1", "sum"), encoded(pictures(1)))
        writer.finish({"a": "1"})
    assert json.loads((tmp_path / "set.lmdb" / "recipe.json").read_text()) == other


def test_sub_images_whose_line_was_never_written_leave_nothing(tmp_path):
    path = tmp_path / "set.lmdb"
    with LmdbWriter(path, RECIPE) as writer:
        writer.put("a", Fingerprint("1", "sum"), encoded(pictures(3)))
        writer.put("b", Fingerprint("1", "sum"), encoded(pictures(1)))
    record = tmp_path / "set.lmdb.partial" / "sources.tsv"
    record.write_text("".join(record.read_text().splitlines(keepends=True)[1:]))
    new = encoded(pictures(2))
    with LmdbWriter(path, RECIPE) as writer:
        writer.put("a", Fingerprint("2", "new"), new)
        writer.finish({"a": "2", "b": "1"})
    assert sorted(contents(path)) == [b"a_s001", b"a_s002", b"b_s001"]


def test_an_unfinished_lmdb_of_another_tool_is_left_alone(tmp_path):
    partial = tmp_path / "set.lmdb.partial"
    partial.mkdir()
    (partial / "data.mdb").write_bytes(b"theirs")
    with pytest.raises(UserError, match="was not made by this tool"):
        LmdbWriter(tmp_path / "set.lmdb", RECIPE)
    assert (partial / "data.mdb").read_bytes() == b"theirs"


def test_an_lmdb_of_another_tool_is_left_alone(tmp_path):
    (tmp_path / "set.lmdb").mkdir()
    with pytest.raises(UserError, match="was not made by this tool"):
        LmdbWriter(tmp_path / "set.lmdb", RECIPE)
    assert list((tmp_path / "set.lmdb").iterdir()) == []


def test_a_run_killed_before_it_wrote_anything_does_not_stand_in_the_way(tmp_path):
    partial = tmp_path / "set.lmdb.partial"
    partial.mkdir()
    code = """
import os
from esc_arch.whole_files import replacing
with replacing("recipe.json"):
    os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code], cwd=partial)
    (left_over,) = partial.iterdir()
    assert left_over.name != "recipe.json"
    with LmdbWriter(tmp_path / "set.lmdb", RECIPE) as writer:
        writer.put("a", Fingerprint("1", "sum"), encoded(pictures(1)))
        writer.finish({"a": "1"})
    names = {path.name for path in (tmp_path / "set.lmdb").iterdir()}
    assert names == {"data.mdb", "lock.mdb", "meta_info.txt", "recipe.json", "sources.tsv"}
    assert json.loads((tmp_path / "set.lmdb" / "recipe.json").read_text()) == RECIPE


@pytest.mark.parametrize("name", ["", "data.mdb", "lock.mdb", "sources.tsv"])
def test_nothing_is_written_through_a_link_in_an_unfinished_lmdb(tmp_path, name):
    theirs = tmp_path / "theirs"
    partial = tmp_path / "set.lmdb.partial"
    if name:
        partial.mkdir()
        theirs.write_bytes(b"")
    else:
        theirs.mkdir()
    (partial / name).symlink_to(theirs)
    with pytest.raises(UserError, match="is a link, which is not written through; remove it"):
        LmdbWriter(tmp_path / "set.lmdb", RECIPE)
    assert theirs.stat().st_size == 0 or list(theirs.iterdir()) == []


def test_the_map_grows_with_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr("esc_arch.prepare.lmdb_writer._FIRST_MAP_SIZE", 1 << 15)
    images = encoded(pictures(4, side=100))
    with LmdbWriter(tmp_path / "set.lmdb", RECIPE) as writer:
        writer.put("a", Fingerprint("1", "sum"), images)
        writer.finish({"a": "1"})
    assert sum(map(len, images)) > 1 << 16
    assert list(contents(tmp_path / "set.lmdb").values()) == images


def test_a_folder_that_cannot_be_made_is_an_error_of_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Not a directory; nothing already made is lost"):
        LmdbWriter(tmp_path / "file" / "set.lmdb", RECIPE)


def test_its_name_must_end_as_basicsr_wants(tmp_path):
    with pytest.raises(UserError, match="must end in .lmdb"):
        LmdbWriter(tmp_path / "set", RECIPE)


def test_grey_pictures_are_recorded_with_their_channels(tmp_path):
    grey = cv2.imencode(".png", pictures(1)[0][:, :, 0])[1].tobytes()
    with LmdbWriter(tmp_path / "set.lmdb", RECIPE) as writer:
        writer.put("a", Fingerprint("1", "sum"), [grey])
        writer.finish({"a": "1"})
    assert (tmp_path / "set.lmdb" / "meta_info.txt").read_text() == "a_s001.png (24,26,1) 1\n"


GO_ON = """
import sys
from pathlib import Path
from esc_arch.errors import UserError
from esc_arch.prepare.lmdb_writer import LmdbWriter

for folder in map(Path, sys.argv[1:]):
    try:
        with LmdbWriter(folder, {"scale": 1, "crop_size": 24}) as writer:
            # Leaves out the first, and so goes through all pages.
            writer.finish({f"{number:03}": "1" for number in range(1, 12)})
        print("done")
    except UserError as error:
        print(error)
"""


def test_an_unfinished_lmdb_that_was_cut_is_named(tmp_path):
    with LmdbWriter(tmp_path / "whole.lmdb", RECIPE) as writer:
        for number in range(12):
            writer.put(f"{number:03}", Fingerprint("1", "sum"), encoded(pictures(2)))
    folders = [tmp_path / f"cut_{percent}.lmdb" for percent in range(10, 100, 10)]
    for folder, percent in zip(folders, range(10, 100, 10), strict=True):
        partial = folder.with_suffix(".lmdb.partial")
        shutil.copytree(tmp_path / "whole.lmdb.partial", partial)
        data = partial / "data.mdb"
        data.write_bytes(data.read_bytes()[: data.stat().st_size * percent // 100])
    command = [sys.executable, "-c", GO_ON, *map(str, folders)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, (result.returncode, result.stderr[-2000:])
    told = f"{folders[0]}.partial: damaged: reading it ends a process by SIG"
    assert result.stdout.splitlines()[0].startswith(told)
    assert len(result.stdout.splitlines()) == len(folders)
