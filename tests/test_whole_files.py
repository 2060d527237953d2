"""Files are written whole or not at all, beside their place, and never through links."""

import ast
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from esc_arch.whole_files import (
    open_resumable,
    remove_temporary_files,
    replacing,
    sweep,
    write_atomically,
)

PACKAGE = Path(__file__).parents[1] / "esc_arch"
KILLED = """
import os
from esc_arch.whole_files import replacing
with replacing("net.pth") as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_link_planted_in_the_folder_is_not_written_through(folder):
    Path("precious").write_text("precious")
    with replacing("net.pth") as file:
        name = next(path for path in folder.iterdir() if path.name.startswith(".esc-"))
        file.write(b"new")
    assert len(name.name) < 60 and not name.exists()
    Path("net.pth").unlink()
    Path("net.pth").symlink_to("precious")
    with replacing("net.pth") as file:
        file.write(b"new")
    assert Path("precious").read_text() == "precious" and not Path("net.pth").is_symlink()


@pytest.mark.skipif(os.name != "posix", reason="file modes of POSIX")
def test_the_mode_of_the_older_file_is_kept_and_a_new_one_follows_the_umask(folder):
    old = os.umask(0o027)
    try:
        with replacing("new") as file:
            file.write(b"1")
        Path("old").touch()
        os.chmod("old", 0o604)
        with replacing("old") as file:
            file.write(b"1")
    finally:
        os.umask(old)
    assert os.stat("new").st_mode & 0o777 == 0o640
    assert os.stat("old").st_mode & 0o777 == 0o604


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
def test_what_a_killed_run_left_is_swept_and_what_a_running_one_writes_is_not(folder):
    subprocess.run([sys.executable, "-c", KILLED], cwd=folder)
    assert len(list(folder.iterdir())) == 1
    left = next(folder.iterdir())
    shutil.copy(left, "kept.tmp")
    with replacing("other.pth"):
        sweep(folder)
        assert not left.exists() and len(list(folder.glob(".esc-*"))) == 1
        left.touch()
        remove_temporary_files(folder)
        assert not left.exists() and len(list(folder.glob(".esc-*"))) == 1
    assert Path("kept.tmp").exists()


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
def test_the_next_run_that_writes_into_the_folder_sweeps_it(folder):
    subprocess.run([sys.executable, "-c", KILLED], cwd=folder)
    assert len(list(folder.iterdir())) == 1
    code = "from esc_arch.whole_files import write_atomically; write_atomically('a', b'1')"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
    assert [path.name for path in folder.iterdir()] == ["a"]


def test_parts_are_written_in_order_into_a_folder_that_is_made(folder):
    write_atomically("new/below/file", iter([b"one ", b"two"]))
    write_atomically("new/below/view", memoryview(b"three"))
    assert Path("new/below/file").read_bytes() == b"one two"
    assert Path("new/below/view").read_bytes() == b"three"


def test_a_file_that_a_later_run_goes_on_with_is_opened_at_its_end(folder):
    for part in (b"one ", b"two"):
        with open_resumable("file") as file:
            file.write(part)
    assert Path("file").read_bytes() == b"one two"


@pytest.mark.skipif(os.name != "posix", reason="links of both kinds and pipes")
@pytest.mark.parametrize("plant", [os.symlink, os.link, lambda _, name: os.mkfifo(name)])
def test_a_name_that_can_be_guessed_leads_nowhere(folder, plant):
    Path("precious").write_text("precious")
    plant("precious", "file.partial")
    with pytest.raises(OSError, match="remove it"):
        open_resumable("file.partial")
    assert Path("precious").read_text() == "precious"


# Those that write otherwise, and why they may.
ELSEWHERE = {
    # PyAV, into a file that `replacing` opened.
    "films/film.py",
    "films/joining.py",
    # Into a temporary folder of random name, which nobody else can write to.
    "cli/install_basicsr.py",
    "inference/same_names.py",
    # Appends a line to a file in a folder that was made sure to hold no links.
    "prepare/lmdb_writer.py",
    # Into a pipe of its own.
    "inference/encoding.py",
    # Nowhere.
    "cli/main.py",
    "whole_files.py",
}


def test_no_other_module_opens_files_for_writing():
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(_writes(node) for node in ast.walk(ast.parse(path.read_text("utf-8"))))
    }
    assert found == ELSEWHERE


def _writes(node: ast.AST) -> bool:
    """Whether it is a call that makes or changes a file by itself."""
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    if name in ("write_text", "write_bytes", "touch", "mkstemp"):
        return True
    opened = isinstance(node.func, ast.Name) and node.func.id == "open"
    if not opened and name not in ("open", "fdopen"):
        return False
    values = [*node.args, *(keyword.value for keyword in node.keywords)]
    flags = [
        part.attr for one in values for part in ast.walk(one) if isinstance(part, ast.Attribute)
    ]
    if {"O_WRONLY", "O_RDWR", "O_APPEND", "O_CREAT"} & set(flags):
        return True
    modes = [value.value for value in values if isinstance(value, ast.Constant)]
    return any(
        isinstance(mode, str) and set(mode) <= set("rwxabt+") and set(mode) & set("wxa+")
        for mode in modes
    )


def test_a_file_that_cannot_be_replaced_leaves_nothing_beside_it(tmp_path):
    (tmp_path / "place").mkdir()
    with pytest.raises(OSError):
        write_atomically(tmp_path / "place", b"content")
    assert os.listdir(tmp_path) == ["place"]


def test_a_full_disk_leaves_the_older_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.pth"
    write_atomically(path, b"old")
    code = f"""
import resource
from esc_arch.whole_files import write_atomically
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomically({str(path)!r}, bytes(2000))
except OSError as error:
    print(error.strerror)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "File too large", result.stderr
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() != 0, reason="only root gives files away")
def test_what_others_put_into_a_folder_for_all_is_not_gone_on_with(tmp_path: Path):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o1777)
    (folder / "file").touch()
    os.chown(folder / "file", 65534, 65534)
    with pytest.raises(OSError, match="is not a file of its own, and is not written to"):
        open_resumable(folder / "file")
    folder.chmod(0o755)
    open_resumable(folder / "file").close()
