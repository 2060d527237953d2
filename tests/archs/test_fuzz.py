"""Networks under options, sizes and batches that nobody chose."""

from typing import Any

import pytest
import torch
from basicsr.archs import build_network
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SMALL = {
    "dim": 8,
    "pdim": 4,
    "kernel_size": 5,
    "n_blocks": 1,
    "conv_blocks": 1,
    "window_size": 4,
    "num_heads": 2,
    "upscaling_factor": 4,
    "exp_ratio": 1.25,
    "attn_type": "Auto",
    "flashbias_rank": None,
}
NETWORKS: dict[str, dict[str, Any]] = {
    "ESC": {**SMALL, "use_ln": False},
    "ESCFP": SMALL,
    "ESCReal": {**SMALL, "use_dysample": False},
}
VALUES = st.one_of(
    st.integers(-2, 20),
    # Some libraries of the oldest set make processors flush subnormal numbers.
    st.floats(allow_subnormal=False),
    st.booleans(),
    st.none(),
    st.text(max_size=4),
    st.sampled_from(["Naive", "naive", "SDPA", "Flex", "FlashBias", "Flash", "8", "yes"]),
    st.lists(st.integers(0, 8), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
)


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_options_build_a_network_that_runs_or_are_refused_by_name(name: str, data):
    options = dict(NETWORKS[name])
    keys = st.lists(st.sampled_from(sorted(options)), min_size=1, max_size=3, unique=True)
    for key in data.draw(keys):
        options[key] = data.draw(VALUES)
    x = torch.rand(1, 3, 5, 6)
    try:
        network = build_network({"type": name, **options})
        with torch.no_grad():
            out = network(x)
    except ValueError as error:
        assert str(error).split(" ")[0] in options, error
        assert len(str(error).splitlines()) == 1
        return
    scale = options["upscaling_factor"]
    assert out.shape == (1, 3, 5 * scale, 6 * scale)
    assert out.isfinite().all()


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(batch=st.integers(1, 4), height=st.integers(1, 30), width=st.integers(1, 30))
def test_each_image_of_any_batch_and_size_is_upscaled_as_if_alone(
    name: str, batch: int, height: int, width: int
):
    torch.manual_seed(0)
    network = build_network({"type": name, **NETWORKS[name]}).eval()
    x = torch.rand(batch, 3, height, width)
    with torch.no_grad():
        out = network(x)
        alone = network(x[-1:])
    assert out.shape == (batch, 3, 4 * height, 4 * width)
    torch.testing.assert_close(out[-1:], alone, atol=1e-5, rtol=1e-4)
