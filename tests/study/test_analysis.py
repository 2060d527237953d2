"""`basicsr analyze`: each figure against a definition written out, and the command itself."""

import json

import cv2
import numpy as np
import pytest
import torch
import yaml
from scipy.ndimage import gaussian_filter
from torch import nn

from esc_arch.archs import ESC
from esc_arch.cli.main import main
from esc_arch.ops.bias import relative_position_bias
from esc_arch.study.analysis import (
    effective_receptive_field,
    erf_sizes,
    gaussian_blur,
    gini,
    local_attribution,
    mean_distance,
    position_biases,
)
from esc_arch.study.subjects import Subject, subject_from_options

TINY = {
    "dim": 8,
    "pdim": 4,
    "kernel_size": 5,
    "n_blocks": 1,
    "conv_blocks": 1,
    "window_size": 4,
    "num_heads": 2,
    "upscaling_factor": 2,
}
TINY_ESC = {"type": "ESC", **TINY}
TINY_SWINIR = {
    "type": "SwinIR",
    **{"upscale": 2, "img_size": 16, "window_size": 8, "depths": [2], "embed_dim": 12},
    **{"num_heads": [3], "mlp_ratio": 2, "upsampler": "pixelshuffledirect"},
}


def subject(network, **network_g):
    return Subject("tiny", network.eval().requires_grad_(False), network_g, None)


def esc(seed=0):
    torch.manual_seed(seed)
    network = ESC(**TINY)
    # The instance-dependent kernels start at zero.
    nn.init.normal_(network.blocks[0].pconvs[0].plk.dwc_proj[-1].weight, std=0.1)
    return subject(network, **TINY_ESC)


def crop(photographs, size=24):
    square = photographs["coffee"][100 : 100 + size, 200 : 200 + size]
    return torch.from_numpy(np.ascontiguousarray(square)).permute(2, 0, 1).float() / 255


def test_the_receptive_field_of_a_convolution_is_its_kernel():
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 3, 3, padding=1)
    field = effective_receptive_field(subject(convolution), torch.rand(2, 3, 7, 9))
    expected = torch.zeros(7, 9, dtype=torch.float64)
    expected[2:5, 3:6] = convolution.weight.detach().sum(0).abs().mean(0).double()
    torch.testing.assert_close(field, expected)


def test_the_receptive_field_of_esc_is_seen_by_finite_differences(photographs):
    network, picture = esc(), crop(photographs, 8)
    field = effective_receptive_field(network, picture[None])
    network.network.double()
    picture = picture.double()
    for row, column in ((4, 4), (1, 6), (7, 0)):
        slopes = []
        for channel in range(3):
            step = torch.zeros_like(picture)
            step[channel, row, column] = 1e-6
            above, below = network((picture + step)[None]), network((picture - step)[None])
            slopes.append(float((above - below)[0, :, 9, 9].sum()) / 2e-6)
        assert field[row, column] == pytest.approx(np.abs(slopes).mean(), rel=1e-3, abs=1e-6)


def test_squares_of_a_field_hold_the_share_asked_for():
    field = torch.zeros(7, 7)
    field[3, 3], field[3, 4], field[0, 0] = 5, 4, 1
    assert erf_sizes(field, (0.5, 0.51, 0.9, 0.99)) == {
        "50%": {"side": 1, "area_ratio": 1 / 49},
        "51%": {"side": 3, "area_ratio": 9 / 49},
        "90%": {"side": 3, "area_ratio": 9 / 49},
        "99%": {"side": 7, "area_ratio": 1.0},
    }


def test_gini_is_the_mean_difference_of_all_pairs():
    values = np.random.default_rng(0).random(40) ** 3
    pairs = np.abs(values[:, None] - values).sum() / (2 * len(values) ** 2 * values.mean())
    assert gini(torch.from_numpy(values)) == pytest.approx(pairs, rel=1e-12)
    assert gini(torch.ones(5)) == pytest.approx(0)
    assert gini(torch.eye(10)[0]) == pytest.approx(0.9)


@pytest.mark.parametrize("sigma", [0, 0.05, 0.7, 1.2])
def test_blur_is_that_of_scipy(sigma, photographs):
    picture = crop(photographs).double()
    expected = gaussian_filter(
        picture.numpy(), (0, sigma, sigma), mode="nearest", radius=int(np.ceil(4 * sigma)) or 1
    )
    np.testing.assert_allclose(gaussian_blur(picture, sigma).numpy(), expected, atol=1e-12)


def test_attributions_add_up_to_what_the_blur_takes_away(photographs):
    one = local_attribution(esc(), crop(photographs), (12, 12), side=16, steps=50)
    taken = one.detected - one.detected_blurred
    assert abs(taken) > 0.1
    assert float(one.values.sum()) == pytest.approx(taken, rel=0.02)
    assert one.patch == (17, 17, 16)
    assert one.result.shape == (3, 48, 48)


def test_a_network_that_looks_at_single_pixels_is_attributed_the_square_only(photographs):
    torch.manual_seed(0)
    one = local_attribution(subject(nn.Conv2d(3, 3, 1)), crop(photographs), (0, 23), side=6)
    assert one.patch == (0, 18, 6)
    outside = one.values.clone()
    outside[:6, 18:] = 0
    assert float(outside.abs().max()) == 0
    # The detector takes differences to the right and down, so the last pixel has none of its own.
    assert int((one.values[:6, 18:] != 0).sum()) == 35
    assert one.diffusion_index < 100 * 36 / 24**2


def test_a_square_larger_than_the_result_is_refused(photographs):
    with pytest.raises(ValueError, match="--patch 49: must be from 2 to .* 48x48"):
        local_attribution(esc(), crop(photographs), (12, 12), side=49)


def by_offset(bias, window_size):
    """Maps (heads, 2w - 1, 2w - 1) from a bias (heads, queries, keys), pair by pair."""
    size = 2 * window_size - 1
    maps = torch.full((len(bias), size, size), torch.nan)
    for query in range(window_size**2):
        for key in range(window_size**2):
            row = key // window_size - query // window_size + window_size - 1
            column = key % window_size - query % window_size + window_size - 1
            maps[:, row, column] = bias[:, query, key]
    return maps


def test_position_bias_of_esc_is_what_its_attention_adds():
    network = esc().network
    attention = network.blocks[0].attn
    bias = relative_position_bias(attention.relative_position_bias.detach(), 4)
    maps = position_biases(network)
    assert list(maps) == ["blocks.0.attn"]
    torch.testing.assert_close(maps["blocks.0.attn"], by_offset(bias, 4))


def test_position_bias_of_flashbias_is_the_product_of_its_factors():
    table = esc().network.blocks[0].attn.relative_position_bias.detach()
    bias = relative_position_bias(table, 4)
    network = ESC(**TINY, attn_type="FlashBias", flashbias_rank=16)
    network.blocks[0].attn.flashbias_q.data = bias
    network.blocks[0].attn.flashbias_k.data = torch.eye(16).expand(2, -1, -1)
    torch.testing.assert_close(position_biases(network)["blocks.0.attn"], by_offset(bias, 4))


def test_position_bias_of_swin_is_what_its_attention_adds():
    from basicsr.archs.swinir_arch import WindowAttention

    attention = WindowAttention(8, (4, 4), 2)
    nn.init.normal_(attention.relative_position_bias_table)
    bias = attention.relative_position_bias_table.detach()[attention.relative_position_index]
    maps = position_biases(nn.Sequential(attention))
    torch.testing.assert_close(maps["0"], by_offset(bias.permute(2, 0, 1), 4))


def test_mean_distance_follows_the_softmax_of_the_bias():
    flat = torch.zeros(3, 3)
    assert mean_distance(flat) == pytest.approx((4 + 4 * 2**0.5) / 9)
    flat[1, 1] = 100
    assert mean_distance(flat) == pytest.approx(0)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def analyze(*arguments):
    return main(["analyze", *map(str, arguments)])


def inline(network_g):
    return yaml.safe_dump(network_g, default_flow_style=True, width=1000).strip()


@pytest.mark.parametrize("analysis", ["erf", "lam", "bias"])
def test_several_networks_share_a_picture_and_a_file_of_figures(analysis, here, capsys):
    options = [] if analysis == "bias" else ["--size", 16]
    options += ["--steps", 2] if analysis == "lam" else []
    networks = ["--network", inline(TINY_ESC), "--network", inline(TINY_SWINIR)]
    assert analyze(analysis, *networks, *options) == 0
    (png,) = (here / "results/analyze").glob("*.png")
    assert cv2.imread(str(png)).std() > 0
    figures = json.loads(png.with_suffix(".json").read_text())
    assert [one["network"] for one in figures["networks"]] == [
        *("ESC (untrained)", "SwinIR (untrained)")
    ]
    first = figures["networks"][0]
    assert first["options"] == TINY_ESC
    printed = capsys.readouterr().out
    if analysis == "lam":
        assert f"diffusion index {first['diffusion_index']:.2f}" in printed
        assert first["patch"] == {"top": 9, "left": 9, "side": 16}
    elif analysis == "erf":
        assert f"99% within {first['squares']['99%']['side']}" in printed
    else:
        table = ESC(**TINY).blocks[0].attn.relative_position_bias
        assert len(first["attentions"]["blocks.0.attn"]) == len(table)


def test_networks_are_read_from_option_files_and_checkpoints_in_the_order_given(here, capsys):
    trained = esc(seed=5).network.state_dict()
    torch.save({"params": esc(seed=6).network.state_dict(), "params_ema": trained}, "tiny.pth")
    path = {"pretrain_network_g": "tiny.pth", "param_key_g": "params_ema"}
    (here / "mine.yml").write_text(yaml.safe_dump({"network_g": TINY_ESC, "path": path}))
    read = subject_from_options("mine.yml").network.state_dict()
    assert all(torch.equal(read[name], value) for name, value in trained.items())

    assert analyze("bias", "--checkpoint", "tiny.pth", "-opt", "mine.yml", "-o", "out") == 0
    figures = json.loads((here / "out/bias.json").read_text())["networks"]
    assert [one["network"] for one in figures] == ["tiny", "mine"]
    assert [one["weights"] for one in figures] == ["tiny.pth", "tiny.pth"]
    assert figures[0]["attentions"] == figures[1]["attentions"]


def test_pictures_are_cut_out_where_asked(here, photographs):
    picture = np.full((120, 120, 3), 255, np.uint8)
    picture[4:20, 40:56] = photographs["astronaut"][248:264, 248:264]
    cv2.imwrite("mine.png", picture)
    common = ["--network", inline(TINY_ESC), "--images", "mine.png", "--size", 16, "--steps", 2]
    assert analyze("lam", *common, "--at", 48, 12) == 0
    lively = json.loads((here / "results/analyze/lam_mine.json").read_text())["networks"][0]
    assert analyze("lam", *common, "--at", 0, 100) == 0
    white = json.loads((here / "results/analyze/lam_mine.json").read_text())["networks"][0]
    assert abs(white["attributed"]) < 1e-3 * abs(lively["attributed"])
    assert white["patch"]["top"] == 9 and white["patch"]["left"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["erf"], "no network to analyse; give -opt, --checkpoint or --network"),
        (["erf", "-opt", "none.yml"], "-opt none.yml: No such file or directory"),
        (["erf", "-opt", "empty.yml"], "-opt empty.yml: has no section network_g"),
        (["erf", "--checkpoint", "none.pth"], "none.pth: no such checkpoint"),
        (["erf", "--network", "ESC"], "--network ESC: must be an option block"),
        (
            ["erf", "--network", "{type: ESK}"],
            "'ESK': no such network is registered; there are ESC, ",
        ),
        (["erf", "--network", "{type: ESC, dim: 8}"], "--network: ESC: "),
        (["bias", "--network", "{type: EDSR, num_in_ch: 3, num_out_ch: 3}"], "no learned position"),
        (["erf", "--network", inline(TINY_ESC), "--size", "4"], "--size 4: must be at least 8"),
        (["erf", "--network", inline(TINY_ESC), "--size", "9999"], "--size 9999: picture astro"),
        (["erf", "--network", inline(TINY_ESC), "--at", "9999", "0"], "--at 9999 0: not within"),
        (["erf", "--network", inline(TINY_ESC), "--images", "none.png"], "none.png: No such file"),
        (["lam", "--network", inline(TINY_ESC), "--steps", "0"], "--steps 0: must be at least 1"),
        (["lam", "--network", inline(TINY_ESC), "--sigma", "nan"], "--sigma nan: must be above 0"),
        (["lam", "--network", inline(TINY_ESC), "--patch", "999"], "--patch 999: must be from 2"),
        (["bias", "--network", inline(TINY_ESC), "-o", "empty.yml"], "--output empty.yml: "),
        (
            ["erf", "--network", inline({**TINY_ESC, "type": "EDSR"})],
            "--network: EDSR: ",
        ),
        (
            ["erf", "--network", "{type: EDSR, num_in_ch: 1, num_out_ch: 1, img_range: 1}"],
            "EDSR (untrained): cannot take a 96x96 RGB picture",
        ),
    ],
)
def test_mistakes_are_one_line(arguments, message, here, capsys):
    (here / "empty.yml").touch()
    assert analyze(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("basicsr: error: ") and error.count("\n") == 1
    assert message in error


def test_weights_of_another_network_are_one_line(here, capsys):
    torch.save(esc().network.state_dict(), "tiny.pth")
    options = {"network_g": {**TINY_ESC, "n_blocks": 2}, "path": {"pretrain_network_g": "tiny.pth"}}
    (here / "mine.yml").write_text(yaml.safe_dump(options))
    assert analyze("bias", "-opt", "mine.yml") == 2
    assert "tiny.pth: not the weights of network_g in mine.yml" in capsys.readouterr().err
