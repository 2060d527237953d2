"""Preflight of the files that options name: option files, weights, pictures and LMDBs."""

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from option_data import write_weights
from preflight_checks import OPTIONS, WriteOptions, check, only_error

from esc_arch.plugin.preflight import check_options
from esc_arch.plugin.preflight.files import root_problem


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"name: [1, 2", "line 1: not YAML"),
        (b"- a\n- b\n", "must be a mapping of options"),
        (b"", "must be a mapping of options"),
        (b"\xff\xfe\x00", "not a text file in UTF-8"),
        (b"a: " + b"[" * 100_000, "nested too deeply"),
        (b"a: &a [*a]\n", "an alias (*name) contains itself"),
        (b"name: x\nscale: " + b"9" * 599, "line 2: a number of 599 characters"),
        (b"a: !!python/object/apply:os.system ['touch ran']\n", "Python objects"),
        (b"a: &a " + b"x" * 900_000 + b"\nb: [*a, *a, *a]\n", "more than 2000000 letters"),
        (
            b"x: &a0 [1, 1]\n"
            + b"".join(
                b"x%d: &a%d [*a%d, *a%d, *a%d]\n" % (i, i, i - 1, i - 1, i - 1)
                for i in range(1, 40)
            ),
            "more than 20000 values",
        ),
        (b"scale: " + b"9" * 599 + b".5", "line 1: a number of 601 characters"),
        (b"a: 1\nb: !!bool maybe\n", "line 2: not YAML: 'maybe' is no bool"),
        (b"a: !!int ''\n", "line 1: not YAML: '' is no int"),
        (b"a: !!float '-'\n", "line 1: not YAML: '-' is no float"),
        (b"a: !!map 5\n", "line 1: not YAML: '5' is no map"),
        (b"#" * 1_000_001, "larger than 1000000 bytes"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_files_that_are_no_option_files_get_one_line(
    content: bytes, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "wrong.yml"
    path.write_bytes(content)
    error = only_error(path)
    assert error.startswith(f"-opt {path}: ")
    assert expected in error
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "content", ["name: [1", 'name = "x"\n[train]\ntotal_iter = 5\n', "// a\n{}"]
)
def test_files_of_other_programs_are_told_what_is_read(content: str, tmp_path: Path) -> None:
    for end in ("toml", "json"):
        path = tmp_path / f"wrong.{end}"
        path.write_text(content)
        assert only_error(path).endswith("; option files are YAML, of BasicSR's form")


def test_a_missing_file_a_folder_and_a_pipe_get_one_line(tmp_path: Path) -> None:
    assert "no such option file" in only_error(tmp_path / "no.yml")
    assert "is not a file" in only_error(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "is not a file" in only_error(tmp_path / "pipe")


EDSR = {
    "type": "EDSR",
    "num_in_ch": 3,
    "num_out_ch": 3,
    "num_feat": 8,
    "num_block": 1,
    "upscale": 2,
}
TINY_ESC = {
    "type": "ESC",
    "dim": 8,
    "pdim": 4,
    "kernel_size": 5,
    "n_blocks": 1,
    "conv_blocks": 1,
    "window_size": 8,
    "num_heads": 2,
    "upscaling_factor": 2,
}


@pytest.mark.parametrize(
    "weights, path, expected",
    [
        ({}, {}, None),
        # Its last convolution is resized.
        ({"upscaling_factor": 4}, {}, None),
        (
            {"dim": 16},
            {},
            "does not fit ESC with these options: the file's are dim: 16 in place of ",
        ),
        ({"n_blocks": 2}, {}, "does not fit ESC with these options: the file's are n_blocks: 2 in"),
        ({"n_blocks": 2}, {"strict_load_g": False}, None),
    ],
)
def test_weights_of_another_network_are_found(
    weights: dict[str, Any],
    path: dict[str, Any],
    expected: str | None,
    write_test_options: WriteOptions,
    tmp_path: Path,
) -> None:
    file = tmp_path / "net_g.pth"
    write_weights(file, {**TINY_ESC, **weights})
    changes = {"network_g": TINY_ESC, "path:pretrain_network_g": str(file)}
    options = yaml.safe_load(write_test_options(changes).read_text())
    options["path"].update(path)
    (tmp_path / "test.yml").write_text(yaml.safe_dump(options))
    if expected is None:
        assert check(tmp_path / "test.yml", is_train=False) == []
    else:
        error = only_error(tmp_path / "test.yml", is_train=False)
        assert error.startswith(f"path:pretrain_network_g: {file}: {expected}")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"<html>"])
def test_weights_that_are_no_checkpoint_are_found(
    content: bytes, write_train_options: WriteOptions, tmp_path: Path
) -> None:
    file = tmp_path / "net_g.pth"
    file.write_bytes(content)
    error = only_error(write_train_options({"path:pretrain_network_g": str(file)}))
    assert error.startswith(f"path:pretrain_network_g: {file}: ")
    assert "not a checkpoint" in error


def test_training_files_are_not_tested_and_the_reverse() -> None:
    train = str(OPTIONS / "train_ESC_XL_DF2K_x2_FT.yml")
    test = str(OPTIONS / "test_ESC_XL_DF2K_x2.yml")
    assert only_error(Path(train), is_train=False) == (
        f"-opt {train}: is a training file (it has datasets:train); test with: basicsr test "
        f"-opt {test} --force_yml path:pretrain_network_g="
        "experiments/train_ESC_XL_DF2K_x2_FT/models/net_g_latest.pth"
    )
    assert only_error(OPTIONS / "test_ESC_x2.yml") == (
        f"-opt {OPTIONS / 'test_ESC_x2.yml'}: is a test file (it has datasets:test_1 and no "
        f"datasets:train); train with: basicsr train -opt {OPTIONS / 'train_ESC_x2.yml'}"
    )


def test_a_null_for_a_folder_of_pairs_is_named(write_train_options: WriteOptions) -> None:
    path = write_train_options()
    error = "datasets:val:dataroot_lq: must be a path, not None"
    assert only_error(path, ["datasets:val:dataroot_lq=~"]) == error


def test_where_some_test_sets_are_absent_the_others_are_offered(
    write_test_options: WriteOptions, tmp_path: Path
) -> None:
    write_weights(tmp_path / "net_g.pth", EDSR)
    absent = {
        "name": "Set14",
        "type": "PairedImageDataset",
        "dataroot_gt": "absent",
        "dataroot_lq": "absent",
        "io_backend": {"type": "disk"},
    }
    changes = {"path:pretrain_network_g": str(tmp_path / "net_g.pth"), "network_g": EDSR}
    path = write_test_options({**changes, "datasets:test_2": absent})
    assert check(path, is_train=False) == [
        "datasets:test_2:dataroot_gt: no such folder: absent",
        "datasets:test_2:dataroot_lq: no such folder: absent",
        "datasets: 1 of 2 cannot be read (above); to test on the others only: --datasets tiny_val",
    ]
    assert check_options(path, is_train=False, datasets=["Tiny_Val"]).errors == []
    assert check_options(path, is_train=False, datasets=["test_1"]).errors == []
    assert check_options(path, is_train=False, datasets=["tiny_val", "Set15"]).errors == [
        "--datasets Set15: not in the option file, which has tiny_val, Set14"
    ]


def test_pairs_that_do_not_match_are_named(
    write_train_options: WriteOptions, paired_data: Any, tmp_path: Path
) -> None:
    lq = tmp_path / "lq"
    lq.mkdir()
    for source in paired_data.val_lq.iterdir():
        cv2.imwrite(str(lq / source.name), cv2.imread(str(source)))
    path = write_train_options({"datasets:val:dataroot_lq": str(lq)})
    assert check(path) == []

    (lq / "odd.png").write_bytes((lq / "coffeex2.png").read_bytes())
    assert "has 3 files, but dataroot_gt has 2" in only_error(path)

    (lq / "odd.png").unlink()
    (lq / "coffeex2.png").rename(lq / "coffee.png")
    assert "has no coffeex2.png, the partner of coffee.png" in only_error(path)

    cv2.imwrite(str(lq / "coffeex2.png"), np.zeros((9, 9, 3), np.uint8))
    (lq / "coffee.png").unlink()
    assert "coffeex2.png is 9 x 9, but its partner in dataroot_gt 48 x 40" in only_error(path)

    (lq / "coffeex2.png").write_bytes(b"not a picture")
    assert "not a picture that can be read" in only_error(path)


@pytest.mark.parametrize(
    "content, expected",
    [
        ("chelsea.png\ncoffee.png\n\n", "list.txt: line 3, the last, is blank; remove it"),
        ("chelsea.png\n\ncoffee.png\n", "list.txt: line 2 is blank; remove it"),
        ("\ufeffchelsea.png\n", "list.txt: line 1 starts with a byte order mark"),
        ("chelsea.png\t(40,48,3)\n", "list.txt: line 1: a space must follow the name, not a tab"),
        ("", "list.txt: is empty; it must name pictures"),
        ("chelsea.png\nrocket.png\n", "list.txt: line 2: rocket.png is not below "),
        ("chelsea.png (40,48,3) 1\ncoffee.png\n", None),
    ],
)
def test_a_list_of_pictures_is_looked_through_line_by_line(
    content: str, expected: str | None, write_train_options: WriteOptions, tmp_path: Path
) -> None:
    (tmp_path / "list.txt").write_text(content, encoding="utf-8")
    path = write_train_options({"datasets:val:meta_info_file": str(tmp_path / "list.txt")})
    if expected is None:
        assert check(path) == []
    else:
        error = only_error(path)
        assert error.startswith("datasets:val:meta_info_file: ") and expected in error


@pytest.mark.parametrize(
    "content, expected",
    [
        ("gt/a.png, lq/a.png\n", None),
        ("gt/a.png, lq/a.png\ngt/a.png\n", "meta_info: {list}: line 2 must be GT, LQ"),
        ("gt/a.png,lq/a.png\n", "meta_info: {list}: line 1 must be GT, LQ"),
        ("gt/a.png, lq/a.png\n\n", "meta_info: {list}: line 2 must be GT, LQ"),
        ("gt/a.png, lq/b.png\n", "meta_info: {list}: line 1: lq/b.png is not below "),
        ("gt/a.png, gt/a.png\n", "dataroot_lq: gt/a.png is 32 x 32, but its partner in "),
        ("", "meta_info: {list}: is empty"),
    ],
)
def test_a_list_of_pairs_is_looked_through_line_by_line(
    content: str, expected: str | None, write_train_options: WriteOptions, tmp_path: Path
) -> None:
    for side, size in (("gt", 32), ("lq", 16)):
        (tmp_path / side).mkdir()
        cv2.imwrite(str(tmp_path / side / "a.png"), np.zeros((size, size, 3), np.uint8))
    listing = tmp_path / "pairs.txt"
    listing.write_text(content)
    train = {
        "name": "pairs",
        "type": "RealESRGANPairedDataset",
        "dataroot_gt": str(tmp_path),
        "dataroot_lq": str(tmp_path),
        "meta_info": str(listing),
        "io_backend": {"type": "disk"},
        "gt_size": 32,
        "use_hflip": True,
        "use_rot": True,
        "num_worker_per_gpu": 0,
        "batch_size_per_gpu": 1,
    }
    path = write_train_options({"datasets:train": train})
    if expected is None:
        assert check(path) == []
        assert "batch_size_per_gpu: 2, but there are 1 pictures" in only_error(
            path, ["datasets:train:batch_size_per_gpu=2"]
        )
    else:
        assert f"datasets:train:{expected.format(list=listing)}" in only_error(path)


def test_folders_without_an_image_are_named(
    write_test_options: WriteOptions, tmp_path: Path
) -> None:
    (tmp_path / "lq" / "deeper").mkdir(parents=True)
    os.mkfifo(tmp_path / "lq" / "pipe.png")
    data = {
        "name": "real",
        "type": "SingleImageDataset",
        "dataroot_lq": str(tmp_path / "lq"),
        "io_backend": {"type": "disk"},
    }
    path = write_test_options({"datasets:test_1": data, "path:pretrain_network_g": None})
    options = [f"path:pretrain_network_g={weights_of(path, tmp_path)}"]
    assert f"dataroot_lq: {tmp_path / 'lq'}: no images in it" in only_error(path, options, False)


def weights_of(options: Path, folder: Path) -> Path:
    """A checkpoint for the network of an option file."""
    write_weights(folder / "net_g.pth", yaml.safe_load(options.read_text())["network_g"])
    return folder / "net_g.pth"


def test_lmdbs_that_do_not_match_are_named(
    write_train_options: WriteOptions, paired_data: Any, tmp_path: Path
) -> None:
    lq = tmp_path / "lq.lmdb"
    lq.mkdir()
    path = write_train_options({"datasets:train:dataroot_lq": str(lq)})
    assert "has no data.mdb, so it is not whole" in only_error(path)

    (lq / "data.mdb").write_bytes((paired_data.train_lq / "data.mdb").read_bytes())
    listing = (paired_data.train_lq / "meta_info.txt").read_text().splitlines()
    (lq / "meta_info.txt").write_text("\n".join(listing[1:]))
    assert "holds other pictures than dataroot_gt: 8 there and 7 here" in only_error(path)

    (lq / "meta_info.txt").write_text("\n".join(listing).replace("(32,32,3)", "(16,16,3)"))
    assert "that is not scale 2" in only_error(path)


def test_an_lmdb_that_is_read_as_a_folder_is_told(tmp_path):
    (tmp_path / "train.lmdb").mkdir()
    (tmp_path / "train.lmdb/data.mdb").write_bytes(b"")
    problem = root_problem(str(tmp_path / "train.lmdb"), is_lmdb=False, is_disk=True)
    assert problem is not None and problem.endswith(": is an LMDB; write io_backend: type: lmdb")
