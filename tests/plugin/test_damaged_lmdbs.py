"""LMDBs that a copy cut short or a disk changed: read, or refused in one line."""

import io
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import lmdb
import pytest
from crafted_lmdbs import mutated, without_end
from PIL import Image

READ = """
import sys
import esc_arch
from basicsr.data import build_dataset
from esc_arch.plugin.data.exact_order import GuardedDataset
from esc_arch.errors import UserError

lq, *gts = sys.argv[1:]
for gt in gts:
    opt = {"name": "tiny", "type": "PairedImageDataset", "dataroot_gt": gt, "dataroot_lq": lq,
           "io_backend": {"type": "lmdb"}, "phase": "train", "scale": 2, "gt_size": 32,
           "use_hflip": True, "use_rot": True}
    try:
        dataset = GuardedDataset(build_dataset(opt), opt)
        for index in range(len(dataset)):
            dataset[index]
        print("read")
    except UserError as error:
        print(error)
"""


def read_all(gts: Sequence[Path], lq: Path) -> list[str]:
    """What a process of its own says of all samples of each; a damaged map may kill it."""
    command = [sys.executable, "-c", READ, str(lq), *map(str, gts)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, (result.returncode, result.stderr[-2000:])
    lines = result.stdout.splitlines()
    assert len(lines) == len(gts)
    return lines


def read(gt: Path, lq: Path) -> str:
    """What a process of its own says of all samples."""
    return read_all([gt], lq)[0]


def test_a_truncated_lmdb_is_named(tmp_path: Path, paired_data):
    copies = []
    for share in (0, 0.1, 0.6):
        copies.append(tmp_path / f"cut_to_{share}.lmdb")
        shutil.copytree(paired_data.train_gt, copies[-1])
        data = copies[-1] / "data.mdb"
        data.write_bytes(data.read_bytes()[: int(share * data.stat().st_size)])
    for copy, message in zip(copies, read_all(copies, paired_data.train_lq), strict=True):
        assert str(copy) in message
        assert message.startswith("datasets: train: ")


def test_a_jpeg_of_thousands_of_scans_is_named_and_not_decoded(tmp_path: Path, paired_data):
    copy = tmp_path / "copy.lmdb"
    shutil.copytree(paired_data.train_gt, copy)
    saved = io.BytesIO()
    Image.new("L", (64, 64), 128).save(saved, "JPEG", progressive=True)
    content = saved.getvalue()
    scan = content[content.rindex(b"\xff\xda") : -2]
    with lmdb.open(str(copy), map_size=1 << 28) as environment, environment.begin(write=True) as to:
        for key, _ in list(to.cursor()):
            to.put(key, content[:-2] + 3000 * scan + content[-2:])
    message = read(copy, paired_data.train_lq)
    assert re.search(r"key '\w+' of \S+copy.lmdb: has more than 50 scans; save it anew", message)


def test_a_changed_bit_in_the_header_of_a_value_is_named(tmp_path: Path, paired_data):
    copy = tmp_path / "changed.lmdb"
    shutil.copytree(paired_data.train_gt, copy)
    with lmdb.open(str(copy)) as environment, environment.begin(write=True) as transaction:
        value = bytearray(transaction.get(b"rocket_180"))
        # Within the picture's header, its width.
        value[18] ^= 1 << 4
        transaction.put(b"rocket_180", bytes(value))
    message = read(copy, paired_data.train_lq)
    assert message.startswith(f"datasets: train: key 'rocket_180' of {copy}: ")


def test_changed_bits_anywhere_are_read_over_or_named(tmp_path: Path, paired_data):
    places = random.Random(0)
    copies = []
    for number, flips in enumerate([1] * 10 + [20] * 10):
        copies.append(tmp_path / f"changed_{number}.lmdb")
        shutil.copytree(paired_data.train_gt, copies[-1])
        data = copies[-1] / "data.mdb"
        content = bytearray(data.read_bytes())
        for _ in range(flips):
            content[places.randrange(len(content))] ^= 1 << places.randrange(8)
        data.write_bytes(content)
    said = read_all(copies, paired_data.train_lq)
    # PNG has checksums, so that what is read has changed where nothing is kept.
    for copy, message in zip(copies, said, strict=True):
        assert message == "read" or (
            message.startswith("datasets: train: ") and str(copy) in message
        )
    assert "read" in said and len(set(said)) > 5


def test_a_crafted_length_that_would_kill_the_run_is_named(tmp_path: Path, paired_data):
    copy = tmp_path / "crafted.lmdb"
    shutil.copytree(paired_data.train_gt, copy)
    data = copy / "data.mdb"
    content = bytearray(data.read_bytes())
    place = content.find(b"rocket_180")
    assert place > 0
    while place > 0:
        # The upper half of the value's length stands six bytes before its key.
        content[place - 6 : place - 4] = b"\x00\x30"
        place = content.find(b"rocket_180", place + 1)
    data.write_bytes(content)
    message = read(copy, paired_data.train_lq)
    assert re.fullmatch(
        f"datasets: train: {copy}: damaged: reading it ends a process by SIG(BUS|SEGV); make it "
        "again",
        message,
    ), message


def test_a_tree_without_end_is_named(tmp_path: Path, paired_data):
    copy = tmp_path / "endless.lmdb"
    shutil.copytree(paired_data.train_gt, copy)
    data = copy / "data.mdb"
    data.write_bytes(without_end(data.read_bytes()))
    told = f"{copy}: damaged: reading it has no end; make it again"
    assert read(copy, paired_data.train_lq) == f"datasets: train: {told}"


@pytest.mark.slow
def test_crafted_ones_are_read_or_named_and_kill_no_run(tmp_path: Path, paired_data):
    places = random.Random(23)
    content = (paired_data.train_gt / "data.mdb").read_bytes()
    copies = []
    for number in range(400):
        copies.append(tmp_path / f"crafted_{number}.lmdb")
        copies[-1].mkdir()
        shutil.copy(paired_data.train_gt / "meta_info.txt", copies[-1])
        (copies[-1] / "data.mdb").write_bytes(mutated(content, places))
    said = read_all(copies, paired_data.train_lq)
    for copy, message in zip(copies, said, strict=True):
        assert message == "read" or (
            message.startswith("datasets: train: ") and str(copy) in message
        )
    assert any("ends a process by SIG" in message for message in said)
