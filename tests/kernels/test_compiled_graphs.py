"""What `torch.compile` makes of a network on a GPU, by tensors that only have a shape there.

Triton tells torch what a kernel writes to by compiling it for a GPU, which it is told of here.
"""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from kernel_checks import tells_exports  # noqa: F401
from torch import Tensor

from esc_arch.archs import ESC
from esc_arch.kernels import choose
from esc_arch.kernels.gpu import trials

triton = pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = [
    pytest.mark.skipif("not tells_exports()", reason="this PyTorch compiles formulas"),
]

TINY = {"dim": 16, "pdim": 8, "kernel_size": 5, "n_blocks": 1, "conv_blocks": 2}
TINY |= {"window_size": 8, "num_heads": 2, "upscaling_factor": 2}
# Windows that are filled, completed, and larger than the image.
SIZES = [(2, 9, 12), (3, 16, 24), (2, 16, 11), (2, 5, 30)]


class Hopper:
    """Triton's driver on a machine with a GPU of compute capability 9.0, for its compiler alone."""

    def get_current_target(self) -> object:
        return triton.backends.compiler.GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0


@pytest.fixture(autouse=True)
def compiles_for_hopper() -> None:
    driver = triton.runtime.driver
    driver.set_active(Hopper())
    yield
    if hasattr(driver, "_active"):
        driver._active = None  # Resetting it would look for a GPU.
    else:
        driver.reset_active()


@pytest.fixture(autouse=True)
def kernels_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no GPU to try them on."""
    monkeypatch.setattr(trials, "_works", lambda *_: True)


def graphs_of(
    device: str, dtype: torch.dtype, dynamic: bool | None, sizes: list, training: bool = False
) -> list[torch.fx.GraphModule]:
    """Graphs that torch.compile makes of ESC, for all sizes; no graph may be broken."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    fake = FakeTensorMode(shape_env=ShapeEnv())
    with torch.set_grad_enabled(training), fake, torch.device(device):
        network = ESC(**TINY).train(training)
        weights = torch.float32 if training else dtype
        for tensor in network.parameters():
            tensor.data = torch.empty(tensor.shape, dtype=weights)
        compiled = torch.compile(
            network, backend=aot_autograd(fw_compiler=keep), fullgraph=True, dynamic=dynamic
        )
        for batch, height, width in sizes:
            with torch.autocast(device, dtype, enabled=training):
                result = compiled(torch.empty(batch, 3, height, width, dtype=weights))
            assert result.shape == (batch, 3, 2 * height, 2 * width)
            assert result.device.type == device and (training or result.dtype == dtype)
            if training:
                result.float().square().mean().backward()
    return graphs


def kernels_in(graph: torch.fx.GraphModule) -> Counter:
    """Names of our kernels and operators in a graph, and how often each is there."""
    from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table

    found: Counter = Counter()
    for node in graph.graph.nodes:
        if str(node.target).startswith("triton_kernel_wrapper"):
            found[kernel_side_table.get_kernel(node.kwargs["kernel_idx"]).fn.__name__] += 1
            # What a kernel only reads needs no copy: Triton's compiler has told.
            written = set(node.kwargs.get("tensors_to_clone", ()))
            assert written and not written & {"q_ptr", "k_ptr", "v_ptr", "x_ptr", "grad_out_ptr"}
        elif str(node.target).startswith("esc."):
            found[str(node.target)] += 1
    return found


@pytest.mark.parametrize(
    ("dtype", "dynamic", "count"), [(torch.bfloat16, None, 2), (torch.float16, True, 1)]
)
def test_one_graph_of_triton_kernels_that_torch_sees_serves_all_sizes(
    dtype: torch.dtype, dynamic: bool | None, count: int
) -> None:
    # Unless told otherwise torch takes the first size as fixed, and the second one as one of many.
    graphs = graphs_of("cuda", dtype, dynamic, SIZES)
    assert len(graphs) == count
    for graph in graphs:
        assert kernels_in(graph) == {
            "project_kernel": 3,
            "conv_ffn_kernel": 3,
            "conv_attn_kernel": 2,
            "window_attention_forward": 1,
        }
        for node in graph.graph.nodes:
            value = node.meta.get("val")
            # Nothing is made on the CPU and copied, which CUDA graphs could not record.
            assert not isinstance(value, Tensor) or value.device.type == "cuda"


@pytest.mark.slow
def test_training_with_autocast_is_two_graphs_whose_kernels_torch_sees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Backward without a GPU: as if the kernels ran where gradients of CPU tensors do.
    for operation in ("feature_attention", "conv_ffn", "conv_attn"):
        ours = tuple(k for k in choose._kernels[operation, "cuda"] if k.name == "Triton")
        monkeypatch.setitem(choose._kernels, (operation, "cpu"), ours)
    forward, backward = graphs_of("cpu", torch.bfloat16, None, [(2, 16, 12)], training=True)
    assert kernels_in(forward) == {
        "project_kernel": 3,
        "conv_ffn_kernel": 3,
        "conv_attn_kernel": 2,
        "window_attention_forward": 1,
    }
    assert kernels_in(backward) == {
        "project_kernel": 3,
        "conv_gradient_kernel": 3,
        "proj_gradient_kernel": 3,
        "conv_attn_gradient_kernel": 2,
        "queries_pass": 1,
        "keys_pass": 1,
        "bias_pass": 1,
    }
