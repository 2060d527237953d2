"""Files of torch.export (.pt2): written, and checked against PyTorch once read again."""

import inspect
import io
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from esc_arch.errors import UserError
from esc_arch.inference.export_checks import Shape, differences, traced_shape
from esc_arch.inference.export_forms import branchless, export_form

# The name under which a file holds what it says of itself.
PROPERTIES = "properties.json"
# PyTorch 2.9 brought it. Without it an export holds no size at which some tensor would have a side
# of one: one window.
_DEFERRED = "prefer_deferred_runtime_asserts_over_guards"


def to_exported(
    network: nn.Module,
    shape: Shape | None = None,
    dtype: torch.dtype = torch.float32,
    properties: Mapping[str, str] | None = None,
) -> bytes:
    """Write a network as a program of torch.export.

    Args:
        network: A network of the ESC family.
        shape: Of the input, (B, 3, H, W); None for any batch, height and width.
        dtype: As for `onnx_files.to_onnx`.
        properties: Texts that the file shall carry.

    Returns:
        The file's content. The program takes `x`, RGB in [0, 1].

    Raises:
        UserError: This PyTorch cannot export it for any size.
    """
    free = shape is None
    if free and _DEFERRED not in inspect.signature(torch.export.export).parameters:
        raise UserError(
            f"--shape dynamic: needs PyTorch 2.9 or newer, this is {torch.__version__}; "
            "a shape such as --shape 1x3x180x320 works"
        )
    form = export_form(network, dtype)
    example = torch.zeros(shape or traced_shape(network.window_size), dtype=dtype)
    sides = {0: Dim("batch", min=1), 2: Dim("height", min=1), 3: Dim("width", min=1)}
    options = {"dynamic_shapes": {"x": sides}, _DEFERRED: True} if free else {}
    with branchless(), torch.no_grad():
        program = torch.export.export(form, (example,), **options)
    _drop_assertions(program)
    buffer = io.BytesIO()
    extra = {PROPERTIES: json.dumps(dict(properties or {}))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # That files may not be for newer versions.
        torch.export.save(program, buffer, extra_files=extra)
    return buffer.getvalue()


def _drop_assertions(program: ExportedProgram) -> None:
    """Take out that windows are more than one, and the like.

    PyTorch assumes it of strides of which nothing in the graph makes use: the operations are the
    same for one window, which `differences` shows.
    """
    graph = program.graph_module.graph
    for node in [*graph.nodes]:
        if node.op == "call_function" and "_assert_scalar" in str(node.target):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()


def errors_of(
    content: bytes, network: nn.Module, shapes: Iterable[Shape]
) -> Iterator[tuple[Shape, float]]:
    """Compare a file with PyTorch, see `differences`.

    Args:
        content: The file's.
        network: As for `to_exported`, in float32 on the CPU.
        shapes: Of the random pictures.
    """
    program = torch.export.load(io.BytesIO(content))
    dtype = next(iter(program.state_dict.values())).dtype
    module = program.module()

    def run(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(x).to(dtype)).numpy()

    return differences(run, network, shapes)
