"""`basicsr bench`: what it measures is what it says, and what cannot run is a row that says why."""

import csv
import itertools
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY

from esc_arch.cli.main import main
from esc_arch.errors import UserError
from esc_arch.plugin import peers
from esc_arch.study.complexity import count_parameters
from esc_arch.study.speed import measure, results
from esc_arch.study.speed.contenders import PEERS, Contender, flops, parse_contender
from esc_arch.study.speed.jobs import NetworkJob, TrainingJob
from esc_arch.study.speed.measure import Prepared

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Allocate:
    """A job that fills some memory and notes its turn."""

    megabytes: int
    log: Path
    label: str = "allocate"
    device: str = "cpu"

    def prepare(self) -> Prepared:
        def run():
            with open(self.log, "a") as file:
                file.write(f"{self.megabytes} ")
            time.sleep(0.001)
            return torch.ones(self.megabytes * 2**18).sum()

        return Prepared(run, {"megabytes": self.megabytes})


@dataclass(frozen=True)
class Fail:
    """A job that cannot be prepared."""

    label: str = "fail"
    device: str = "cpu"

    def prepare(self) -> Prepared:
        raise UserError("it needs what is not here")


def tiny_option_file(path: Path, **network: object) -> Path:
    options = dict(
        type="ESC",
        dim=8,
        pdim=4,
        kernel_size=3,
        n_blocks=1,
        conv_blocks=1,
        window_size=4,
        num_heads=2,
        upscaling_factor=2,
    )
    path.write_text(json.dumps({"scale": 2, "network_g": {**options, **network}}))
    return path


def test_timed_runs_take_turns_and_failures_stop_nothing(tmp_path):
    log = tmp_path / "log"
    jobs = [Allocate(1, log), Fail(), Allocate(2, log)]
    first, failed, second = measure.measure(jobs, repeats=3, warmup=0, process_memory=False)
    assert log.read_text().split() == ["1", "2", *["1", "2"] * 3]
    assert len(first.seconds) == len(second.seconds) == len(first.cpu_seconds) == 3
    assert min(first.seconds) >= 0.001
    assert failed.error == "it needs what is not here"
    assert not failed.seconds


def test_peak_memory_is_that_of_the_job_not_of_the_process_that_started_it(tmp_path):
    here = torch.ones(400 * 2**18)
    process, imports, cuda = measure.memory_in_own_process(Allocate(200, tmp_path / "log"), 1)
    del here
    assert 190 <= process - imports <= 260
    assert cuda is None


def test_a_row_is_read_from_its_parts():
    contender = parse_contender("ESC:naive:bfloat16:compile")
    assert contender == Contender("ESC", "Naive", "bfloat16", True)
    assert contender.label == "ESC:Naive:bfloat16:compile"
    assert parse_contender("SwinIR_light", attn_type="SDPA") == Contender("SwinIR_light")
    assert parse_contender("ESC", attn_type="sdpa") == Contender("ESC", "SDPA")
    assert parse_contender("MSRResNet").name in ARCH_REGISTRY


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ESC_lite", "no such network or option file .*did you mean 'ESC_light'"),
        ("ESC:Nave", "'Nave' is neither an attn_type"),
        ("SwinIR_light:Naive", "SwinIR_light has no attn_type"),
        ("missing.yml", "--models missing.yml: No such file or directory"),
    ],
)
def test_a_wrong_row_is_one_line(text, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_contender(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "scale", "parameters"),
    [
        ("ESC", 2, 946_728),
        ("ESC_light", 4, 624_372),
        ("ESC_FP", 3, 530_170),
        # In thousands: the figures that these networks' papers print.
        ("SwinIR_light", 2, 910),
        ("RCAN", 4, 15_592),
        ("ATD_light", 4, 769),
        ("SRFormer_light", 4, 873),
    ],
)
def test_networks_have_the_published_number_of_parameters(name, scale, parameters):
    needs(name)
    count = count_parameters(Contender(name).build(scale))
    assert parameters in (count, round(count / 1e3))


@pytest.mark.parametrize(
    ("name", "scale", "size", "printed"),
    [
        ("ESC_light", 4, (320, 180), 91.0),
        ("SwinIR_light", 4, (320, 180), 63.6),
        ("OmniSR", 4, (320, 180), 50.9),
        ("RCAN", 4, (320, 180), 917.6),
    ],
)
def test_flops_are_those_that_the_paper_prints(name, scale, size, printed):
    needs(name)
    assert round(flops(name, scale, *size) / 1e9, 1) == printed


def needs(name):
    """Skip where the package of a peer is not installed."""
    if PEERS.get(name, {"type": ""})["type"] in peers.PEERS:
        pytest.importorskip("spandrel_extra_arches")


def test_a_network_is_run_on_what_it_takes_and_cropped():
    # SwinIR needs multiples of 8 and cannot be cast to bfloat16.
    for dtype, precision in (("float32", "float32"), ("bfloat16", "bfloat16 (autocast)")):
        prepared = NetworkJob(Contender("SwinIR_light", dtype=dtype), 2, 9, 11, 1, "cpu").prepare()
        assert prepared.run().shape == (1, 3, 22, 18)
        assert prepared.facts == {"precision": precision, "parameters": 910_152}


def test_the_attention_backend_of_a_row_is_the_one_that_runs(tmp_path, monkeypatch):
    from esc_arch.ops import attention

    path = tiny_option_file(tmp_path / "tiny.yml", attn_type="Chunked")
    ran = []
    for name, backend in attention.BACKENDS.items():
        spy = lambda *inputs, name=name, backend=backend: ran.append(name) or backend(*inputs)  # noqa: E731
        monkeypatch.setitem(attention.BACKENDS, name, spy)
    for text, wanted in ((f"{path}", "Chunked"), (f"{path}:SDPA", "SDPA")):
        NetworkJob(parse_contender(text), 2, 8, 8, 1, "cpu").prepare().run()
        assert set(ran) == {wanted}
        ran.clear()


def test_rows_of_naive_run_without_our_kernels(monkeypatch):
    from esc_arch.kernels import choose

    off = []
    are_off = choose.are_off
    monkeypatch.setattr(choose, "are_off", lambda: off.append(are_off()) or off[-1])
    for spec, wanted in ((Contender("ESC_light", "Naive"), False), (Contender("ESC_light"), True)):
        NetworkJob(spec, 2, 8, 8, 1, "cpu").prepare().run()
        TrainingJob(spec, 2, 1, 8, "cpu").prepare().run()
        assert set(off) == {not wanted}
        off.clear()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_training_step_changes_the_weights(tmp_path, dtype):
    path = tiny_option_file(tmp_path / "tiny.yml")
    prepared = TrainingJob(Contender(str(path), dtype=dtype), 2, 1, 8, "cpu").prepare()
    step = prepared.run
    model = dict(
        zip(step.__code__.co_freevars, (c.cell_contents for c in step.__closure__), strict=True)
    )["model"]
    before = [p.detach().clone() for p in model.net_g.parameters()]
    step()
    after = list(model.net_g.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert (model.amp_dtype is not None) == (dtype == "bfloat16")


def test_the_table_leaves_out_empty_columns_and_keeps_reasons():
    rows = [
        {"model": "A", "latency_ms": 2.0, "cuda_mb": None, "note": None, "seconds": [0.002]},
        {"model": "B", "latency_ms": None, "cuda_mb": None, "note": "broken", "seconds": []},
    ]
    results.add_speedups(rows, rows[0])
    lines = results.format_table(rows).splitlines()
    assert lines[0].split() == ["|", "model", "|", "latency_ms", "|", "speedup", "|", "note", "|"]
    assert lines[2].split() == ["|", "A", "|", "2", "|", "1", "|", "|"]
    assert lines[3].split() == ["|", "B", "|", "|", "|", "broken", "|"]


def test_bench_prints_a_table_and_saves_csv_and_json(run_basicsr, tmp_path):
    path = tiny_option_file(tmp_path / "tiny.yml")
    arguments = ["--device", "cpu", "--threads", 1, "--size", "12x8", "--scale", 2]
    models = [path, f"{path}:Naive:bfloat16", "ConvAttn"]
    arguments += ["--repeats", 3, "--no-process-memory", "--out", "out/b"]
    done = run_basicsr("bench", *arguments, "--models", *models)
    assert done.returncode == 0, done.stderr
    assert "| tiny:Naive:bfloat16 |" in done.stdout
    with open(tmp_path / "out" / "b.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["tiny", "tiny:Naive:bfloat16", "ConvAttn"]
    for row in rows[:2]:
        assert row["lr_size"] == "12x8" and row["runs"] == "3"
        assert int(row["parameters"]) == count_parameters(Contender(str(path)).build(2))
    assert "no option for the scale" in rows[2]["note"] and not rows[2]["latency_ms"]
    content = json.loads((tmp_path / "out" / "b.json").read_text())
    assert content["command"].startswith("basicsr bench --device cpu")
    assert content["environment"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert len(content["rows"][0]["seconds"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "ESC_lite"], "did you mean 'ESC_light'"),
        (["--size", "320"], "320: must be WIDTHxHEIGHT"),
        (["--baseline", "RCAN"], "--baseline RCAN: is not among --models"),
        (["--attn-type", "Nave"], "attn_type is 'Nave'"),
        (["--device", "gpu"], "--device gpu: must be cpu, cuda or cuda:N"),
        (["--device", "cuda:99"], "--device cuda:99: torch finds"),
        (["--device", "cpu", "--cuda-graphs"], "--cuda-graphs: CUDA graphs need a CUDA GPU"),
    ],
)
def test_what_the_user_can_mend_is_one_line(capsys, arguments, message):
    from esc_arch.cli.main import main

    try:
        status = main(["bench", *arguments])
    except SystemExit as stopped:
        status = stopped.code
    error = capsys.readouterr().err
    assert status == 2
    assert message in error and len(error.strip().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_gpu_script_runs_its_steps_on_the_cpu_but_for_what_cuda_alone_has(tmp_path):
    done = subprocess.run(
        ["bash", ROOT / "benchmarks" / "on_gpu.sh", "--cpu-smoke", tmp_path],
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names = "check x4_float32 x2_x3_float32 attention attention_grad train growth"
    names += " batch_1 batch_4 batch_16 batch_64 launches x4_half check_compiled"
    for name in names.split():
        rows = json.loads((tmp_path / f"{name}.json").read_text())["rows"]
        cannot_run = {row.get("backend") for row in rows if row["note"]}
        assert rows and cannot_run <= {"plain-flash-attn"}, name
    assert "FAILED" not in (tmp_path / "log.txt").read_text()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_gpu_script_gives_every_step_options_and_models_that_there_are(tmp_path, monkeypatch):
    class AllRead(Exception):
        pass

    def stop(device):
        assert device == "cuda"
        raise AllRead

    monkeypatch.setattr("esc_arch.cli.bench.checked_device", stop)
    script = ["bash", ROOT / "benchmarks" / "on_gpu.sh", tmp_path]
    subprocess.run(script, env={**os.environ, "PYTHON": "echo"}, check=True, capture_output=True)
    steps = re.findall(r"^== (\w+): python (.*)$", (tmp_path / "log.txt").read_text(), re.MULTILINE)
    assert steps[0][0] == "check" and len(steps) == 15
    for name, command in steps:
        program, *options = command.removeprefix("-m ").split()
        monkeypatch.setattr(sys, "argv", [program, *options])
        with pytest.raises(AllRead):
            if program == "esc_arch.cli":
                main(options)
            else:
                runpy.run_path(str(ROOT / program), run_name="__main__")
        if program == "esc_arch.cli":
            rest = options[options.index("--models") + 1 :]
            for text in itertools.takewhile(lambda option: not option.startswith("-"), rest):
                assert parse_contender(text).runtime is None, (name, text)


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_other_runtimes_compute_the_same_network(runtime, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip({"onnx": "onnxruntime"}.get(runtime, runtime))
    file = str(tiny_option_file(tmp_path / "tiny.yml"))
    theirs = NetworkJob(parse_contender(f"{file}:{runtime}"), 2, 16, 8, 1, "cpu")
    ours = NetworkJob(parse_contender(file), 2, 16, 8, 1, "cpu")
    assert theirs.contender.label == f"tiny:{runtime}"
    found, expected = (job.prepare() for job in (theirs, ours))
    assert found.facts == expected.facts
    torch.testing.assert_close(found.run(), expected.run(), atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="on the CPU only"):
        NetworkJob(theirs.contender, 2, 16, 8, 1, "cuda").prepare()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("ESC:Naive:onnx", "no attn_type, dtype or compile"),
        ("ESC:openvino:bfloat16", "no attn_type, dtype or compile"),
        ("SwinIR_light:onnx", "SwinIR is not exported"),
        ("ESC:tensorrt", "nor a runtime"),
    ],
)
def test_rows_that_no_runtime_runs_are_refused(text, match):
    with pytest.raises(UserError, match=match):
        parse_contender(text)


def test_runtimes_do_not_train(capsys):
    assert main(["bench", "train", "--device", "cpu", "--models", "ESC_light:onnx"]) == 2
    assert "onnx trains nothing" in capsys.readouterr().err
