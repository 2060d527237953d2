"""Options of the authors' files with every model that may train an ESC: done, or refused."""

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
from esc_arch.plugin.preflight import check_options

# isort: split
# Importable only once esc_arch has mended it.
from basicsr.utils.registry import MODEL_REGISTRY

OPTIONS = Path(__file__).parents[2] / "options"
MODELS = (
    "ESCModel",
    "SRModel",
    "SRGANModel",
    "RealESRNetModel",
    "RealESRGANModel",
    "RealHATMSEModel",
    "RealHATGANModel",
)
TINY = {"dim": 8, "pdim": 4, "kernel_size": 5, "n_blocks": 1, "conv_blocks": 1}
TINY.update(window_size=8, num_heads=2, upscaling_factor=4)
LOSS = {"type": "L1Loss", "loss_weight": 0.5, "reduction": "mean"}


def options(model: str, optimizer: dict[str, Any], **train: Any) -> dict[str, Any]:
    """One of our two files of ESC-Real, for one of the models, tiny and without VGG."""
    stage = "GAN" if "GAN" in model else "MSE"
    opt = yaml.safe_load((OPTIONS / f"train_ESC_Real_x4_{stage}.yml").read_text(encoding="utf-8"))
    opt.update(model_type=model, network_g={"type": "ESCReal", **TINY}, num_gpu=0, gt_size=32)
    opt.update(queue_size=2, gt_usm=True, l1_gt_usm=True, percep_gt_usm=True, gan_gt_usm=False)
    if stage == "GAN":
        opt["network_d"] = {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 4}
        opt["train"]["optim_d"] = dict(optimizer)
    opt["path"] = {"strict_load_g": True}
    opt["train"].pop("perceptual_opt", None)
    opt["train"].update(optim_g=dict(optimizer), **copy.deepcopy(train))
    return opt


def build(model: str, optimizer: dict[str, Any], **train: Any) -> Any:
    """The model as `basicsr train` builds it, which makes no pairs itself."""
    opt = options(model, optimizer, **train)
    opt.update(dist=False, rank=0, world_size=1, is_train=True, logger={})
    opt["high_order_degradation"] = False
    torch.manual_seed(0)
    return durable(MODEL_REGISTRY.get(model))(opt)


def step(model: Any, current_iter: int) -> None:
    generator = torch.Generator().manual_seed(1)
    model.feed_data(
        {
            "lq": torch.rand(2, 3, 8, 8, generator=generator),
            "gt": torch.rand(2, 3, 32, 32, generator=generator),
        }
    )
    # As Real-ESRGAN's degradation leaves it.
    model.gt_usm = model.gt
    model.optimize_parameters(current_iter)


def weights(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in model.net_g.parameters()])


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_every_model_are_clipped_and_at_half_after_iteration_50000(name: str) -> None:
    sizes = {}
    for clip, current_iter in (("gradient_clip", 1), ("gradient_clip", 50_001), ("grad_clip", 1)):
        model = build(name, {"type": "SGD", "lr": 1.0}, **{clip: 0.001})
        before = weights(model)
        step(model, current_iter)
        sizes[clip, current_iter] = float((weights(model) - before).norm())
    assert [*sizes.values()] == pytest.approx([0.001, 0.0005, 0.001], rel=1e-2)


@pytest.mark.parametrize("name", MODELS)
def test_moments_of_every_model_go_back_to_zero(name: str) -> None:
    model = build(name, {"type": "Adam", "lr": 1e-3}, reset_momentum_iter=[3, 4])
    counts = []
    for current_iter in range(1, 6):
        step(model, current_iter)
        steps = {int(s["step"]) for o in model.optimizers for s in o.state.values()}
        assert len(steps) == 1
        counts += steps
    assert counts == [1, 2, 1, 1, 2]


@pytest.mark.parametrize("model", ["ESCModel", "SRModel"])
@pytest.mark.parametrize("optimizer", ["Adagrad", "ASGD", "NAdam", "RAdam", "Rprop", "SGD"])
def test_optimizers_whose_states_begin_with_no_zeros_begin_anew(model: str, optimizer: str) -> None:
    # NAdam's product of momenta begins at 1, Rprop's step sizes at the rate, Adagrad's sums where
    # its option says.
    more = {"Adagrad": {"initial_accumulator_value": 0.1}, "SGD": {"momentum": 0.9}}
    settings = {"type": optimizer, "lr": 1e-3, **more.get(optimizer, {})}
    fresh, other = build(model, settings), build(model, settings)
    reset = build(model, settings, reset_momentum_iter=3)
    for each in (other, reset):
        step(each, 1)
        step(each, 2)
    fresh.net_g.load_state_dict(reset.net_g.state_dict())
    for current_iter in (3, 4):
        for each in (fresh, other, reset):
            step(each, current_iter)
    torch.testing.assert_close(weights(reset), weights(fresh), rtol=0, atol=0)
    assert not torch.equal(weights(reset), weights(other))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("option", ["gradient_clip", "grad_clip"])
def test_a_norm_that_cannot_be_is_refused_by_every_model(name: str, option: str) -> None:
    with pytest.raises(UserError, match=f"train: {option}: -1: must be a number above 0"):
        build(name, {"type": "SGD", "lr": 1.0}, **{option: -1})


@pytest.mark.parametrize(
    "option, told",
    [
        ({"gradient_clip": 0}, "train:gradient_clip: must be a number above 0, "),
        ({"reset_momentum_iter": "soon"}, "train:reset_momentum_iter: must be an iteration, or a"),
        ({"reset_momentum_iter": [3, -1]}, "must be an iteration, or a list of them"),
    ],
)
def test_values_that_cannot_be_are_told_before_a_training(
    option: dict[str, Any], told: str, tmp_path: Path
) -> None:
    path = tmp_path / "real.yml"
    opt = options("RealHATMSEModel", {"type": "Adam", "lr": 1e-3}, **option)
    path.write_text(yaml.safe_dump({**opt, "name": "real"}), encoding="utf-8")
    assert [line for line in check_options(path).errors if told in line]


@pytest.mark.parametrize("name", MODELS)
def test_use_ema_gives_every_model_the_averaged_weights(name: str, tmp_path: Path) -> None:
    state = build(name, {"type": "SGD", "lr": 1.0}).net_g.state_dict()
    averaged = {key: value + 1 for key, value in state.items()}
    torch.save({"params": state, "params_ema": averaged}, tmp_path / "both.pth")
    opt = options(name, {"type": "SGD", "lr": 1.0})
    opt.update(dist=False, rank=0, world_size=1, is_train=False, logger={}, use_ema=True)
    opt["path"] = {"pretrain_network_g": str(tmp_path / "both.pth"), "param_key_g": "params"}
    model = durable(MODEL_REGISTRY.get(name))(opt)
    for key, value in model.net_g.state_dict().items():
        assert torch.equal(value, averaged[key])


@pytest.mark.parametrize("name", [name for name in MODELS if "Real" in name])
def test_real_models_evaluate_on_whole_windows(name: str) -> None:
    opt = options(name, {"type": "SGD", "lr": 1.0})
    opt.update(dist=False, rank=0, world_size=1, is_train=False)
    model = durable(MODEL_REGISTRY.get(name))(opt)
    lq = torch.rand(1, 3, 19, 23, generator=torch.Generator().manual_seed(0))
    model.feed_data({"lq": lq})
    model.test()
    padded = torch.from_numpy(np.pad(lq.numpy(), ((0, 0), (0, 0), (0, 5), (0, 1)), "reflect"))
    with torch.no_grad():
        expected = model.net_g(padded)[..., :76, :92]
    torch.testing.assert_close(model.output, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["ESCModel", "RealHATMSEModel"])
def test_further_losses_are_added_and_logged(name: str) -> None:
    mesa = {**LOSS, "start_ratio": 0.5}
    model = build(name, {"type": "SGD", "lr": 0.1}, wave_opt=LOSS, mesa_opt=mesa, total_iter=4)
    step(model, 1)
    log = model.get_current_log()
    assert log["l_wave"] == pytest.approx(log["l_pix"] / 2) and log["l_mesa"] == 0
    step(model, 2)
    assert model.get_current_log()["l_mesa"] > 0


@pytest.mark.parametrize(
    "name, told",
    [
        ("SRModel", "write model_type: ESCModel, which does all that SRModel does"),
        ("SRGANModel", "ESCModel, ESRModel, RealHATMSEModel read it"),
        ("RealESRNetModel", "write model_type: RealHATMSEModel, which does all that"),
        ("RealESRGANModel", "ESCModel, ESRModel, RealHATMSEModel read it"),
        ("RealHATGANModel", "take one of them, or leave it out"),
        ("RealHATMSEModel", None),
    ],
)
@pytest.mark.parametrize("option", ["wave_opt", "mesa_opt"])
def test_further_losses_are_taken_or_refused_with_what_to_write(
    option: str,
    name: str,
    told: str | None,
    paired_data: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    loss = {**LOSS, "start_ratio": 0.0} if option == "mesa_opt" else LOSS
    opt = options(name, {"type": "Adam", "lr": 1e-3}, **{option: loss})
    data = opt["datasets"]["train"]
    data.update(dataroot_gt=str(paired_data.train_gt), io_backend={"type": "lmdb"})
    data.update(batch_size=1, num_worker_per_gpu=0)
    opt["train"]["total_iter"] = 2
    opt.update(name="real", datasets={"train": data})
    opt.pop("val")
    opt["logger"] = {"print_freq": 1, "save_checkpoint_freq": 2, "use_tb_logger": False}
    Path("real.yml").write_text(yaml.safe_dump(opt), encoding="utf-8")
    status = main(["train", "-opt", "real.yml"])
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if "basicsr: error: " in line]
    if told is None:
        assert (status, errors) == (0, [])
        assert Path("experiments/real/models/net_g_2.pth").is_file()
        return
    # The others take pairs, which is another error.
    assert status == 2 and len(errors) == (1 if name.startswith("Real") else 2)
    assert f"train:{option}: " in errors[0] and told in errors[0]
    assert not Path("experiments").exists()
