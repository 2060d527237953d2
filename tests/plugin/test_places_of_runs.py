"""Where runs may write: `path: experiments_root` and `name` lead nowhere else."""

from pathlib import Path

import pytest
from runs_in_process import (
    WriteOptions,
    folder,  # noqa: F401  (each test starts in it)
    refused,
)


def test_a_place_for_experiments_that_is_a_file_is_named(
    write_train_options: WriteOptions, tmp_path: Path
):
    (tmp_path / "taken").touch()
    path = write_train_options({"path:experiments_root": "taken"})
    assert "taken/tiny: cannot be made: Not a directory" in refused(path)


@pytest.mark.parametrize("value", [["a"], {"a": "b"}, 5, True, "a\nb", " "])
def test_a_place_for_experiments_is_a_path(value: object, write_train_options: WriteOptions):
    said = refused(write_train_options({"path:experiments_root": value}))
    assert "path:experiments_root: must be the path of a folder, without control" in said


def test_a_folder_that_no_run_has_made_is_not_renamed(
    write_train_options: WriteOptions, tmp_path: Path
):
    (tmp_path / "home" / ".keys").mkdir(parents=True)
    (tmp_path / "home" / ".keys" / "key").touch()
    path = write_train_options({"path:experiments_root": "home", "name": ".keys"})
    assert "home/.keys is there and no folder of a run (key is in it)" in refused(path)
    assert [path.name for path in (tmp_path / "home").iterdir()] == [".keys"]
    assert (tmp_path / "home" / ".keys" / "key").exists()
