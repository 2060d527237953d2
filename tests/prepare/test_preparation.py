"""The scripts of datasets_prep as a user runs them: killed, refused, and short of disk."""

import ctypes
import os
import random
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest

from esc_arch.errors import UserError
from esc_arch.prepare.training_sets import unpack_images

SCRIPTS = Path(__file__).parents[2] / "datasets_prep"


@dataclass(frozen=True)
class Ended:
    """How a script ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def errors(self) -> list[str]:
        """The lines on stderr that are not progress bars."""
        return [line for line in self.stderr.splitlines() if ": error: " in line]


Prepare = Callable[..., Ended]


@pytest.fixture
def prepare(monkeypatch, capsys) -> Prepare:
    """Runs a script in this process."""
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def run(name: str, *arguments) -> Ended:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
        captured = capsys.readouterr()
        return Ended(end.value.code, captured.out, captured.err)

    return run


def start(script: str, *arguments, **options) -> subprocess.Popen:
    """Starts a script in a process, and a session, of its own."""
    return subprocess.Popen(
        [sys.executable, str(SCRIPTS / f"{script}.py"), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def contents(path: Path) -> dict[bytes, bytes]:
    with lmdb.open(str(path), readonly=True, lock=False) as environment:
        with environment.begin() as transaction:
            return dict(transaction.cursor())


@pytest.fixture(scope="module")
def hr(tmp_path_factory, photographs) -> Path:
    """60 photographs of 240x240."""
    folder = tmp_path_factory.mktemp("preparation") / "HR"
    folder.mkdir()
    generator = random.Random(0)
    for number in range(60):
        image = photographs[generator.choice(sorted(photographs))]
        top = generator.randrange(image.shape[0] - 240 + 1)
        left = generator.randrange(image.shape[1] - 240 + 1)
        crop = image[top : top + 240, left : left + 240]
        assert cv2.imwrite(str(folder / f"{number:04d}.png"), crop[..., ::-1])
    return folder


def arguments(hr: Path, out: Path, *more) -> list:
    sizes = ("--crop-size", 96, "--step", 24)
    return ["--name", "Small", "--hr", hr, "--out", out, *sizes, "--scales", 2, *more]


def wait_for_end_of_session(process: subprocess.Popen) -> None:
    """All processes that it started must end by themselves."""
    for _ in range(600):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("worker processes outlive the killed one")


def lines_of(path: Path) -> int:
    """0 where it is not there any more: the folder takes its name when all is in it."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_killed_at_random_moments_and_run_again_it_makes_the_same(tmp_path, hr, prepare):
    reference = tmp_path / "reference"
    assert prepare("div2k", *arguments(hr, reference, "--workers", 1)).status == 0

    out = tmp_path / "out"
    finished = out / "Small_train_HR_sub.lmdb"
    sources = out / "Small_train_HR_sub.lmdb.partial" / "sources.tsv"
    generator = random.Random(1)
    recorded = 0
    kills = [1, 2, 1]
    for _ in range(20):
        process = start("div2k", *arguments(hr, out, "--workers", kills[-1]))
        while process.poll() is None and not sources.exists():
            time.sleep(0.01)
        until = recorded + generator.randrange(1, 10)
        while process.poll() is None and lines_of(sources) < until:
            time.sleep(0.01)
        # Shorter than an image takes, so that the run is not over on a fast machine.
        time.sleep(generator.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        wait_for_end_of_session(process)
        if finished.exists():
            # This process had to wait while that one ran: no kill in the middle.
            shutil.rmtree(out)
            recorded = 0
            continue
        assert process.returncode == -signal.SIGKILL
        kept = lines_of(sources)
        assert kept >= recorded
        recorded = kept
        kills.pop()
        if not kills:
            break
    assert not kills and 0 < recorded < 60

    result = prepare("div2k", *arguments(hr, out, "--workers", 1))
    assert result.status == 0, result.stderr
    assert result.stdout == "60 images, 2940 sub-images\n"
    for name in ("Small_train_HR_sub.lmdb", "Small_train_LR_bicubic_X2_sub.lmdb"):
        assert contents(out / name) == contents(reference / name)
        for file in ("meta_info.txt", "sources.tsv", "recipe.json"):
            assert (out / name / file).read_bytes() == (reference / name / file).read_bytes()


def test_when_nothing_more_can_be_written_it_says_so_and_the_next_run_goes_on(
    tmp_path, hr, prepare
):
    def small_disk() -> None:
        # No file may grow beyond 1 MB: writing fails much as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    out = tmp_path / "out"
    process = start("div2k", *arguments(hr, out, "--workers", 1), preexec_fn=small_disk)
    result = Ended(0, *process.communicate(timeout=300))
    assert process.returncode == 2
    assert len(result.errors) == 1
    assert "nothing already made is lost, run the same command again" in result.errors[0]
    assert "Traceback" not in result.stderr
    assert not (out / "Small_train_HR_sub.lmdb").exists()
    assert prepare("div2k", *arguments(hr, out, "--workers", 1)).status == 0
    assert len(contents(out / "Small_train_HR_sub.lmdb")) == 2940


def test_bad_inputs_end_with_status_2_and_a_line_each(tmp_path, prepare):
    hr = tmp_path / "HR"
    hr.mkdir()
    (hr / "a.png").write_text("no image")
    for name in ("b", "c", "d"):
        cv2.imwrite(str(hr / f"{name}.png"), np.zeros((40, 40, 3), np.uint8))
    result = prepare("div2k", *arguments(hr, tmp_path / "out", "--workers", 1))
    assert result.status == 2
    assert result.errors == [
        f"basicsr: error: {hr}/a.png: not an image; a whole image file is needed",
        f"basicsr: error: {hr}/b.png: 40x40 pixels, and 2 more, too small for a sub-image of 96; "
        "take them out, leave out all such images with --skip-small, or admit smaller ones with "
        "--min-side",
    ]
    assert result.stdout == ""


def test_images_that_are_all_too_small_leave_nothing_in_the_way(tmp_path, prepare):
    hr, out = tmp_path / "HR", tmp_path / "out"
    hr.mkdir()
    cv2.imwrite(str(hr / "a.png"), np.zeros((60, 72, 3), np.uint8))
    result = prepare("div2k", *arguments(hr, out, "--workers", 1, "--skip-small"))
    assert result.status == 2
    assert result.errors[0].endswith("for a sub-image; --min-side admits smaller ones")
    assert prepare("div2k", *arguments(hr, out, "--workers", 1, "--min-side", 60)).status == 0


def test_an_image_of_exactly_the_smallest_side_is_taken(tmp_path, photographs, prepare):
    (tmp_path / "HR").mkdir()
    crop = photographs["astronaut"][:256, :256, ::-1]
    cv2.imwrite(str(tmp_path / "HR" / "a.png"), crop)
    given = ["--hr", tmp_path / "HR", "--out", tmp_path / "out", "--name", "S", "--workers", 1]
    result = prepare("div2k", *given, "--min-side", 256, "--scales", 2)
    assert result.status == 0, result.stderr
    assert result.stdout == "1 images, 1 sub-images\n"


@pytest.mark.parametrize("kind", ["encrypted", "bomb", "broken"])
def test_archives_that_are_none_of_images_are_refused_in_a_line(tmp_path, kind):
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("a.png", bytes(1 << 22) if kind == "bomb" else os.urandom(3000))
    content = bytearray(archive.read_bytes())
    if kind == "encrypted":
        content[6] |= 1
        content[content.index(b"PK\x01\x02") + 8] |= 1
    if kind == "broken":
        content[100] ^= 0xFF
    archive.write_bytes(content)
    said = {"encrypted": "a.png is encrypted", "bomb": "that unpack to", "broken": "remove it"}
    with pytest.raises(UserError, match=said[kind]):
        unpack_images(archive, tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / "a.png").exists()


def test_worker_processes_import_nothing_from_the_current_folder(tmp_path, hr):
    for name in ("socket", "lmdb", "cv2", "numpy", "tqdm"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w')\nraise SystemExit(9)\n")
    process = start("div2k", *arguments(hr, tmp_path / "out", "--workers", 2), cwd=tmp_path)
    process.communicate(timeout=300)
    assert process.returncode == 0
    assert not (tmp_path / "ran").exists()


NO_DFLIP = ["--div2k", "no", "--flickr2k", "no", "--lsdir", "no", "--diverseg-ip", "no"]


@pytest.mark.parametrize(
    ("script", "given", "message"),
    [
        ("div2k", [], "--hr: either this or --download is needed"),
        ("div2k", ["--hr", "absent"], "--hr absent: No such file or directory"),
        ("div2k", ["--hr", "a", "--mirror", "b"], "--mirror b: is only for --download"),
        (
            "div2k",
            ["--hr", "a", "--lr-x3", "b", "--scales", "2", "4"],
            "--lr-x3 b: --scales leaves 3 out",
        ),
        ("benchmarks", ["--src", "absent"], "--src absent: No such file or directory"),
        ("dflip", NO_DFLIP, "--diverseg-ip no: No such file or directory"),
        ("demo", ["--out", "/dev/null/demo"], "/dev/null/demo/train_HR/astronaut.png: Not a"),
    ],
)
def test_wrong_arguments_end_with_status_2_and_a_line(
    tmp_path, prepare, monkeypatch, script, given, message
):
    monkeypatch.chdir(tmp_path)
    result = prepare(script, *given)
    assert result.status == 2
    assert any(message in line for line in result.errors), result.stderr
    assert list(tmp_path.iterdir()) == []


def bound_by_permissions() -> None:
    """Takes from root, for the command to be started, the power to read and write everything."""
    drop_from_bounding_set, dac_override, dac_read_search = 24, 1, 2
    for capability in (dac_override, dac_read_search):
        ctypes.CDLL(None).prctl(drop_from_bounding_set, capability, 0, 0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="root's powers are taken as Linux does")
def test_no_permission_ends_with_status_2_and_a_line(tmp_path, hr):
    locked, unreadable = tmp_path / "locked", tmp_path / "unreadable"
    (unreadable / "Set5").mkdir(parents=True)
    locked.mkdir(mode=0o500)
    (unreadable / "Set5").chmod(0)
    sets = ["--src", unreadable, "--sets", "Set5", "--out", tmp_path / "out"]
    dflip = ["--div2k", "--flickr2k", "--lsdir", "--diverseg-ip"]
    dflip = [part for option in dflip for part in (option, unreadable)]
    for script, given, denied in (
        ("div2k", arguments(hr, locked / "out", "--workers", 1), locked / "out"),
        ("benchmarks", sets, unreadable / "Set5"),
        ("dflip", [*dflip, "--any-count"], unreadable / "Set5"),
    ):
        process = start(script, *given, preexec_fn=bound_by_permissions)
        result = Ended(0, *process.communicate(timeout=300))
        assert process.returncode == 2
        assert len(result.errors) == (4 if script == "dflip" else 1), result.stderr
        assert all(f"{denied}" in line for line in result.errors)
        assert all("Permission denied" in line for line in result.errors)
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize("script", ["div2k", "dflip", "benchmarks", "demo"])
def test_help_says_what_a_script_makes(prepare, script):
    result = prepare(script, "--help")
    assert result.status == 0
    assert "--out" in result.stdout


def test_benchmarks_reports_each_set_and_goes_on_after_a_bad_one(tmp_path, photographs, prepare):
    for name, count in (("Set5", 5), ("Set14", 3)):
        (tmp_path / "src" / name).mkdir(parents=True)
        for number in range(count):
            crop = photographs["rocket"][number * 30 : number * 30 + 30, 100:140]
            cv2.imwrite(str(tmp_path / "src" / name / f"{number}.png"), crop[..., ::-1])
    given = ["--src", tmp_path / "src", "--out", tmp_path / "out", "--workers", 1]
    result = prepare("benchmarks", *given, "--sets", "Set14", "Set5")
    assert result.status == 2
    assert len(result.errors) == 1
    assert result.errors[0].endswith("3 HR images; Set14 has 14")
    assert result.stdout.startswith("Set5: 5 images, 40x30 to 40x30; SHA-256 of their pixels ")
    assert (tmp_path / "out" / "Set5" / "LR_bicubic" / "X4" / "0x4.png").exists()


def test_benchmarks_does_the_sets_that_are_there_and_names_the_others(
    tmp_path, photographs, prepare
):
    (tmp_path / "src" / "Set5").mkdir(parents=True)
    for number in range(5):
        crop = photographs["rocket"][number * 30 : number * 30 + 30, 100:140]
        cv2.imwrite(str(tmp_path / "src" / "Set5" / f"{number}.png"), crop[..., ::-1])
    given = ["--src", tmp_path / "src", "--out", tmp_path / "out", "--workers", 1]
    result = prepare("benchmarks", *given)
    assert result.status == 0, result.stderr
    done, *left_out = result.stdout.splitlines()
    assert done.startswith("Set5: 5 images, ")
    assert [line.partition(" in it")[0] for line in left_out] == [
        f"Left out: --src {tmp_path / 'src'}: no folder {names}"
        for names in ("Set14", "B100 or BSD100 or BSDS100 or BSDS100_val", "Urban100", "Manga109")
    ]

    # What is asked for by name must be there; the others are made all the same.
    result = prepare("benchmarks", *given, "--sets", "Set5", "Urban100")
    assert result.status == 2
    assert result.errors == [f"basicsr: error: --src {tmp_path / 'src'}: no folder Urban100 in it"]
    assert result.stdout.startswith("Set5: 5 images, ")

    result = prepare("benchmarks", "--src", tmp_path / "src" / "Set5")
    assert result.status == 2
    assert "no folder of a benchmark set in it, such as Set5, Set14" in result.errors[0]


def test_div2k_is_downloaded_unpacked_and_packed(tmp_path, hr, prepare):
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    with zipfile.ZipFile(mirror / "DIV2K_train_HR.zip", "w") as archive:
        for number in (1, 2):
            archive.write(hr / f"{number:04d}.png", f"DIV2K_train_HR/{number:04d}.png")
    handler = partial(SimpleHTTPRequestHandler, directory=str(mirror))
    out = tmp_path / "out"
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        given = ["--download", "--mirror", f"http://127.0.0.1:{server.server_port}", "--out", out]
        given += ["--scales", 2, "--crop-size", 96, "--step", 96, "--workers", 1, "--count", 2]
        # Of a cut archive nothing is remembered.
        whole = (mirror / "DIV2K_train_HR.zip").read_bytes()
        (mirror / "DIV2K_train_HR.zip").write_bytes(whole[: len(whole) // 2])
        result = prepare("div2k", *given)
        assert result.status == 2
        assert "File is not a zip file; remove it to download it anew" in result.errors[0]
        assert [path.name for path in (out / "raw").iterdir()] == ["DIV2K_train_HR.zip"]
        (out / "raw" / "DIV2K_train_HR.zip").unlink()
        (mirror / "DIV2K_train_HR.zip").write_bytes(whole)
        result = prepare("div2k", *given)
        server.shutdown()
    assert result.status == 0, result.stderr
    assert result.stdout == "2 images, 18 sub-images\n"
    assert len(contents(out / "DIV2K_train_LR_bicubic_X2_sub.lmdb")) == 18

    # The checksum of the first download that was whole holds from then on.
    archive = out / "raw" / "DIV2K_train_HR.zip"
    archive.write_bytes(archive.read_bytes() + b"more")
    result = prepare("div2k", *given)
    assert result.status == 2
    assert "has SHA-256" in result.errors[0]
