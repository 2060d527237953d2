"""Published checkpoints by name, and networks found from tensors alone."""

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

import esc_arch  # noqa: F401
from esc_arch.cli.main import main
from esc_arch.errors import UserError
from esc_arch.zoo import catalogue as checkpoints
from esc_arch.zoo.catalogue import MIRROR_VARIABLE, PRETRAINED_FOLDER, PUBLISHED
from esc_arch.zoo.identify import _clean_ratio, build_on_meta, identify
from esc_arch.zoo.loading import load_network, read_checkpoint
from esc_arch.zoo.local import download_checkpoint, resolve
from esc_arch.zoo.params import select_params
from esc_arch.zoo.store import load_state

DATA = Path(__file__).parents[1] / "data"
SHAPES = json.loads((DATA / "checkpoints.json").read_text())
TINY = {
    "type": "ESC",
    "dim": 16,
    "pdim": 4,
    "kernel_size": 5,
    "n_blocks": 2,
    "conv_blocks": 1,
    "window_size": 8,
    "num_heads": 2,
    "exp_ratio": 1.25,
    "upscaling_factor": 2,
}
REAL = {**TINY, "type": "ESCReal", "upscaling_factor": 4}


def make_params(network_g: dict, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {
        name: torch.randn(value.shape) * 0.05
        for name, value in build_on_meta(network_g).state_dict().items()
    }


def save_pth(path: Path, network_g: dict, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    params = make_params(network_g, seed)
    torch.save({"params": params, "params_ema": make_params(network_g, seed + 1)}, path)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    return tmp_path


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which its files are served."""
    root = tmp_path_factory.mktemp("release")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield root, f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


@pytest.mark.parametrize("name", SHAPES)
def test_published_option_blocks_are_found_from_names_and_shapes(name):
    state = {
        key: torch.empty(shape, device="meta") for key, shape in SHAPES[name]["state_dict"].items()
    }
    assert identify(state) == SHAPES[name]["network_g"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_ln": True},
        {"exp_ratio": 2},
        {"exp_ratio": 0.5},
        {"upscaling_factor": 3, "num_heads": 4, "kernel_size": 7, "conv_blocks": 3},
        {"attn_type": "FlashBias", "flashbias_rank": 6},
        {"type": "ESCFP", "upscaling_factor": 4},
        {"type": "ESCReal", "upscaling_factor": 4},
        {"type": "ESCReal", "upscaling_factor": 4, "use_dysample": True},
    ],
)
def test_options_of_any_network_of_the_family_are_found(changes):
    network_g = {**TINY, **changes}
    assert identify(build_on_meta(network_g).state_dict()) == network_g


@pytest.mark.parametrize("dim", [12, 16, 24, 48, 60, 64, 180])
@pytest.mark.parametrize("ratio", [0.5, 1, 1.1, 1.25, 1.3, 4 / 3, 1.5, 1.7, 2, 2.66])
def test_the_ratio_found_gives_the_same_hidden_channels_and_is_plain(dim, ratio):
    found = _clean_ratio(dim, int(dim * ratio))
    assert int(dim * found) == int(dim * ratio)
    assert len(str(found)) <= 5


def test_another_network_is_refused_in_one_line():
    from basicsr.archs.srresnet_arch import MSRResNet

    with pytest.raises(
        UserError, match=r"^net\.pth: not a network of the ESC family: .*conv_first"
    ) as error:
        identify(MSRResNet(num_feat=8, num_block=1).state_dict(), "net.pth")
    assert "\n" not in str(error.value)


def test_missing_unknown_and_misshapen_tensors_are_named():
    whole = make_params(TINY)
    lacking = {key: value for key, value in whole.items() if key != "last.bias"}
    with pytest.raises(UserError, match="lacks 1 .*'last.bias'"):
        identify(lacking)
    with pytest.raises(UserError, match="no place for 1 .*'extra'"):
        identify({**whole, "extra": torch.zeros(1)})
    with pytest.raises(UserError, match=r"'last.bias' has the shape \[3\] in place of \[16\]"):
        identify({**whole, "last.bias": torch.zeros(3)})


@pytest.mark.parametrize(
    "changes",
    [
        {"blocks.999999999.ln_proj.weight": [16]},
        {"plk_filter": [0, 0, 5, 5]},
        {"plk_filter": [4]},
        {"plk_filter": []},
        {"proj.weight": [0, 3, 3, 3]},
        {"proj.weight": [2**62, 3, 3, 3]},
        {"blocks.0.attn.relative_position_bias": [2, 0]},
        {"blocks.0.attn.relative_position_bias": [2**40, 2**40]},
        {"blocks.0.attn.flashbias_q": [2, 64]},
        {"blocks.0.convffns.0.proj.weight": [0, 16, 1, 1]},
        {"to_img.weight": [0, 16, 3, 3]},
        {"skip.0.weight": [32, 3, 1, 1]},
    ],
)
def test_absurd_shapes_are_refused_at_once(changes):
    shapes = {name: value.shape for name, value in build_on_meta(TINY).state_dict().items()}

    class Shape:
        def __init__(self, shape):
            self.shape = shape

    with pytest.raises(UserError):
        identify({name: Shape(shape) for name, shape in {**shapes, **changes}.items()})


def test_tensors_of_integers_are_refused(folder):
    torch.save({key: value.int() for key, value in make_params(TINY).items()}, "net.pth")
    with pytest.raises(UserError, match="'plk_filter' is of torch.int32"):
        read_checkpoint("net.pth")


@pytest.mark.parametrize(
    "name", ["esc_small_x2", "esc_small_x3_ln", "escfp_small_x4", "escreal_small_x4"]
)
def test_a_loaded_network_gives_the_reference_images(name, tmp_path):
    case = torch.load(DATA / f"{name}.pt", weights_only=True)
    path = tmp_path / "net.pth"
    torch.save({"params": case["params"]}, path)
    network, network_g = load_network(path)
    assert network_g["type"] == case["type"]
    with torch.inference_mode():
        sr = network(case["lq"][0][None])[0]
    torch.testing.assert_close(sr, case["sr"][0], atol=1e-4, rtol=0)


def test_the_averaged_weights_are_loaded_and_dtype_is_followed(folder):
    path = save_pth(folder / "net.pth", TINY)
    network, _ = load_network(path, dtype=torch.float64)
    ema = load_state(path)["params_ema"]["last.weight"]
    assert torch.equal(network.last.weight, ema.double())
    assert not network.training


def test_a_file_of_bare_tensors_and_one_from_parallel_training_load(folder):
    params = make_params(TINY)
    torch.save(params, "bare.pth")
    torch.save(
        {"params": {f"module.{key}": value for key, value in params.items()}}, "parallel.pth"
    )
    save_file(params, "net.safetensors", {"data": "BSDS400"})
    for name in ("bare.pth", "parallel.pth", "net.safetensors"):
        checkpoint = read_checkpoint(name)
        assert checkpoint.network_g == TINY
        assert torch.equal(checkpoint.best["proj.bias"], params["proj.bias"])
    assert checkpoint.metadata == {"data": "BSDS400"}


def test_info_prints_a_block_that_builds_the_network(folder, capsys):
    save_pth(folder / "net.pth", {**TINY, "use_ln": True})
    assert main(["checkpoints", "info", "net.pth"]) == 0
    out = capsys.readouterr().out
    expected = sum(value.numel() for value in build_on_meta({**TINY, "use_ln": True}).parameters())
    assert f"parameters: {expected:,}\n" in out
    assert "weights: params, params_ema\n" in out
    assert "scale: 2\n" in out
    block = yaml.safe_load(out[out.index("network_g:") :])["network_g"]
    assert block == {**TINY, "use_ln": True}


def test_buffers_are_not_counted_as_parameters(folder):
    network_g = {**REAL, "use_dysample": True}
    checkpoint = read_checkpoint(save_pth(folder / "net.pth", network_g))
    buffers = build_on_meta(network_g).to_img.init_pos.numel()
    assert checkpoint.parameters == sum(v.numel() for v in checkpoint.best.values()) - buffers


@pytest.mark.parametrize("kind", ["truncated", "state", "text", "missing", "folder"])
def test_files_that_hold_no_network_get_one_line(kind, folder, capsys):
    path = folder / "net.pth"
    if kind == "truncated":
        content = save_pth(path, TINY).read_bytes()
        path.write_bytes(content[: len(content) * 2 // 3])
    elif kind == "state":
        torch.save({"epoch": 1, "iter": 2, "optimizers": [], "schedulers": []}, path)
    elif kind == "text":
        path.write_text("<html>Not Found</html>")
    elif kind == "folder":
        path.mkdir()
    assert main(["checkpoints", "info", "net.pth"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("basicsr: error: net.pth: ")


def test_resolve_finds_paths_and_downloaded_names(folder):
    with pytest.raises(UserError, match="basicsr checkpoints download ESC_light_X2"):
        resolve("ESC_light_X2")
    with pytest.raises(UserError, match="basicsr checkpoints download ESC_light_X2"):
        resolve("experiments/pretrained_models/ESC_light_X2.pth")
    with pytest.raises(UserError, match="neither a file nor a name"):
        resolve("ESC_heavy_X2")
    path = save_pth(folder / "experiments/pretrained_models/ESC_light_X2.pth", TINY)
    for spelling in ("ESC_light_X2", "esc_light_x2", path, str(path)):
        assert resolve(spelling).samefile(path)
    safetensors = path.with_name("ESC_FP_X2.safetensors")
    save_file(make_params(TINY), safetensors)
    assert resolve("ESC_FP_X2").samefile(safetensors)


def test_resolve_finds_shipped_weights(folder, monkeypatch):
    monkeypatch.setattr(checkpoints, "SHIPPED_FOLDER", folder / "weights")
    with pytest.raises(UserError, match="checkpoints download ESC_light_X2"):
        checkpoints.default_model()
    (folder / "weights").mkdir()
    for name in ("A_x4", "ESC_light_x2_BSD"):
        save_file(make_params(TINY), folder / f"weights/{name}.safetensors")
    assert resolve("ESC_light_x2_BSD") == folder / "weights/ESC_light_x2_BSD.safetensors"
    assert checkpoints.default_model() == resolve("ESC_light_x2_BSD")


def test_the_table_agrees_with_the_published_networks():
    names = {"ESC_DIV2K_X3": "ESC_x3", "ESC_XL_DF2K_X4_FT": "ESC_XL_x4", "ESC_FP_X2": "ESC_FP_x2"}
    names |= {"ESC_light_X4": "ESC_light_x4", "ESC_Real_X4_GAN": "ESC_Real_x4"}
    for name, row in names.items():
        assert PUBLISHED[name].network_g == SHAPES[row]["network_g"]
    factored = PUBLISHED["ESC_DIV2K_FB_R48_X2"].network_g
    assert factored == {
        **PUBLISHED["ESC_DIV2K_X2"].network_g,
        "attn_type": "FlashBias",
        "flashbias_rank": 48,
    }
    assert len(PUBLISHED) == 19


def publish(root: Path, name: str, network_g: dict | None = None) -> Path:
    return save_pth(root / f"{name}.pth", network_g or PUBLISHED[name].network_g)


def test_a_download_is_put_in_place_and_its_checksum_recorded(folder, server, capsys):
    root, url = server
    source = publish(root, "ESC_light_X2")
    assert main(["checkpoints", "download", "ESC_light_X2", "--mirror", url]) == 0
    path = folder / "experiments/pretrained_models/ESC_light_X2.pth"
    assert path.read_bytes() == source.read_bytes()
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, f"{path.name}.sha256"]
    assert main(["checkpoints", "verify"]) == 0
    assert "whole, ESC x2, checksum right" in capsys.readouterr().out

    # Another file at the address later is noticed, since the record stays.
    path.unlink()
    save_pth(source, PUBLISHED["ESC_light_X2"].network_g, seed=5)
    assert main(["checkpoints", "download", "ESC_light_X2", "--mirror", url]) == 2
    assert "SHA-256" in capsys.readouterr().err
    assert not path.exists()


def test_a_file_that_is_already_there_is_kept(folder, monkeypatch):
    path = publish(folder / PRETRAINED_FOLDER, "ESC_light_X2")
    before = path.read_bytes()
    monkeypatch.setenv(MIRROR_VARIABLE, "http://127.0.0.1:1")
    assert download_checkpoint("ESC_light_X2") == Path(*path.parts[-3:])
    assert path.read_bytes() == before


def test_a_changed_byte_is_found_wherever_the_file_is_used(folder, server, monkeypatch, capsys):
    root, url = server
    publish(root, "ESC_light_X3")
    monkeypatch.setenv(MIRROR_VARIABLE, url)
    path = download_checkpoint("ESC_light_X3", progress=False)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="sha256"):
        resolve("ESC_light_X3")
    assert main(["checkpoints", "verify", "ESC_light_X3"]) == 1
    assert main(["checkpoints", "download", "ESC_light_X3"]) == 2
    assert capsys.readouterr().err.count("\n") == 2


@pytest.mark.parametrize(
    "name, published, problem",
    [
        ("ESC_light_X2", {**TINY}, "another network than ESC_light_X2: dim is 16 in place of 64"),
        (
            "ESC_light_X2",
            PUBLISHED["ESC_light_X3"].network_g,
            "upscaling_factor is 3 in place of 2",
        ),
        ("ESC_Real_X4_GAN", PUBLISHED["ESC_Real_X4_GAN"].network_g, "SHA-256"),
    ],
)
def test_a_download_of_something_else_is_not_kept(name, published, problem, folder, server, capsys):
    root, url = server
    publish(root, name, published)
    assert main(["checkpoints", "download", name, "--mirror", url]) == 2
    error = capsys.readouterr().err
    assert problem in error and error.count("\n") == 1
    assert list((folder / PRETRAINED_FOLDER).iterdir()) == []


def test_a_page_in_place_of_the_file_and_a_missing_file_are_one_line(folder, server, capsys):
    root, url = server
    (root / "ESC_FP_X2.pth").write_text("<html>Please log in</html>")
    arguments = ["checkpoints", "download", "ESC_FP_X2", "ESC_FP_X3", "--mirror", url]
    assert main(arguments) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"basicsr: error: {url}/ESC_FP_X2.pth: is a web page")
    assert "404" in lines[1]
    assert list((folder / PRETRAINED_FOLDER).glob("*.pth")) == []


def test_list_shows_every_name_and_what_is_here(folder, capsys):
    save_pth(folder / PRETRAINED_FOLDER / "ESC_FP_X2.pth", TINY)
    assert main(["checkpoints", "list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines.keys() >= PUBLISHED.keys()
    assert "603,600" in lines["ESC_light_X2"] and lines["ESC_light_X2"].endswith("-")
    assert lines["ESC_FP_X2"].endswith("ESC_FP_X2.pth")


def test_unknown_names_are_refused_before_anything_is_downloaded(folder, capsys):
    assert main(["checkpoints", "download", "ESC_light_X2", "ESC_light_X9"]) == 2
    assert "ESC_light_X9: not a published checkpoint" in capsys.readouterr().err
    assert list(folder.iterdir()) == []


def test_params_of_two_networks_in_one_file_are_refused(folder):
    torch.save({"params": make_params(TINY), "params_ema": make_params(REAL)}, "net.pth")
    with pytest.raises(UserError, match="params and params_ema are of different networks"):
        read_checkpoint("net.pth")
    assert select_params(load_state("net.pth"), "net.pth")
