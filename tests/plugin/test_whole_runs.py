"""Runs that BasicSR ends early, mixes up or loses: here they end where the options say."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from published_templates import ESC
from runs_in_process import (
    WriteOptions,
    command,
    folder,  # noqa: F401  (each test starts in it)
    iterations,
    log_of,
    refused,
    state,
    told,
    train,
)

ROTATED = 6


@pytest.mark.parametrize(("batch", "total"), [(3, 20), (8, 5)])
def test_a_run_goes_on_to_total_iter_where_epochs_leave_samples_over(
    batch: int, total: int, write_train_options: WriteOptions
):
    # 8 pictures: batches of 3 leave two over.
    log = train(
        write_train_options({"datasets:train:batch_size_per_gpu": batch, "train:total_iter": total})
    )
    assert iterations(log) == list(range(1, total + 1))
    measured = json.loads(Path("experiments/tiny/validation.json").read_text())
    assert set(map(int, measured["tiny_val"]["psnr"])) <= set(range(1, total + 1))


@pytest.mark.parametrize("val_freq", [2, 3])
def test_the_last_iteration_is_validated_once_and_no_time_is_left_at_it(
    val_freq: int, write_train_options: WriteOptions
):
    options = write_train_options({"val:val_freq": val_freq})
    logs = [train(options), train(write_train_options({"train:total_iter": 7}), "--auto_resume")]
    assert [log.count("Validation tiny_val") for log in logs] == [2, 1]
    for log in logs:
        assert "-1 day" not in log
        assert re.findall("eta: ([^,]*),", log)[-1] == "0:00:00"


def test_a_run_that_is_done_is_not_begun_anew_and_can_be_made_longer(
    write_train_options: WriteOptions,
):
    seldom = {"logger:save_checkpoint_freq": 100}
    train(write_train_options({**seldom, "train:total_iter": 3}))
    assert (
        iterations(train(write_train_options({**seldom, "train:total_iter": 3}), "--auto_resume"))
        == []
    )
    log = train(write_train_options({**seldom, "train:total_iter": 5}), "--auto_resume")
    assert iterations(log) == [4, 5]
    assert [path.name for path in Path("experiments").iterdir()] == ["tiny"]


def test_a_run_resumed_with_other_batches_and_ratio_goes_on_to_total_iter(
    write_train_options: WriteOptions,
):
    first = {"datasets:train:dataset_enlarge_ratio": 4, "train:total_iter": 10}
    train(write_train_options(first))
    second = {"datasets:train:batch_size_per_gpu": 5, "train:total_iter": 24}
    log = train(write_train_options(second), "--auto_resume")
    assert iterations(log) == list(range(11, 25))
    assert state(24)["place_in_data"][0] > 0


def test_fewer_pictures_than_one_batch_are_refused_and_the_older_experiment_stays(
    write_train_options: WriteOptions,
):
    train(write_train_options())
    before = sorted(str(path) for path in Path("experiments").rglob("*"))
    options = write_train_options({"datasets:train:batch_size_per_gpu": 9})
    assert re.search("there are 8 pictures a process: not one batch", refused(options))
    said = refused(options, "--no-preflight")
    assert re.search("8 images.*fewer than one batch of 9.*enlarge_ratio: 2", said)
    assert sorted(str(path) for path in Path("experiments").rglob("*")) == before


def test_an_unknown_key_of_weights_is_refused_and_a_missing_average_is_said(
    write_train_options: WriteOptions,
):
    train(write_train_options({"train:ema_decay": None}))
    weights = str(Path("experiments/tiny/models/net_g_4.pth").resolve())
    path = {"name": "next", "path:pretrain_network_g": weights}
    for key in ("params-emma", "params-ema", "ema"):
        options = write_train_options({**path, "path:param_key_g": key})
        assert f"has no '{key}', only params" in refused(options)
        assert re.search(f"'{key}'.*it has params", refused(options, "--no-preflight"))
    options = write_train_options({**path, "path:param_key_g": 5})
    assert refused(options) == "path:param_key_g: must be text, not 5"
    options = write_train_options({**path, "path:param_key_g": "params_ema"})
    status, said = command("train", "-opt", options)
    assert status == 0 and "basicsr: warning: path:param_key_g: " in said
    log = log_of("next")
    assert "no weights under params_ema: params is taken instead" in log
    assert f"from {weights} [params]." in log


def test_the_log_names_no_key_that_a_file_lacks_and_resizing_once(
    write_train_options: WriteOptions,
):
    from basicsr.archs import build_network

    torch.save(build_network({**ESC, "upscaling_factor": 3}).state_dict(), "flat.pth")
    changes = {"path:pretrain_network_g": "flat.pth", "train:total_iter": 1}
    log = train(write_train_options({"network_g": {**ESC, "upscaling_factor": 2}, **changes}))
    assert log.count("from flat.pth [the only weights in it]") == 2
    assert "[params" not in log
    assert log.count("weights of another scale") == 1


def test_debug_within_a_name_changes_nothing(write_train_options: WriteOptions):
    options = write_train_options({"name": "undebugged", "logger:print_freq": 2})
    assert iterations(train(options, name="undebugged")) == [2, 4]
    assert (Path("experiments/undebugged/training_states") / "2.state").is_file()
    status, said = command("train", "-opt", write_train_options({"name": "debug_x"}))
    assert status == 0 and "basicsr: warning: name: begins with debug: BasicSR sets print_" in said


def test_a_log_without_tensorboard_and_empty_text_for_no_weights_will_do(
    write_train_options: WriteOptions,
):
    options = {"logger:use_tb_logger": None, "path:pretrain_network_g": ""}
    assert iterations(train(write_train_options(options))) == [1, 2, 3, 4]


def test_a_second_run_of_a_name_is_refused_while_the_first_goes_on(
    write_train_options: WriteOptions,
):
    train(write_train_options())
    hold = (
        "import fcntl, os, sys\n"
        "fcntl.flock(os.open('experiments/tiny', os.O_RDONLY), fcntl.LOCK_EX)\n"
        "print('held', flush=True)\nsys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        for flags in ([], ["--auto_resume"]):
            said = refused(write_train_options({"train:total_iter": 6}), *flags)
            assert said.startswith("name: tiny: another run writes into")
        other.stdin.close()
    log = train(write_train_options({"train:total_iter": 6}), "--auto_resume")
    assert iterations(log) == [5, 6]


@pytest.mark.parametrize("what", ["-opt", "path: pretrain_network_g", "datasets: val: dataroot_gt"])
def test_the_experiments_own_files_are_not_moved_away_from_under_the_run(
    what: str, write_train_options: WriteOptions, paired_data: Any
):
    options = write_train_options()
    train(options)
    if "dataroot" in what:
        own = Path("experiments/tiny/own")
        shutil.copytree(paired_data.val_gt, own)
        options = write_train_options({"datasets:val:dataroot_gt": str(own)})
    elif what == "-opt":
        options = Path(shutil.copy(options, "experiments/tiny/own.yml"))
    else:
        weights = str(Path("experiments/tiny/models/net_g_4.pth").resolve())
        options = write_train_options({"path:pretrain_network_g": weights})
    assert re.match(f"{what}: .* is in .*which this run would rename", refused(options))
    assert not list(Path("experiments").glob("*_archived_*"))


def test_prefetching_without_workers_gives_the_same_as_loading_without(
    write_train_options: WriteOptions,
):
    ends = []
    for mode in (None, "cpu"):
        options = write_train_options({"datasets:train:prefetch_mode": mode})
        train(options)
        ends.append(torch.load("experiments/tiny/models/net_g_4.pth", weights_only=True))
    for first, second in zip(*(end["params"].values() for end in ends), strict=True):
        assert torch.equal(first, second)


def test_prefetching_ends_with_the_name_of_an_unreadable_sample(
    write_train_options: WriteOptions, paired_data: Any, tmp_path: Path
):
    import lmdb

    copy = tmp_path / "broken.lmdb"
    shutil.copytree(paired_data.train_gt, copy)
    with lmdb.open(str(copy)) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"rocket_180", transaction.get(b"rocket_180")[:200])
    options = write_train_options(
        {
            "datasets:train:prefetch_mode": "cpu",
            "datasets:train:num_worker_per_gpu": 1,
            "datasets:train:dataroot_gt": str(copy),
            "train:total_iter": 8,
        }
    )
    assert re.search("key 'rocket_180' of .*broken.lmdb: not a whole image", refused(options))


def test_without_manual_seed_two_resumptions_are_the_same(write_train_options: WriteOptions):
    options = {"manual_seed": None, "train:total_iter": 4}
    train(write_train_options(options))
    assert 1 <= state(4)["seed"] <= 10000
    shutil.copytree("experiments/tiny", "experiments/kept")
    ends = []
    for _ in range(2):
        shutil.rmtree("experiments/tiny")
        shutil.copytree("experiments/kept", "experiments/tiny")
        train(write_train_options({**options, "train:total_iter": 8}), "--auto_resume")
        ends.append(torch.load("experiments/tiny/models/net_g_8.pth", weights_only=True)["params"])
    assert all(map(torch.equal, ends[0].values(), ends[1].values()))


def test_an_exact_warmup_leaves_the_schedule_as_it_is(write_train_options: WriteOptions):
    schedule = {"type": "MultiStepLR", "milestones": [2, 6], "gamma": 0.5}
    options = {
        "train:scheduler": schedule,
        "train:warmup_iter": 4,
        "train:total_iter": 8,
        "logger:save_checkpoint_freq": 1,
    }
    log = train(write_train_options(options))
    assert "the learning rate stays at 3/4 of its value for good" in log
    train(write_train_options({**options, "train:warmup": "exact"}))
    rates = [state(i)["optimizers"][0]["param_groups"][0]["lr"] for i in range(1, 9)]
    shares = [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]
    factors = [1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert rates == pytest.approx([1e-3 * s * f for s, f in zip(shares, factors, strict=True)])
    for path in Path("experiments/tiny").rglob("*[4-8].*"):
        if path.suffix in (".state", ".pth"):
            path.unlink()
    train(write_train_options({**options, "train:warmup": "exact"}), "--auto_resume")
    assert [state(i)["optimizers"][0]["param_groups"][0]["lr"] for i in range(1, 9)] == rates


def test_a_schedule_that_ends_early_saves_first(write_train_options: WriteOptions):
    cosine = {"type": "CosineAnnealingRestartLR", "periods": [3], "restart_weights": [1]}
    options = write_train_options(
        {"train:scheduler": cosine, "train:total_iter": 9, "logger:save_checkpoint_freq": 100}
    )
    assert "periods: end after 3 iterations, but total_iter is 9" in refused(options)
    said = refused(options, "--no-preflight")
    assert said.startswith("train: scheduler: has no learning rate for iteration")
    (saved,) = Path("experiments/tiny/training_states").glob("*.state")
    reached = int(saved.stem)
    # The state is that of the last whole iteration, so longer periods go on from there.
    assert state(reached)["schedulers"][0]["last_epoch"] == reached - 1
    longer = {**cosine, "periods": [9]}
    changes = {"train:scheduler": longer, "path:resume_schedule": "options", "train:total_iter": 9}
    log = train(write_train_options(changes), "--auto_resume")
    assert iterations(log) == list(range(reached + 1, 10))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train:optim_g": {"type": "SGD", "lr": 0.1, "momentum": 0.9}},
            "optimizer 1 does not fit SGD of the options",
        ),
        (
            {
                "train:scheduler": {
                    "type": "CosineAnnealingRestartLR",
                    "periods": [8],
                    "restart_weights": [1],
                }
            },
            "train: scheduler: CosineAnnealingRestartLR: the training state is of another kind",
        ),
        ({"network_g:num_block": 2}, "optimizer 1 is of"),
    ],
)
def test_a_state_of_other_options_is_refused_in_one_line(
    changes: dict[str, Any], message: str, write_train_options: WriteOptions
):
    train(write_train_options())
    changes = {"path:resume_state": "experiments/tiny/training_states/4.state", **changes}
    changes["path:ignore_resume_networks"] = "network_g"
    assert message in refused(write_train_options({"train:total_iter": 8, **changes}))


def test_a_state_with_moments_of_another_size_is_refused_and_flags_are_the_options(
    write_train_options: WriteOptions,
):
    train(write_train_options())
    path = Path("experiments/tiny/training_states/4.state")
    crafted = state(4)
    crafted["optimizers"][0]["param_groups"][0]["fused"] = True
    torch.save(crafted, path)
    train(write_train_options({"train:total_iter": 6}), "--auto_resume")
    assert state(6)["optimizers"][0]["param_groups"][0]["fused"] is None

    crafted = state(6)
    crafted["optimizers"][0]["state"][0]["exp_avg"] = torch.zeros(1)
    torch.save(crafted, Path("experiments/tiny/training_states/6.state"))
    said = refused(write_train_options({"train:total_iter": 8}), "--auto_resume")
    assert re.search(r"optimizer 1 does not fit Adam.*exp_avg \(1,\)", said)


@pytest.mark.parametrize("phase", ["train", "val"])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_picture_of_a_pair_that_is_turned_is_refused_by_name(
    phase: str, suffix: str, write_train_options: WriteOptions, photographs: Any, tmp_path: Path
):
    # Square, so that sizes tell nothing.
    exif = Image.Exif()
    exif[0x0112] = ROTATED
    for side, size in (("gt", 64), ("lq", 32)):
        (tmp_path / side).mkdir()
        for name in "ab":
            image = Image.fromarray(photographs["chelsea"][:64, :64]).resize((size, size))
            path = tmp_path / side / f"{name}{suffix}"
            image.rotate(90).save(path, exif=exif) if name == "b" and side == "gt" else image.save(
                path
            )
    changes = {
        f"datasets:{phase}:dataroot_gt": str(tmp_path / "gt"),
        f"datasets:{phase}:dataroot_lq": str(tmp_path / "lq"),
        f"datasets:{phase}:filename_tmpl": "{}",
        f"datasets:{phase}:io_backend": {"type": "disk"},
    }
    options = write_train_options(changes)
    said = refused(options)
    assert f"b{suffix} has EXIF orientation 1, but its partner in dataroot_gt 6: one of" in said
    said = refused(options, "--no-preflight")
    assert re.search(rf"gt/b\{suffix} .*EXIF orientation 6 of GT and 1 of LQ", said)
    # Turned alike, they are a right pair.
    image = Image.open(tmp_path / "lq" / f"b{suffix}")
    image.rotate(90).save(tmp_path / "lq" / f"b{suffix}", exif=exif)
    train(options)


def test_optim_d_as_an_alias_is_a_mapping_of_its_own(
    write_train_options: WriteOptions, monkeypatch: pytest.MonkeyPatch
):
    from basicsr.utils.options import parse_options

    path = write_train_options()
    text = path.read_text().replace("  optim_g:", "  optim_g: &adam")
    path.write_text(text.replace("  total_iter:", "  optim_d: *adam\n  total_iter:"))
    monkeypatch.setattr(sys, "argv", ["train", "-opt", str(path)])
    opt, _ = parse_options(str(Path.cwd()), is_train=True)
    assert opt["train"]["optim_d"] == opt["train"]["optim_g"]
    assert opt["train"]["optim_d"] is not opt["train"]["optim_g"]


def test_checkpoints_behind_a_link_are_not_removed(write_train_options: WriteOptions):
    options = {"logger:keep_checkpoints": 1, "logger:save_checkpoint_freq": 1, "val:val_freq": 100}
    train(write_train_options({**options, "train:total_iter": 2}))
    models = Path("experiments/tiny/models")
    models.rename("elsewhere")
    models.symlink_to(Path("elsewhere").resolve())
    log = train(write_train_options({**options, "train:total_iter": 5}), "--auto_resume")
    assert {f"net_g_{i}.pth" for i in (2, 3, 4, 5)} <= {p.name for p in models.iterdir()}
    assert "is a link: nothing behind it is removed" in log


@pytest.mark.parametrize(("version", "warned"), [("2.9.1+cpu", True), ("2.10.0", False)])
def test_pickles_on_a_pytorch_that_lets_code_through_are_warned_of(
    version: str, warned: bool, monkeypatch: pytest.MonkeyPatch
):
    from esc_arch.plugin.models import pretrained

    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(pretrained, "_warned", [])
    with told() as lines:
        pretrained._warn_of_pickles("some.safetensors")
        assert not lines
        pretrained._warn_of_pickles("some.pth")
        pretrained._warn_of_pickles("other.pth")
    assert len(lines) == warned


def test_experiments_go_where_the_options_put_them(
    write_train_options: WriteOptions, tmp_path: Path
):
    root = {"path:experiments_root": str(tmp_path / "disk"), "train:total_iter": 2}
    assert command("train", "-opt", write_train_options(root))[0] == 0
    assert (tmp_path / "disk/tiny/models/net_g_2.pth").is_file()
    options = write_train_options({**root, "train:total_iter": 4})
    assert command("train", "-opt", options, "--auto_resume")[0] == 0
    assert (tmp_path / "disk/tiny/training_states/4.state").is_file()
    assert not (tmp_path / "experiments").exists()
