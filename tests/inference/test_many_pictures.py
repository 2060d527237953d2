"""Folders of pictures: in batches, on several devices, gone on with, in the memory there is."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_network import TINY

import esc_arch
import esc_arch.inference.tile_choice as tile_choice
from esc_arch.cli.main import main
from esc_arch.errors import UserError
from esc_arch.inference.fit import bytes_per_pixel, free_memory
from esc_arch.inference.folders import run_jobs
from esc_arch.inference.picture_files import read_picture
from esc_arch.inference.work import Job, Settings
from esc_arch.zoo.identify import build_on_meta


def make_model(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    state = build_on_meta(TINY).state_dict()
    params = {name: torch.randn(value.shape) * 0.02 for name, value in state.items()}
    torch.save({"params": params}, path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "net.pth", 0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with pictures of two sizes and several kinds in `in`."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    generator = np.random.default_rng(0)
    kinds = ["RGB", "RGB", "L", "RGBA", "RGB", "LA", "RGB", "L", "RGBA", "RGB", "RGB"]
    for number, kind in enumerate(kinds):
        height = 20 if number % 3 else 31
        channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}[kind]
        pixels = generator.integers(0, 256, (height, 24, channels), np.uint8)
        Image.fromarray(pixels.squeeze()).save(f"in/{number:02}.png")
    return tmp_path


def upscale(model: Path, *arguments: object) -> int:
    return main(["upscale", "--model", str(model), *map(str, arguments)])


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).glob("*.png")}


@pytest.mark.parametrize(
    "more",
    [
        ["--batch", 2],
        ["--batch", 16],
        ["--devices", "cpu,cpu"],
        ["--devices", "cpu,cpu,cpu", "--batch", 3],
    ],
)
def test_batches_and_devices_change_neither_order_nor_results(more, folder, model, capsys):
    Path("in/04.png").write_bytes(b"broken")
    assert upscale(model, "in", "-o", "one", "--device", "cpu") == 1
    expected = [line.replace("one/", "out/") for line in capsys.readouterr().out.splitlines()]
    several = more if "--devices" in more else ["--device", "cpu", *more]
    assert upscale(model, "in", "-o", "out", *several) == 1
    told = capsys.readouterr()
    assert [line for line in told.out.splitlines() if "/s" not in line] == [
        line for line in expected if "/s" not in line
    ]
    assert told.err.count("\n") == 1
    for name in contents("one"):
        one, other = (read_picture(f"{where}/{name}").pixels for where in ("one", "out"))
        assert one.shape == other.shape and one.dtype == other.dtype
        assert np.abs(one.astype(int) - other).max() <= 1


def test_of_a_batch_that_fails_each_picture_is_tried_alone(folder, model):
    # In float16 only this picture's results are infinite.
    upscaler = esc_arch.load(model, "cpu")

    def break_on_black(module: torch.nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        black = args[0].flatten(1).amax(1) == 0
        return torch.where(black[:, None, None, None], torch.inf, output)

    upscaler.network.register_forward_hook(break_on_black)
    for number in range(3):
        Image.new("RGB", (9, 9), (80 * number,) * 3).save(f"{number}.png")
    jobs = [Job(Path(f"{number}.png"), Path(f"out/{number}.png")) for number in range(3)]
    outcomes = [outcome for _, outcome in run_jobs(jobs, [upscaler], Settings(batch=3))]
    assert isinstance(outcomes[0], UserError) and "0.png" in str(outcomes[0])
    assert sorted(path.name for path in Path("out").iterdir()) == ["1.png", "2.png"]


def test_a_defect_in_a_thread_reaches_the_caller(folder, model):
    upscalers = [esc_arch.load(model, "cpu") for _ in range(2)]
    jobs = [Job(path, Path("out") / path.name) for path in sorted(Path("in").iterdir())]

    def fail(*args: object) -> None:
        raise ZeroDivisionError

    upscalers[1].network.register_forward_hook(fail)
    with pytest.raises(ZeroDivisionError):
        list(run_jobs(jobs, upscalers))


def test_a_caller_who_stops_ends_all_threads(folder, model):
    import threading

    before = threading.active_count()
    jobs = [Job(path, Path("out") / path.name) for path in sorted(Path("in").iterdir())]
    run = run_jobs(jobs, [esc_arch.load(model, "cpu") for _ in range(2)], Settings(batch=2))
    next(run)
    run.close()
    assert threading.active_count() == before


def test_a_second_run_does_only_what_is_new(folder, model, capsys):
    assert upscale(model, "in", "-o", "out") == 0
    before = {path: path.stat().st_mtime_ns for path in Path("out").glob("*.png")}
    Image.new("RGB", (8, 8)).save("in/new.png")
    Path("out/03.png").unlink()
    assert upscale(model, "in", "-o", "out") == 0
    out = capsys.readouterr().out
    assert out.endswith("2 upscaled, 10 kept, 0 failed\n")
    assert out.count(": kept; ") == out.count("out/00.png and 9 more: kept; ") == 1
    assert {path for path, when in before.items() if path.stat().st_mtime_ns != when} == {
        Path("out/03.png")
    }


@pytest.mark.parametrize(
    "what, told",
    [
        ("weights", "what is there was made by other weights"),
        ("tile", "what is there was made with another tile"),
        ("source", "the source is another than it was"),
    ],
)
def test_results_of_other_weights_options_or_sources_are_done_anew(
    what, told, folder, model, capsys
):
    assert upscale(model, "in", "-o", "out") == 0
    before = contents("out")
    more: list[object] = []
    if what == "weights":
        model = make_model(Path("other.pth"), 1)
    elif what == "tile":
        more = ["--tile", 16]
    else:
        # Older than its result, as an archive unpacks it, and of the same size.
        Image.new("RGB", (24, 31), (9, 9, 9)).save("in/00.png")
        os.utime("in/00.png", (1, 1))
    capsys.readouterr()
    assert upscale(model, "in", "-o", "out", *more) == 0
    out = capsys.readouterr().out
    assert out.count(told) == (1 if what == "source" else 11)
    after = contents("out")
    changed = {name for name in after if after[name] != before[name]}
    # Tiles of whole windows change nothing that 8 bits show.
    assert changed == {"weights": set(after), "tile": set(), "source": {"00.png"}}[what]
    # And so they are known now.
    assert upscale(model, "in", "-o", "out", *more) == 0
    assert capsys.readouterr().out.endswith("0 upscaled, 11 kept, 0 failed\n")


def test_a_record_that_was_cut_off_is_gone_on_with(folder, model, capsys):
    assert upscale(model, "in", "-o", "out") == 0
    record = Path("out/.basicsr-upscaled.jsonl")
    record.write_bytes(record.read_bytes()[:-20])
    for results in (0, 0):
        assert upscale(model, "in", "-o", "out") == 0
        assert capsys.readouterr().out.endswith(f"{results} upscaled, 11 kept, 0 failed\n")
    Path("out/05.png").unlink()
    assert upscale(model, "in", "-o", "out") == 0
    assert upscale(model, "in", "-o", "out", "--tile", 8) == 0
    assert "10.png: done anew" not in capsys.readouterr().out, "its line was cut off"


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_after_a_kill_the_rest_is_done_and_all_is_as_without(folder, model, capsys):
    for number in range(60):
        Image.effect_noise((60, 60), 50).save(f"in/more{number:02}.png")
    command = [sys.executable, "-m", "esc_arch.cli", "upscale", "in", "-o", "out"]
    command += ["--model", str(model), "--batch", "2"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while len(list(Path("out").glob("*.png"))) < 5 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    done = len(list(Path("out").glob("*.png")))
    assert upscale(model, "in", "-o", "out") == 0
    assert capsys.readouterr().out.endswith(f"{71 - done} upscaled, {done} kept, 0 failed\n")
    assert upscale(model, "in", "-o", "fresh") == 0
    assert contents("out") == contents("fresh")
    assert not list(Path("out").glob(".esc-*"))


def test_shards_keep_records_of_their_own_that_all_read(folder, model, capsys):
    for part in ("1/2", "2/2"):
        assert upscale(model, "in", "-o", "out", "--shard", part) == 0
    assert len(list(Path("out").glob(".basicsr-upscaled-*-of-2.jsonl"))) == 2
    assert upscale(model, "in", "-o", "out", "--tile", 16) == 0
    assert capsys.readouterr().out.count("another tile") == 11


def test_patterns_in_quotes_stand_for_what_fits_them(folder, model, capsys):
    Path("in/deep/er").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save("in/deep/er/a.png")
    Image.new("RGB", (8, 8)).save("in/[1].png")
    assert upscale(model, "in/0[12].png", "in/**/a.png", "in/[1].png", "-o", "out") == 0
    assert sorted(contents("out")) == ["01.png", "02.png", "[1].png"]
    assert Path("out/deep/er/a.png").exists()
    assert upscale(model, "in/*.gif", "in/03.png", "-o", "out") == 1
    told = capsys.readouterr()
    assert "in/*.gif: nothing fits this pattern" in told.err and Path("out/03.png").exists()


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--batch", "0"], "--batch 0: must be 1 or more"),
        (["--devices", "cpu,"], "--devices cpu,: must be devices with commas between"),
        (["--devices", "cpu,meta"], "--device meta: cannot be used here"),
        (["--devices", "cpu", "--device", "cpu"], "not allowed with argument"),
    ],
)
def test_wrong_devices_and_batches_are_one_line(arguments, told, folder, model, capsys):
    try:
        status = upscale(model, "in", *arguments)
    except SystemExit as error:
        status = error.code
    assert status == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_the_memory_that_is_free_is_what_the_narrowest_group_leaves(tmp_path):
    def put(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    cpu = torch.device("cpu")
    assert free_memory(cpu, tmp_path) is None
    put("proc/meminfo", "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable: 8000 kB\n")
    assert free_memory(cpu, tmp_path) == 8000 * 1024
    put("proc/self/cgroup", "0::/slurm/job_7\n")
    put("sys/fs/cgroup/slurm/job_7/memory.max", "max\n")
    put("sys/fs/cgroup/slurm/job_7/memory.current", "100\n")
    assert free_memory(cpu, tmp_path) == 8000 * 1024
    put("sys/fs/cgroup/slurm/memory.max", "5000\n")
    put("sys/fs/cgroup/slurm/memory.current", "3000\n")
    put("sys/fs/cgroup/slurm/memory.stat", "anon 2000\ninactive_file 500\n")
    assert free_memory(cpu, tmp_path) == 2500
    put("proc/self/cgroup", "5:cpu,memory:/docker/abc\n")
    put("sys/fs/cgroup/memory/memory.limit_in_bytes", "1000\n")
    put("sys/fs/cgroup/memory/memory.usage_in_bytes", "400\n")
    assert free_memory(cpu, tmp_path) == 600


def test_tiles_get_smaller_where_little_memory_is_free(folder, model, monkeypatch, capsys):
    Image.new("RGB", (400, 300), (40, 80, 120)).save("large.png")
    need = bytes_per_pixel(esc_arch.load(model, "cpu").network) * 400 * 300
    for part, tile in ((3, None), (1.2, 128), (0.01, 64)):
        monkeypatch.setattr(tile_choice, "free_memory", lambda device, p=part: p * need)
        upscaler = esc_arch.load(model, "cpu")
        assert upscaler.tiles_needed(300, 400) == (tile is not None)
        assert upscale(model, "large.png", "-o", f"{part}.png", "--device", "cpu") == 0
        told = capsys.readouterr().err
        assert (f"large.png: in tiles of {tile}, since " in told) == (tile is not None)
        assert upscaler.together(300, 400, 8) < 3
        assert esc_arch.load(model, "cpu", tile=0).tiles_needed(300, 400) is False
    whole, tiled = (read_picture(f"{part}.png").pixels.astype(int) for part in (3, 0.01))
    assert np.abs(whole - tiled).max() <= 1


OUT_OF_MEMORY = """
import resource, sys
from pathlib import Path
import esc_arch
from esc_arch.inference.work import Job, TooLargeError, run_job

upscaler = esc_arch.load(sys.argv[1], "cpu")
run_job(Job(Path("in/00.png"), Path("first.png")), upscaler)
now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
# How much even the smallest tiles need differs between machines: a little more at a time.
for more in range(200, 3000, 100):
    limit = now + more * 1_000_000
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    try:
        print(run_job(Job(Path("large.png"), Path("large_x2.png")), upscaler).notes)
        break
    except TooLargeError:
        pass
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory")
@pytest.mark.parametrize("threads", [1, 2])
def test_where_memory_runs_out_all_the_same_smaller_tiles_are_tried(threads, folder, model):
    Image.effect_noise((1000, 1000), 50).convert("RGB").save("large.png")
    command = [sys.executable, "-c", OUT_OF_MEMORY, str(model)]
    # Each thread's own arena would take 64 MB of the addresses that are limited here.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": str(threads)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert result.returncode == 0, result.stderr
    assert "since the memory was used up" in result.stdout
    assert read_picture("large_x2.png").pixels.shape == (2000, 2000, 3)


OUT_OF_MEMORY_ONCE = """
import resource, sys
from pathlib import Path
import esc_arch
from esc_arch.inference.work import Job, TooLargeError, run_job

upscaler = esc_arch.load(sys.argv[1], "cpu")
run_job(Job(Path("in/00.png"), Path("first.png")), upscaler)
now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
# With this much, convolutions may find no memory for their code and not only none for numbers.
failed = 0
for more in range(20, 200, 30):
    resource.setrlimit(resource.RLIMIT_AS, (now + more * 1_000_000, resource.RLIM_INFINITY))
    try:
        run_job(Job(Path("large.png"), Path("little.png")), upscaler)
        break
    except TooLargeError:
        failed += 1
assert failed > 0
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
for number in range(2):
    print(run_job(Job(Path("large.png"), Path(f"large{number}.png")), upscaler).notes)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_process_whose_memory_was_used_up_goes_on_once_there_is_more(threads, folder, model):
    Image.effect_noise((1000, 1000), 50).convert("RGB").save("large.png")
    command = [sys.executable, "-c", OUT_OF_MEMORY_ONCE, str(model)]
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": str(threads)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "[]\n[]\n"
    assert read_picture("large1.png").pixels.shape == (2000, 2000, 3)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc/self/status")
def test_what_a_pixel_needs_is_about_what_the_process_grows_by(model):
    measured = """
import sys, torch, esc_arch

def most():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

network = esc_arch.load(sys.argv[1], "cpu").network
with torch.inference_mode():
    network(torch.rand(1, 3, 64, 64))
    before = most()
    network(torch.rand(1, 3, 768, 768))
print((most() - before) * 1024 / 768**2)
"""
    command = [sys.executable, "-c", measured, str(model)]
    grown = float(subprocess.run(command, capture_output=True, check=True).stdout)
    told = bytes_per_pixel(esc_arch.load(model, "cpu").network)
    assert grown < told < 4 * grown, (grown, told)
