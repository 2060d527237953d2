"""What `torch.compile` makes of a network on a GPU, by tensors that only have a shape there."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from esc_arch.archs import ESC

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"), reason="this PyTorch compiles formulas"
)

TINY = {"dim": 16, "pdim": 8, "kernel_size": 5, "n_blocks": 1, "conv_blocks": 2}
TINY |= {"window_size": 8, "num_heads": 2, "upscaling_factor": 2}
# Windows that are filled, completed, and larger than the image.
SIZES = [(2, 9, 12), (3, 16, 24), (2, 16, 11), (2, 5, 30)]


def graphs_of(dtype: torch.dtype, dynamic: bool | None) -> list[torch.fx.GraphModule]:
    """Graphs that torch.compile makes of ESC on a GPU, for all sizes; no graph may be broken."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    with torch.no_grad(), FakeTensorMode(shape_env=ShapeEnv()), torch.device("cuda"):
        network = ESC(**TINY).eval()
        for tensor in network.parameters():
            tensor.data = torch.empty(tensor.shape, dtype=dtype)
        compiled = torch.compile(
            network, backend=aot_autograd(fw_compiler=keep), fullgraph=True, dynamic=dynamic
        )
        for batch, height, width in SIZES:
            result = compiled(torch.empty(batch, 3, height, width, dtype=dtype))
            assert result.shape == (batch, 3, 2 * height, 2 * width)
            assert result.dtype == dtype and result.device.type == "cuda"
    return graphs


@pytest.mark.parametrize(
    ("dtype", "dynamic", "count"), [(torch.bfloat16, None, 2), (torch.float16, True, 1)]
)
def test_one_graph_of_triton_kernels_without_copies_between_them_serves_all_sizes(
    dtype: torch.dtype, dynamic: bool | None, count: int
) -> None:
    # Unless told otherwise torch takes the first size as fixed, and the second one as one of many.
    graphs = graphs_of(dtype, dynamic)
    assert len(graphs) == count
    for graph in graphs:
        nodes = list(graph.graph.nodes)
        names = [str(node.target) for node in nodes]
        ours = [place for place, name in enumerate(names) if name.startswith("esc.")]
        assert Counter(names[place] for place in ours) == {
            "esc.triton_conv_ffn.default": 3,
            "esc.triton_conv_attn.default": 2,
            "esc.triton_window_attention.default": 1,
        }
        for place in ours:
            value = nodes[place].meta["val"]
            out = value[0] if isinstance(value, tuple) else value
            assert out.dtype == dtype
            assert out.stride(1) == 1 and out.stride(3) == out.shape[1]
        between = names[ours[0] : ours[-1]]
        assert not [name for name in between if "clone" in name or "copy" in name]
