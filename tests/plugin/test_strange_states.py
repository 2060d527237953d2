"""Training states from strangers: gone on from, or refused in one line; they set nothing else."""

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from option_data import picture, write_folder
from published_templates import ABSENT, REAL, Published
from runs_in_process import (
    WriteOptions,
    folder,  # noqa: F401  (each test starts in it)
    iterations,
    refused,
    state,
    train,
)

from esc_arch.plugin.models.pair_pool import load_pool

STATE = Path("experiments/tiny/training_states/4.state")


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.pop(key)


def with_value(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.update({key: value})


def moment(make: Callable[[torch.Tensor], Any], name: str = "exp_avg"):
    """Another moment of the first parameter; of the same shape, where it is a tensor."""

    def change(state: dict[str, Any]) -> None:
        moments = state["optimizers"][0]["state"][0]
        moments[name] = make(moments[name])

    return change


def schedule(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state["schedulers"][0].update({key: value})


def generator(name: str, place: int, value: Any) -> Callable[[dict[str, Any]], None]:
    """Another part of a random generator's state."""
    return lambda state: state["random"][0][name].__setitem__(place, value)


def group(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state["optimizers"][0]["param_groups"][0].update({key: value})


REFUSED: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (without("iter"), "4.state: not a training state: it has no iter; weights go to path: pre"),
    (without("epoch"), "not a training state: it has no epoch"),
    (without("optimizers"), "not a training state: it has no optimizers"),
    (with_value("iter", "4"), "not a training state: it has no iter"),
    (with_value("iter", -1), "damaged: epoch, iter and place_in_data must be whole numbers from 0"),
    (with_value("iter", 10**30), "damaged: epoch, iter and place_in_data must be whole numbers"),
    (with_value("iter", True), "damaged: epoch, iter and place_in_data must be whole numbers"),
    (with_value("place_in_data", [0, -5]), "damaged: epoch, iter and place_in_data"),
    (with_value("place_in_data", 5), "damaged: epoch, iter and place_in_data"),
    (with_value("optimizers", []), "does not hold 1 optimizers"),
    (with_value("optimizers", [{}]), "optimizer 1 is damaged"),
    (with_value("optimizers", [{"state": 5, "param_groups": [5]}]), "optimizer 1 is damaged"),
    (moment(lambda t: torch.zeros(1).expand(t.shape)), "'exp_avg' claims 216 values but the file"),
    (moment(lambda t: t.to_sparse()), "'exp_avg' is not a plain tensor"),
    (moment(lambda t: t.to("meta")), "'exp_avg' is not a plain tensor"),
    (moment(lambda t: torch.complex(t, t)), "'exp_avg' is of torch.complex64"),
    (moment(lambda t: t[:1]), "optimizer 1 does not fit Adam of the options: it holds"),
    (moment(lambda t: "x"), "optimizer 1 does not fit Adam of the options: it holds"),
    (moment(lambda t: torch.tensor(-1.0), "step"), "optimizer 1 is damaged: its step is -1.0"),
    (moment(lambda t: t * float("nan"), "step"), "optimizer 1 is damaged: its step is nan"),
    (moment(lambda t: t.bool(), "step"), "optimizer 1 is damaged: result type"),
    (moment(lambda t: "x", "step"), "optimizer 1 does not fit Adam of the options: it holds step "),
    (moment(lambda t: 10**400, "step"), "optimizer 1 does not fit Adam of the options: it holds "),
    (moment(lambda t: t * float("nan")), "optimizer 1 is damaged: its exp_avg is not finite"),
    (moment(lambda t: t - 1, "exp_avg_sq"), "optimizer 1 is damaged: a step from it is not finite"),
    (group("betas", (2.0, 5.0)), "optimizer 1 is damaged: Invalid beta parameter at index 0: 2.0"),
    (group("lr", -1.0), "optimizer 1 is damaged: Invalid learning rate: -1.0"),
    (
        group("weight_decay", float("inf")),
        "optimizer 1 is damaged: weight_decay is of another kind",
    ),
    (group("betas", "xx"), "optimizer 1 is damaged: betas is of another kind than (0.9, 0.999)"),
    (group("betas", [0.9]), "optimizer 1 is damaged: betas is of another kind"),
    (group("lr", float("nan")), "optimizer 1 is damaged: lr is of another kind"),
    (group("amsgrad", "x"), "optimizer 1 is damaged: amsgrad is of another kind than False"),
    (with_value("schedulers", [{}]), "the training state's scheduler is damaged"),
    (with_value("schedulers", ["x"]), "the training state's scheduler is damaged"),
    # Spelled out, it fills the memory.
    (schedule("milestones", Counter({3: 10**12})), "scheduler is damaged: milestones is of anoth"),
    (schedule("milestones", {3: 1}), "scheduler is damaged: milestones is of another kind"),
    (schedule("milestones", Counter("x")), "scheduler is damaged: milestones is of another kind"),
    (schedule("gamma", "x"), "scheduler is damaged: gamma is of another kind than 0.5"),
    (schedule("gamma", float("nan")), "scheduler is damaged: gamma is of another kind"),
    (schedule("restarts", "x"), "scheduler is damaged: restarts is of another kind than (0,)"),
    (schedule("last_epoch", None), "scheduler is damaged: last_epoch is of another kind than"),
    (schedule("base_lrs", [float("inf")]), "scheduler is damaged: base_lrs is of another kind"),
    # Read from there without a look.
    (
        generator("numpy", 2, 10**6),
        "the training state cannot be gone on from (ValueError: NumPy's",
    ),
    (generator("numpy", 2, -10), "the training state cannot be gone on from (ValueError: NumPy's"),
    (generator("numpy", 1, torch.zeros(1).expand(2**40)), "the training state cannot be gone on"),
    (generator("python", 2, "x"), "the training state cannot be gone on from (ValueError: a rand"),
    (with_value("random", 5), "the training state cannot be gone on from"),
    (with_value("random", [{"python": [1]}]), "the training state cannot be gone on from"),
    (with_value("warmup", "x"), "the training state's warmup is damaged"),
    (with_value("warmup", [[float("nan")]]), "the training state's warmup is damaged"),
    (with_value("warmup", [["x"]]), "the training state cannot be gone on from"),
]


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test keeps what it has trained."""
    return tmp_path_factory.mktemp("older") / "experiments"


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_a_state_that_cannot_be_gone_on_from_is_refused_in_one_line(
    case: int, older: Path, write_train_options: WriteOptions
):
    if not older.exists():
        train(write_train_options())
        shutil.copytree("experiments", older)
    shutil.rmtree("experiments", ignore_errors=True)
    shutil.copytree(older, "experiments")
    change, expected = REFUSED[case]
    crafted = state(4)
    change(crafted)
    torch.save(crafted, STATE)
    before = sorted(Path("experiments/tiny").rglob("*.pth"))
    said = refused(write_train_options({"train:total_iter": 6}), "--auto_resume")
    assert expected in said and len(said.splitlines()) == 1
    assert sorted(Path("experiments/tiny").rglob("*.pth")) == before


def test_moments_whose_memory_overlaps_are_copied_before_anything_is_written(
    write_train_options: WriteOptions,
):
    options = {"train:optim_g": {"type": "Adam", "lr": 1e-3, "fused": True}}
    train(write_train_options(options))
    crafted = state(4)
    moments = crafted["optimizers"][0]["state"][0]
    # Enough bytes in all, and none behind its beginning.
    storage, shape = torch.rand(moments["exp_avg"].numel()), moments["exp_avg"].shape
    moments["exp_avg"] = storage[-1:].as_strided(shape, [0] * len(shape))
    crafted["schedulers"][0] |= {"step": "x", "optimizer": 5}
    torch.save(crafted, STATE)
    longer = {**options, "train:total_iter": 6}
    assert iterations(train(write_train_options(longer), "--auto_resume")) == [5, 6]
    assert state(6)["optimizers"][0]["state"][0]["exp_avg"].is_contiguous()


def test_moments_that_share_memory_are_told_apart(write_train_options: WriteOptions):
    train(write_train_options())
    crafted = state(4)
    groups = crafted["optimizers"][0]["param_groups"]
    moments = crafted["optimizers"][0]["state"][0]
    moments["exp_avg"] = moments["exp_avg_sq"] = moments["exp_avg_sq"].clone()
    # Of weights that lie in memory otherwise.
    moments["exp_avg"] = moments["exp_avg"].contiguous(memory_format=torch.channels_last)
    groups[0]["amsgrad"] = True
    torch.save(crafted, STATE)
    train(write_train_options({"train:total_iter": 6}), "--auto_resume")
    after = state(6)["optimizers"][0]
    assert not after["param_groups"][0]["amsgrad"]
    one, other = (after["state"][0][name] for name in ("exp_avg", "exp_avg_sq"))
    assert one.data_ptr() != other.data_ptr() and not torch.equal(one, other)


@pytest.mark.parametrize(
    "kind", ["NAdam", "Adafactor", "Rprop", "ASGD", "RMSprop", "SGD", "pytorch_optimizer.SOAP"]
)
def test_honest_states_of_any_optimizer_are_gone_on_from(
    kind: str, write_train_options: WriteOptions
):
    if "." in kind:
        pytest.importorskip("pytorch_optimizer")
    elif not hasattr(torch.optim, kind):
        pytest.skip(f"this PyTorch has no {kind}")
    options = {"train:optim_g": {"type": kind, "lr": 1e-3}}
    train(write_train_options(options))
    longer = write_train_options({**options, "train:total_iter": 6})
    assert iterations(train(longer, "--auto_resume")) == [5, 6]


@pytest.mark.parametrize("seed", [-5, 10**30, "x", None])
def test_a_seed_that_is_none_is_drawn_anew(seed: Any, write_train_options: WriteOptions):
    train(write_train_options({"manual_seed": None}))
    torch.save({**state(4), "seed": seed}, STATE)
    longer = {"manual_seed": None, "train:total_iter": 5}
    assert iterations(train(write_train_options(longer), "--auto_resume")) == [5]


POOL = {"queue_lr": torch.rand(4, 3, 8, 8), "queue_gt": torch.rand(4, 3, 32, 32), "queue_ptr": 2}


@pytest.mark.parametrize(
    "change",
    [
        {"queue_lr": POOL["queue_lr"][:2]},
        {"queue_gt": POOL["queue_gt"].to_sparse()},
        {"queue_gt": POOL["queue_gt"].int()},
        {"queue_gt": POOL["queue_gt"][0]},
        {"queue_gt": "x"},
        {"queue_lr": None},
        {"queue_ptr": -2},
        {"queue_ptr": 6},
        # No multiple of a batch.
        {"queue_ptr": 3},
        {"queue_ptr": "2"},
    ],
    ids=[
        "short",
        "sparse",
        "integers",
        "one",
        "text",
        "none",
        "before",
        "behind",
        "no multiple",
        "a word",
    ],
)
def test_a_pool_of_other_pairs_is_not_taken(change: dict[str, Any], tmp_path: Path):
    model = SimpleNamespace(
        queue_size=4, device="cpu", opt={"datasets": {"train": {"batch_size_per_gpu": 2}}}
    )
    torch.save({**POOL, **change}, tmp_path / "2.pool0")
    assert not load_pool(model, tmp_path, 2)
    assert not hasattr(model, "queue_ptr")


@pytest.mark.slow
def test_a_pool_of_training_pairs_sets_nothing_but_itself(tmp_path: Path):
    write_folder(tmp_path / "gt", {name: picture(128) for name in "ab"})
    (tmp_path / "list.txt").write_text("a.png\nb.png\n")
    changes = {
        **REAL,
        "name": "tiny",
        "datasets:train:num_worker_per_gpu": 0,
        "queue_size": 4,
        "logger:print_freq": 1,
        "logger:save_checkpoint_freq": 2,
        "val": None,
        "datasets:val": ABSENT,
    }
    path = tmp_path / "options.yml"

    def write(total_iter: int) -> Path:
        options = Published("", {**changes, "train:total_iter": total_iter}).options()
        path.write_text(yaml.safe_dump(options))
        return path

    train(write(2))
    file = Path("experiments/tiny/training_states/2.pool0")
    pool = torch.load(file, weights_only=True)
    assert sorted(pool) == sorted(POOL) and pool["queue_ptr"] == 4
    elsewhere = {"path": {"models": str(tmp_path / "elsewhere")}}
    torch.save({**pool, "opt": elsewhere, "save": torch.zeros(1)}, file)
    log = train(write(4), "--auto_resume")
    assert iterations(log) == [3, 4] and "No whole pool" not in log
    assert Path("experiments/tiny/models/net_g_4.pth").is_file()
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("plant", [os.symlink, os.link])
def test_links_in_an_experiment_are_not_written_through(
    plant: Callable[[str, Path], None], write_train_options: WriteOptions
):
    options = {"val:save_img": True, "val:val_freq": 2}
    train(write_train_options(options))
    Path("precious").write_text("precious")
    experiment = Path("experiments/tiny")
    names = ["train.yml", "validation.json", "models/net_g_latest.pth", "models/net_g_6.pth"]
    names += ["training_states/6.state", "visualization/chelseax2/chelseax2_6.png"]
    for name in names:
        (experiment / name).unlink(missing_ok=True)
        plant(Path("precious").resolve(), experiment / name)
    train(write_train_options({**options, "train:total_iter": 6}), "--auto_resume")
    assert Path("precious").read_text() == "precious"
    for name in names:
        assert not (experiment / name).is_symlink() and (experiment / name).stat().st_nlink == 1


def test_a_run_goes_on_by_the_option_file_in_its_experiment(write_train_options: WriteOptions):
    train(write_train_options({"train:total_iter": 2}))
    log = train(
        Path("experiments/tiny/train.yml"), "--auto_resume", "--force_yml", "val:val_freq=9"
    )
    assert "Resuming training from epoch: 0, iter: 2" in log
