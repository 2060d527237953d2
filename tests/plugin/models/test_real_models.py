"""The Real-ESRGAN models, which are BasicSR's: resumed exactly, and sparing bad steps."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from esc_arch.cli.main import main
from esc_arch.errors import UserError
from esc_arch.plugin.models.durable import durable

# isort: split
# Importable only once esc_arch has mended it.
from basicsr.utils import set_random_seed
from basicsr.utils.registry import MODEL_REGISTRY

OPTIONS = Path(__file__).parents[3] / "options"
TINY_NETWORKS = {
    "network_g": {"type": "MSRResNet", "num_feat": 4, "num_block": 1, "upscale": 4},
    "network_d": {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 4},
}


def load(name: str) -> dict[str, Any]:
    """One of our option files with tiny networks, patches and pool, and without VGG."""
    options = yaml.safe_load((OPTIONS / f"{name}.yml").read_text())
    options.update({key: dict(TINY_NETWORKS[key]) for key in TINY_NETWORKS if key in options})
    options["path"] = {"strict_load_g": True}
    options["train"].pop("perceptual_opt", None)
    return {**options, "num_gpu": 0, "gt_size": 32, "queue_size": 2}


def write(folder: Path, name: str, gt: Path, total_iter: int) -> Path:
    """Write an option file: batches of 1 of a pool of 2, saved every 2 iterations."""
    options = load(name)
    options.pop("val")
    train = options["datasets"]["train"]
    train.update(dataroot_gt=str(gt), io_backend={"type": "lmdb"})
    train.update(batch_size=1, num_worker_per_gpu=0)
    options["datasets"] = {"train": train}
    options["train"]["total_iter"] = total_iter
    logger = {"print_freq": 1, "save_checkpoint_freq": 2, "use_tb_logger": False}
    path = folder / "real.yml"
    path.write_text(yaml.safe_dump({**options, "name": "real", "logger": logger}))
    return path


@pytest.mark.parametrize(
    "name",
    [pytest.param("train_ESC_Real_x4_MSE", marks=pytest.mark.slow), "train_ESC_Real_x4_GAN"],
)
def test_a_resumed_run_draws_the_same_pairs_from_its_pool(
    name: str, tmp_path: Path, paired_data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = {}
    for run, lengths in {"whole": [4], "resumed": [2, 4]}.items():
        (tmp_path / run).mkdir()
        monkeypatch.chdir(tmp_path / run)
        for total_iter in lengths:
            options = write(Path(), name, paired_data.train_gt, total_iter)
            assert main(["train", "-opt", str(options), "--auto_resume"]) == 0
        experiment = Path("experiments/real")
        pools = {path.name for path in experiment.glob("training_states/*.pool*")}
        assert pools == {"2.pool0", "4.pool0"}
        pool = experiment / "training_states" / "4.pool0"
        files = [*sorted(experiment.glob("models/net_?_4.pth")), pool]
        ends[run] = {file.name: torch.load(file, weights_only=True) for file in files}
    assert ends["whole"]["4.pool0"]["queue_ptr"] == 2
    cards = [end["net_g_4.pth"].pop("card") for end in ends.values()]
    assert cards[0] == cards[1]
    torch.testing.assert_close(ends["resumed"], ends["whole"], rtol=0, atol=0)


def build(name: str, folder: Path, **train: Any) -> Any:
    options = load(name)
    options.update(dist=False, rank=0, world_size=1, is_train=True)
    options["path"] = {key: str(folder) for key in ("models", "training_states")}
    options["train"].update(train)
    set_random_seed(0)
    return durable(MODEL_REGISTRY.get(options["model_type"]))(options)


def batch(value: float) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    kernel = torch.zeros(2, 21, 21)
    kernel[:, 10, 10] = 1
    gt = torch.from_numpy(generator.random((2, 3, 96, 96), np.float32)) * value
    names = ["first.png", "second.png"]
    return {"gt": gt, **dict.fromkeys(("kernel1", "kernel2", "sinc_kernel"), kernel)} | {
        "gt_path": names
    }


def step(model: Any, current_iter: int, value: float) -> None:
    model.update_learning_rate(current_iter)
    model.feed_data(batch(1))
    # After the degradation, which clips.
    model.gt, model.gt_usm = model.gt * value, model.gt * value
    model.optimize_parameters(current_iter)


@pytest.mark.parametrize("name", ["train_ESC_Real_x4_MSE", "train_ESC_Real_x4_GAN"])
def test_a_step_that_is_not_finite_is_left_out(name: str, tmp_path: Path) -> None:
    model = build(name, tmp_path, max_bad_steps=3)
    networks = [model.net_g, *([model.net_d] if hasattr(model, "net_d") else [])]

    def parameters() -> list[list[torch.Tensor]]:
        return [[p.detach().clone() for p in network.parameters()] for network in networks]

    before = parameters()
    step(model, 1, 1)
    first = parameters()
    assert not torch.equal(before[0][0], first[0][0])

    states = copy.deepcopy([optimizer.state_dict() for optimizer in model.optimizers])
    step(model, 2, float("nan"))
    torch.testing.assert_close(parameters(), first, rtol=0, atol=0)
    for optimizer, state in zip(model.optimizers, states, strict=True):
        torch.testing.assert_close(optimizer.state_dict()["state"], state["state"])

    step(model, 3, 1)
    assert not torch.equal(parameters()[0][0], first[0][0])
    step(model, 4, float("inf"))
    step(model, 5, float("nan"))
    with pytest.raises(UserError, match="at iteration 6 .* in a row; .* images first.png, second"):
        step(model, 6, float("nan"))
