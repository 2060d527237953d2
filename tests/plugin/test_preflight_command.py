"""What preflight forgives trains and tests through `basicsr`; what it refuses makes no file."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from esc_arch.cli.main import main

WriteOptions = Callable[..., Path]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.slow
def test_files_that_yaml_and_basicsr_read_otherwise_train_and_test(
    write_train_options: WriteOptions, write_test_options: WriteOptions, run_basicsr: Run
) -> None:
    path = write_train_options(
        {
            "datasets:train:batch_size_per_gpu": 2.0,
            "datasets:train:gt_size": 32.0,
            "train:total_iter": 2.0,
        }
    )
    options = yaml.safe_load(path.read_text())
    val = options["datasets"].pop("val")
    text = yaml.safe_dump(options, sort_keys=False)
    # A merge key, one section under two names, letters beyond ASCII, and one key twice alike.
    text += "common: &common\n" + "".join(f"  {k}: {v!r}\n" for k, v in val.items() if k != "name")
    text = text.replace("  optim_g:\n", "  optim_g: &optim\n").replace(
        "  scheduler:\n", "  optim_d: *optim\n  scheduler:\n"
    )
    text = f"# 試験\n{text}name: tiny\n"
    block = text[text.index("common: &common") :].replace("name: tiny\n", "")
    text = block + text.replace(block, "").replace(
        "datasets:\n", "datasets:\n  val:\n    <<: *common\n    name: tiny_val\n"
    )
    path.write_text(text, encoding="utf-8")
    ascii_only = {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}

    result = run_basicsr("train", "-opt", path, env=ascii_only)
    assert result.returncode == 0, result.stderr[-3000:]
    warnings = [line for line in result.stderr.splitlines() if "basicsr: warning: " in line]
    assert warnings == [
        "basicsr: warning: common: nothing reads this key, it has no effect",
        "basicsr: warning: train:optim_d: nothing reads this key, it has no effect"
        + warnings[1].partition("no effect")[2],
    ]

    # BasicSR asks for `suffix` as it saves the first image.
    path = write_test_options({"val:suffix": None, "path": {"strict_load_g": True}})
    result = run_basicsr("test", "-opt", path)
    assert result.returncode == 2
    [line] = [line for line in result.stderr.splitlines() if line.startswith("basicsr: error: ")]
    assert "path:pretrain_network_g: missing: the network would be random" in line
    result = run_basicsr("test", "-opt", path, "--random-weights")
    assert result.returncode == 0, result.stderr[-3000:]


def test_a_finding_can_be_passed_by_but_not_what_is_unsafe(
    write_train_options: WriteOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    path = str(write_train_options({"train:ssim_opt": {"type": "SSIMLoss"}, "train:total_iter": 1}))
    assert main(["train", "-opt", path]) == 2
    assert "train:ssim_opt: nothing reads this key" in capsys.readouterr().err
    assert not (tmp_path / "experiments").exists()

    memcached = {"type": "memcached", "sys_path": str(tmp_path)}
    unsafe = str(write_train_options({"datasets:train:io_backend": memcached}))
    (tmp_path / "mc.py").write_text("open('ran', 'w')")
    extra = [f"path:extra={tmp_path}/made"]
    for flags in ([], ["--no-preflight"]):
        assert main(["train", "-opt", unsafe, *flags, "--force_yml", *extra]) == 2
        errors = capsys.readouterr().err
        assert "io_backend:type: memcached is refused" in errors
        assert "path:extra: nothing reads this key, and BasicSR makes a folder of it" in errors
    assert not {"experiments", "made", "ran"} & {file.name for file in tmp_path.iterdir()}

    path = str(write_train_options({"train:ssim_opt": {"type": "SSIMLoss"}, "train:total_iter": 1}))
    assert main(["train", "-opt", path, "--no-preflight"]) == 0
    assert (tmp_path / "experiments" / "tiny" / "models" / "net_g_latest.pth").is_file()
