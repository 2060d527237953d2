"""FlashBias factors against numpy's SVD, and converted files against the network they came from."""

from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import esc_arch  # noqa: F401
from esc_arch.cli.main import main
from esc_arch.ops.flashbias import factorize_bias, largest_bias_error
from esc_arch.zoo.identify import build_on_meta
from esc_arch.zoo.loading import load_network, read_checkpoint

WINDOW = 8
TINY = {
    "type": "ESC",
    "dim": 16,
    "pdim": 4,
    "kernel_size": 5,
    "n_blocks": 2,
    "conv_blocks": 1,
    "window_size": WINDOW,
    "num_heads": 2,
    "exp_ratio": 1.25,
    "upscaling_factor": 2,
}


def dense_bias(table: np.ndarray, w: int) -> np.ndarray:
    """The bias as the paper's formula says it, one pair of pixels at a time."""
    bias = np.empty((len(table), w * w, w * w))
    for q in range(w * w):
        for k in range(w * w):
            row, column = k // w - q // w + w - 1, k % w - q % w + w - 1
            bias[:, q, k] = table[:, row * (2 * w - 1) + column]
    return bias


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with params and params_ema, biases as large as trained ones."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    state = {}
    for key in ("params", "params_ema"):
        state[key] = {
            name: torch.randn(value.shape) * (1 if name.endswith("position_bias") else 0.1)
            for name, value in build_on_meta(TINY).state_dict().items()
        }
    torch.save(state, "net.pth")
    return Path("net.pth")


@pytest.mark.parametrize("rank", [1, 5, 30])
def test_factors_are_the_truncated_svd_of_each_head(rank):
    table = torch.randn(3, (2 * WINDOW - 1) ** 2, generator=torch.Generator().manual_seed(0))
    q, k = factorize_bias(table, WINDOW, rank)
    assert q.shape == k.shape == (3, WINDOW**2, rank)
    u, s, v = np.linalg.svd(dense_bias(table.numpy(), WINDOW))
    best = (u[..., :rank] * s[:, None, :rank]) @ v[:, :rank]
    np.testing.assert_allclose(q.numpy() @ k.numpy().transpose(0, 2, 1), best, atol=1e-5)


def test_the_full_rank_gives_the_bias_itself():
    table = torch.randn(2, (2 * WINDOW - 1) ** 2)
    q, k = factorize_bias(table, WINDOW, WINDOW**2)
    assert largest_bias_error(table, WINDOW, q, k) < 1e-5


def test_the_largest_error_is_over_all_heads_and_pairs():
    table = torch.randn(2, (2 * WINDOW - 1) ** 2)
    q, k = factorize_bias(table, WINDOW, 3)
    difference = dense_bias(table.numpy(), WINDOW) - q.numpy() @ k.numpy().transpose(0, 2, 1)
    found = largest_bias_error(table, WINDOW, q, k)
    assert found == pytest.approx(np.abs(difference).max(), abs=1e-5)


def test_a_converted_network_of_full_rank_gives_the_same_picture(checkpoint, capsys):
    rank = str(WINDOW**2)
    arguments = ["convert", "flashbias", "--rank", "4", rank, str(checkpoint), "-o", "r{rank}.pth"]
    assert main(arguments) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    errors = {row[0]: tuple(map(float, row[1:])) for row in rows if row[0] in ("4", rank)}
    assert errors[rank][0] < 1e-5 and errors[rank][1] < 1e-4
    assert errors["4"][0] > 0.1 and errors["4"][1] > errors[rank][1]

    exact, _ = load_network(checkpoint)
    converted, network_g = load_network(f"r{rank}.pth")
    assert network_g == {**TINY, "attn_type": "FlashBias", "flashbias_rank": WINDOW**2}
    lq = torch.rand(1, 3, 24, 16)
    torch.testing.assert_close(converted(lq), exact(lq), atol=1e-4, rtol=0)


def test_both_params_and_params_ema_are_converted(checkpoint):
    arguments = ["convert", "flashbias", str(checkpoint), "--rank", "9", "-o", "out.pth"]
    assert main(arguments) == 0
    before, after = (read_checkpoint(path) for path in (checkpoint, "out.pth"))
    assert before.params.keys() == after.params.keys()
    for key, params in after.params.items():
        table = before.params[key]["blocks.1.attn.relative_position_bias"]
        q, k = factorize_bias(table, WINDOW, 9)
        torch.testing.assert_close(params["blocks.1.attn.flashbias_q"], q)
        torch.testing.assert_close(params["blocks.1.attn.flashbias_k"], k)
        assert torch.equal(params["proj.weight"], before.params[key]["proj.weight"])


def test_the_output_error_is_that_on_the_picture_given(checkpoint, photographs, capsys):
    from PIL import Image

    image = photographs["chelsea"][100:140, 100:150]
    Image.fromarray(image).save("cat.png")
    arguments = ["convert", "flashbias", "--rank", "3", str(checkpoint), "-o", "out.pth"]
    assert main([*arguments, "--image", "cat.png"]) == 0
    printed = float(capsys.readouterr().out.splitlines()[3].split()[2])
    lq = torch.from_numpy(image / 255).float().permute(2, 0, 1)[None]
    lq = torch.nn.functional.pad(lq, (0, -50 % WINDOW, 0, 0), mode="reflect")
    outputs = [
        load_network(path)[0](lq)[..., :80, :100].clamp(0, 1) for path in (checkpoint, "out.pth")
    ]
    assert printed == pytest.approx((outputs[0] - outputs[1]).abs().max().item(), rel=0.01)


@pytest.mark.parametrize(
    "arguments, problem",
    [
        (["--rank", "0", "net.pth"], "--rank 0: must be from 1 to 64"),
        (["--rank", "65", "net.pth"], "--rank 65: must be from 1 to 64"),
        (["--rank", "48"], "CHECKPOINT is missing"),
        (["--rank", "many", "few", "net.pth"], "--rank many"),
        (["--rank", "net.pth"], "--rank: is missing"),
        (["--rank", "4", "8", "net.pth", "-o", "out.pth"], "{rank} must be in the name"),
        (["--rank", "4", "net.pth", "-o", "net.pth"], "exists; --overwrite"),
        (["--rank", "4", "net.pth", "-o", "net.bin"], "must end in .pth or .safetensors"),
        (["--rank", "4", "none.pth"], "none.pth: no such checkpoint"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, problem, checkpoint, capsys):
    before = checkpoint.read_bytes()
    assert main(["convert", "flashbias", *arguments]) == 2
    error = capsys.readouterr().err
    assert problem in error and error.count("\n") == 1
    assert checkpoint.read_bytes() == before


def test_factors_cannot_be_converted_again(checkpoint, capsys):
    assert main(["convert", "flashbias", "--rank", "4", "net.pth", "-o", "out.safetensors"]) == 0
    assert main(["convert", "flashbias", "--rank", "4", "out.safetensors"]) == 2
    assert "factors of FlashBias already" in capsys.readouterr().err


def test_safetensors_hold_the_averaged_weights_and_the_metadata(checkpoint, capsys):
    arguments = ["convert", "safetensors", "net.pth", "-o", "sub/net.safetensors"]
    assert main([*arguments, "--metadata", "data=BSDS400 + T91", "psnr=37.9"]) == 0
    tensors = load_file("sub/net.safetensors")
    ema = torch.load(checkpoint, weights_only=True)["params_ema"]
    assert tensors.keys() == ema.keys()
    assert all(torch.equal(tensors[name], ema[name]) for name in ema)
    with safe_open("sub/net.safetensors", framework="pt") as file:
        card = file.metadata()
    assert (card["dataset"], card["psnr"]) == ("BSDS400 + T91", "37.9")
    assert (card["architecture"], card["scale"]) == ("ESC", "2")
    assert main(["checkpoints", "info", "sub/net.safetensors"]) == 0
    assert "dataset: BSDS400 + T91\n" in capsys.readouterr().out
    assert main(arguments) == 2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounded_weights_take_half_and_the_output_differs_by_what_is_printed(
    dtype, checkpoint, capsys
):
    arguments = ["convert", "safetensors", "net.pth", "-o", "net.safetensors", "--dtype", dtype]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    ema = torch.load(checkpoint, weights_only=True)["params_ema"]
    tensors = load_file("net.safetensors")
    assert all(torch.equal(tensors[k], v.to(getattr(torch, dtype))) for k, v in ema.items())
    assert main(["checkpoints", "verify", "net.safetensors"]) == 0
    crop = skimage.data.astronaut()[60:188, 160:288] / 255
    lq = torch.from_numpy(crop).float().permute(2, 0, 1)[None]
    outputs = [load_network(path)[0](lq) for path in (checkpoint, "net.safetensors")]
    assert outputs[1].dtype == torch.float32
    error = (outputs[0].clamp(0, 1) - outputs[1].clamp(0, 1)).abs().max().item()
    assert 0 < error < 0.01
    assert f"{dtype}: the output differs by at most {error:.1e} on astronaut" in printed


def test_weights_beyond_the_range_of_float16_are_refused(checkpoint, capsys):
    state = torch.load(checkpoint, weights_only=True)
    name = next(iter(state["params_ema"]))
    state["params_ema"][name].view(-1)[0] = 1e5
    torch.save(state, "net.pth")
    arguments = ["convert", "safetensors", "net.pth", "-o", "net.safetensors"]
    assert main([*arguments, "--dtype", "float16"]) == 2
    assert f"--dtype float16: {name} has values beyond its range" in capsys.readouterr().err
    assert main([*arguments, "--dtype", "bfloat16"]) == 0
