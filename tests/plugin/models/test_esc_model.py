"""ESCModel against BasicSR's SRModel, and against evaluation and clipping done by hand."""

import copy
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch._inductor.config
from basicsr.models import build_model
from basicsr.utils import img2tensor

from esc_arch.errors import UserError

BUTTERFLY = Path(__file__).parents[2] / "data" / "set5_butterfly"
TINY_ESC = {
    "type": "ESC",
    "dim": 8,
    "pdim": 4,
    "kernel_size": 5,
    "n_blocks": 1,
    "conv_blocks": 1,
    "window_size": 8,
    "num_heads": 2,
    "upscaling_factor": 2,
}
CONVOLUTIONS_ONLY = {
    "type": "MSRResNet",
    "num_in_ch": 3,
    "num_out_ch": 3,
    "num_feat": 8,
    "num_block": 1,
    "upscale": 2,
}


def options(model_type: str = "ESCModel", **changes: Any) -> dict[str, Any]:
    """Options as `parse_options` leaves them, for training on the CPU."""
    opt = {
        "name": "tiny",
        "model_type": model_type,
        "scale": 2,
        "num_gpu": 0,
        "dist": False,
        "rank": 0,
        "world_size": 1,
        "is_train": True,
        "manual_seed": 0,
        "network_g": dict(TINY_ESC),
        "path": {},
        "train": {
            "ema_decay": 0.5,
            "optim_g": {"type": "Adam", "lr": 1e-3},
            "scheduler": {"type": "MultiStepLR", "milestones": [100]},
            "total_iter": 10,
            "pixel_opt": {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"},
        },
        "val": {"save_img": False},
        "logger": {},
    }
    train = changes.pop("train", {})
    opt["train"].update(train)
    opt.update(changes)
    return opt


def build(opt: dict[str, Any]):
    torch.manual_seed(0)
    return build_model(opt)


def image(name: str) -> torch.Tensor:
    bgr = cv2.imread(str(BUTTERFLY / name)).astype(np.float32) / 255
    return img2tensor(bgr)[None]


def batch(patch: int = 16) -> dict[str, torch.Tensor]:
    """Two pairs of patches of a photograph."""
    lq, gt = image("LRx2.png"), image("HR.png")
    corners = [(10, 20), (40, 36)]
    return {
        "lq": torch.cat([lq[..., y : y + patch, x : x + patch] for y, x in corners]),
        "gt": torch.cat(
            [gt[..., 2 * y : 2 * (y + patch), 2 * x : 2 * (x + patch)] for y, x in corners]
        ),
    }


def train(model, iterations: int) -> list[float]:
    losses = []
    for current_iter in range(1, iterations + 1):
        model.update_learning_rate(current_iter)
        model.feed_data(batch())
        model.optimize_parameters(current_iter)
        losses.append(model.get_current_log()["l_pix"])
    return losses


def test_trains_step_for_step_as_basicsr_srmodel_does():
    reference, model = build(options("SRModel")), build(options("ESCModel"))
    assert train(reference, 4) == train(model, 4)
    for expected, found in zip(reference.net_g.parameters(), model.net_g.parameters(), strict=True):
        assert torch.equal(expected, found)
    for expected, found in zip(
        reference.net_g_ema.parameters(), model.net_g_ema.parameters(), strict=True
    ):
        assert torch.equal(expected, found)


def test_published_option_files_find_it_as_esrmodel():
    model = build(options("ESRModel"))
    assert train(model, 3)[-1] > 0


@pytest.mark.parametrize("size", [(16, 16), (19, 23), (5, 30), (3, 2), (1, 1)])
def test_evaluation_pads_the_whole_image_by_reflection_and_crops(size):
    model = build(options(is_train=False))
    height, width = size
    lq = image("LRx2.png")[..., 20 : 20 + height, 10 : 10 + width]
    model.feed_data({"lq": lq})
    model.test()

    padding = ((0, 0), (0, 0), (0, -height % 8), (0, -width % 8))
    padded = torch.from_numpy(np.pad(lq.numpy(), padding, mode="reflect"))
    with torch.no_grad():
        expected = model.net_g(padded)[..., : 2 * height, : 2 * width]
    assert torch.equal(model.output, expected)
    assert torch.equal(model.lq, lq)


def test_the_window_of_the_network_counts_where_the_options_leave_it_out():
    model = build(options(is_train=False))
    del model.opt["network_g"]["window_size"]
    assert model.window_size == 8
    assert build(options(network_g=dict(CONVOLUTIONS_ONLY), is_train=False)).window_size == 1


def test_a_network_that_folds_pixels_is_padded_to_windows_of_what_it_folds():
    network_g = {**TINY_ESC, "type": "ESCRealM", "unshuffle_mod": True}
    model = build(options(network_g=network_g, is_train=False))
    lq = torch.rand(1, 3, 18, 21, generator=torch.Generator().manual_seed(0))
    model.feed_data({"lq": lq})
    model.test()
    # Windows of 8 are of pixels folded 2 by 2.
    padded = torch.from_numpy(np.pad(lq.numpy(), ((0, 0), (0, 0), (0, 14), (0, 11)), "reflect"))
    with torch.no_grad():
        expected = model.net_g(padded)[..., :36, :42]
    torch.testing.assert_close(model.output, expected, rtol=0, atol=0)


def test_validation_uses_the_ema_weights():
    model = build(options())
    train(model, 3)
    model.feed_data({"lq": image("LRx2.png")[..., :16, :16]})
    model.test()
    with torch.no_grad():
        averaged, last = model.net_g_ema(model.lq), model.net_g(model.lq)
    assert torch.equal(model.output, averaged)
    assert not torch.equal(model.output, last)


def evaluate(tile: dict[str, int] | None, network: dict[str, Any], lq: torch.Tensor):
    model = build(options(is_train=False, network_g=dict(network), val={"tile": tile}))
    model.feed_data({"lq": lq})
    model.test()
    return model.output


def test_tiles_with_a_margin_beyond_the_receptive_field_give_the_whole_image():
    lq = image("LRx2.png")[..., :37, :45]
    whole = evaluate(None, CONVOLUTIONS_ONLY, lq)
    tiled = evaluate({"tile_size": 16, "tile_pad": 16}, CONVOLUTIONS_ONLY, lq)
    assert torch.allclose(whole, tiled, atol=1e-6)
    without_margin = evaluate({"tile_size": 16, "tile_pad": 0}, CONVOLUTIONS_ONLY, lq)
    assert not torch.allclose(whole, without_margin, atol=1e-6)


def test_tiled_validation_of_esc_stays_near_that_of_the_whole_image():
    lq = image("LRx2.png")[..., :37, :45]
    whole = evaluate(None, TINY_ESC, lq)
    one_tile = evaluate({"tile_size": 64, "tile_pad": 8}, TINY_ESC, lq)
    tiled = evaluate({"tile_size": 24, "tile_pad": 8}, TINY_ESC, lq)
    assert torch.equal(whole, one_tile)
    assert tiled.shape == whole.shape
    assert (tiled - whole).abs().max() < 0.02


@pytest.mark.parametrize("spelling", [{"grad_clip": 0.01}, {"use_grad_clip": True}])
def test_grad_clip_bounds_the_norm_of_all_gradients_together(spelling):
    sgd = {"type": "SGD", "lr": 1.0}
    free = build(options(train={"optim_g": dict(sgd)}))
    clipped = build(options(train={"optim_g": dict(sgd), **spelling}))
    steps = {}
    for name, model in (("free", free), ("clipped", clipped)):
        before = torch.cat([p.detach().flatten().clone() for p in model.net_g.parameters()])
        train(model, 1)
        after = torch.cat([p.detach().flatten() for p in model.net_g.parameters()])
        steps[name] = before - after
    assert steps["free"].norm() > 0.1
    assert steps["clipped"].norm() == pytest.approx(0.01, rel=1e-3)
    cosine = torch.cosine_similarity(steps["free"], steps["clipped"], dim=0)
    assert cosine == pytest.approx(1, abs=1e-3)


def test_mixed_precision_in_bfloat16_trains_close_to_full_precision():
    full = train(build(options()), 4)
    model = build(options(use_amp=True))
    assert model.amp_dtype == torch.bfloat16
    mixed = train(model, 4)
    assert mixed != full
    assert mixed == pytest.approx(full, rel=0.02)
    assert all(p.dtype == torch.float32 for p in model.net_g.parameters())
    assert model.output.dtype == torch.float32


@pytest.mark.parametrize(
    ("asked", "amx", "said"), [(True, False, 1), (True, True, 0), (False, False, 0)]
)
def test_it_is_said_where_bfloat16_brings_nothing(asked, amx, said, monkeypatch, caplog):
    from basicsr.utils import get_root_logger

    from esc_arch.kernels.cpu import library

    monkeypatch.setattr(library, "is_built", lambda: True)
    monkeypatch.setattr(library, "has_amx", lambda: amx)
    logger = get_root_logger()
    logger.addHandler(caplog.handler)
    try:
        build(options(use_amp=asked))
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.text.count("use_amp: bfloat16 is no faster than float32") == said


def test_mixed_precision_in_float16_scales_gradients_and_trains():
    model = build(options(train={"use_amp": "float16"}))
    assert model.scaler.is_enabled()
    mixed, full = train(model, 4), train(build(options()), 4)
    assert mixed == pytest.approx(full, rel=0.02)
    assert model.scaler.state_dict()["scale"] > 1


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_training_gives_the_losses_of_the_plain_one_and_the_same_names():
    plain = build(options(network_g=dict(CONVOLUTIONS_ONLY)))
    compiled = build(options(network_g=dict(CONVOLUTIONS_ONLY), compile=True))
    assert train(compiled, 2) == pytest.approx(train(plain, 2), rel=1e-4)
    assert compiled.net_g.state_dict().keys() == plain.net_g.state_dict().keys()


def test_compiling_without_a_compiler_says_so_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    try:
        model = build(options(network_g=dict(CONVOLUTIONS_ONLY), compile=True))
        # Not by monkeypatch: it leaves the setting deleted.
        with torch._inductor.config.patch({"cpp.cxx": (str(tmp_path / "absent"),)}):
            with pytest.raises(UserError, match="compile: true") as error:
                train(model, 1)
        assert "\n" not in str(error.value)
    finally:
        torch.compiler.reset()


class Refusing(torch.nn.Module):
    """Runs and says what is wrong with its options, as a backend asked for by name does."""

    @torch.compiler.disable
    def forward(self, lq: torch.Tensor) -> torch.Tensor:
        raise UserError("attn_type 'Flex' cannot run here")


def test_what_a_compiled_network_says_of_its_options_is_not_taken_for_the_compilers_failure():
    model = build(options(network_g=dict(CONVOLUTIONS_ONLY), compile=True))
    model.train_network = torch.compile(Refusing())
    with pytest.raises(UserError, match="^attn_type 'Flex' cannot run here$"):
        train(model, 1)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"use_amp": "float8"}, "use_amp"),
        ({"train": {"grad_clip": 0}}, "grad_clip"),
        ({"train": {"grad_clip": "big"}}, "grad_clip"),
        ({"val": {"tile": {"tile_size": 0}}}, "tile_size"),
        ({"train": {"optim_g": {"type": "AdamV", "lr": 1e-3}}}, "did you mean Adam"),
        ({"train": {"optim_g": {"type": "AdamW", "lr": -1}}}, "lr=-1"),
    ],
)
def test_a_wrong_option_is_named_in_one_line(changes, named):
    with pytest.raises(UserError, match=named) as error:
        build(options(**copy.deepcopy(changes)))
    assert "\n" not in str(error.value)


def test_the_progress_bar_is_on_unless_it_is_switched_off():
    assert build(options(is_train=False)).opt["val"]["pbar"] is True
    assert build(options(is_train=False, val={"pbar": False})).opt["val"]["pbar"] is False


def test_a_published_checkpoint_is_loaded_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = build(options())
    weights = source.net_g.state_dict()
    folder = tmp_path / "experiments" / "pretrained_models"
    folder.mkdir(parents=True)
    torch.save({"params_ema": weights}, folder / "ESC_light_X2.pth")
    path = {"pretrain_network_g": "ESC_light_X2", "param_key_g": "params_ema"}
    torch.manual_seed(1)
    model = build_model(options(path=path))
    for name, value in model.net_g.state_dict().items():
        assert torch.equal(value, weights[name])
    with pytest.raises(UserError, match="basicsr checkpoints download ESC_light_X3"):
        build(options(path={"pretrain_network_g": "ESC_light_X3"}))
