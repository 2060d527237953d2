"""LMDBs that a copy cut short or a disk changed: read, or refused in one line."""

import shutil
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest

READ = """
import sys
import esc_arch
from basicsr.data import build_dataset
from esc_arch.data.exact_order import GuardedDataset
from esc_arch.errors import UserError

gt, lq = sys.argv[1:]
opt = {"name": "tiny", "type": "PairedImageDataset", "dataroot_gt": gt, "dataroot_lq": lq,
       "io_backend": {"type": "lmdb"}, "phase": "train", "scale": 2, "gt_size": 32,
       "use_hflip": True, "use_rot": True}
dataset = GuardedDataset(build_dataset(opt), opt)
try:
    for index in range(len(dataset)):
        dataset[index]
    print("read")
except UserError as error:
    print(error)
"""


def read(gt: Path, lq: Path) -> str:
    """What a process of its own says of all samples; a damaged map may kill it."""
    result = subprocess.run(
        [sys.executable, "-c", READ, str(gt), str(lq)], capture_output=True, text=True
    )
    assert result.returncode == 0, (result.returncode, result.stderr[-2000:])
    assert len(result.stdout.splitlines()) == 1
    return result.stdout.strip()


@pytest.mark.parametrize("share", [0, 0.1, 0.6])
def test_a_truncated_lmdb_is_named(share: float, tmp_path: Path, paired_data):
    copy = tmp_path / "cut.lmdb"
    shutil.copytree(paired_data.train_gt, copy)
    data = copy / "data.mdb"
    data.write_bytes(data.read_bytes()[: int(share * data.stat().st_size)])
    message = read(copy, paired_data.train_lq)
    assert str(copy) in message
    assert message.startswith("datasets: train: ")


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
