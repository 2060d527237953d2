"""The real spandrel loads our networks, and takes nobody else's for ours."""

import contextlib
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

spandrel = pytest.importorskip("spandrel")

import esc_arch.spandrel as ours  # noqa: E402
from esc_arch.inference.upscaler import Upscaler  # noqa: E402
from esc_arch.zoo.catalogue import default_model  # noqa: E402
from esc_arch.zoo.identify import build_on_meta  # noqa: E402
from esc_arch.zoo.loaders import network_type  # noqa: E402

DATA = Path(__file__).parent / "data"
FILES = [
    DATA / f"{name}.pt"
    for name in (
        "esc_small_x2",
        "esc_small_x3_ln",
        "escfp_small_x4",
        "escreal_small_x4",
        "escreal_dysample_small_x4",
    )
] + sorted((DATA / "foreign").glob("*.pt"))


@pytest.fixture(scope="module", autouse=True)
def installed():
    ours.install()
    assert ours.install() == []


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def case(request):
    return torch.load(request.param, weights_only=True)


def load(case, tmp_path):
    torch.save({"params": case["params"]}, tmp_path / "net.pth")
    return spandrel.ModelLoader().load_from_file(tmp_path / "net.pth")


def test_every_layout_is_loaded_and_gives_what_we_give(case, tmp_path):
    model = load(case, tmp_path)
    assert isinstance(model, spandrel.ImageModelDescriptor)
    assert type(model.model).__module__.startswith("esc_arch.archs.")
    assert model.architecture.id == type(model.model).__name__
    lq, sr = case["lq"], case["sr"]
    assert model.scale == sr.shape[-1] // lq.shape[-1]
    assert model.tiling is spandrel.ModelTiling.DISCOURAGED
    options = {"window_size": model.model.window_size, "upscaling_factor": model.scale}
    mine = Upscaler(model.model.eval(), options).upscale(lq)
    with torch.no_grad():
        torch.testing.assert_close(model.model(lq), sr, atol=2e-4, rtol=0)
    assert torch.equal(model(lq), mine)
    for size in ((1, 1), (5, 9)):
        small = lq[:1, :, : size[0], : size[1]]
        assert torch.equal(model(small), Upscaler(model.model, options).upscale(small))


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 0.02), (torch.bfloat16, 0.1)])
def test_half_precision_is_what_it_claims_to_be(case, dtype, error, tmp_path):
    model = load(case, tmp_path)
    assert model.supports_half and model.supports_bfloat16
    exact = model(case["lq"])
    mean = (model.to(dtype)(case["lq"].to(dtype)).float() - exact).abs().mean()
    assert mean < error


def test_the_shipped_weights_load():
    model = spandrel.ModelLoader().load_from_file(default_model(2))
    assert (model.architecture.id, model.scale) == ("ESC", 2)


class WithoutMemory(TorchFunctionMode):
    """Makes parameters of no content, which takes no time; what is computed from stays as it is."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.empty, torch.zeros, torch.ones, torch.randn, torch.rand):
            kwargs = {**(kwargs or {}), "device": "meta"}
        return func(*args, **(kwargs or {}))


def built(cls: type[nn.Module]) -> nn.Module | None:
    """A network with its defaults; None of one that has none, or asks for other packages."""
    for mode in (WithoutMemory(), contextlib.nullcontext()):  # Some compute with their parameters.
        with contextlib.suppress(Exception), mode:
            return cls()
    return None


def others() -> dict[str, nn.Module]:
    """A network of each architecture of spandrel and its extras, with its defaults."""
    found = {}
    for package in ("spandrel", "spandrel_extra_arches"):
        try:
            folder = importlib.import_module(f"{package}.architectures")
        except ModuleNotFoundError:
            continue
        for entry in pkgutil.iter_modules(folder.__path__):
            if entry.name.startswith("__"):
                continue
            module = importlib.import_module(f"{folder.__name__}.{entry.name}")
            for name, cls in vars(module).items():
                if not (inspect.isclass(cls) and issubclass(cls, nn.Module)):
                    continue
                network = built(cls)
                if network is not None:
                    found[f"{entry.name}.{name}"] = network
    return found


def test_networks_of_others_are_not_claimed():
    networks = others()
    assert len(networks) >= 30
    for name, network in networks.items():
        assert network_type(network.state_dict()) is None, name


def test_a_damaged_file_of_ours_is_told_by_what_it_lacks(tmp_path):
    options = {"dim": 16, "pdim": 4, "kernel_size": 5, "n_blocks": 1, "conv_blocks": 1}
    options |= {"window_size": 8, "num_heads": 2, "exp_ratio": 1.25, "upscaling_factor": 2}
    state = build_on_meta({"type": "ESC", **options}).state_dict()
    state = {
        name: torch.zeros(value.shape) for name, value in state.items() if "ln_out" not in name
    }
    with pytest.raises(ValueError, match="lacks 2 of its .*ln_out"):
        spandrel.ModelLoader().load_from_state_dict(state)
