"""ONNX files of networks: written, and checked against PyTorch in ONNX Runtime."""

import inspect
import io
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from esc_arch.errors import UserError, printable
from esc_arch.inference.export_checks import Shape, differences, traced_shape
from esc_arch.inference.export_forms import branchless, export_form

if TYPE_CHECKING:
    import onnxruntime

INPUT, OUTPUT = "input", "output"
OLDEST_OPSET = 17
# What both the oldest and the newest PyTorch write; ONNX itself makes newer ones of that.
_WRITTEN = 20


def to_onnx(
    network: nn.Module,
    shape: Shape | None = None,
    dtype: torch.dtype = torch.float32,
    opset: int = OLDEST_OPSET,
    properties: Mapping[str, str] | None = None,
) -> bytes:
    """Write a network as an ONNX model, found valid by ONNX's own checker.

    Args:
        network: A network of the ESC family.
        shape: Of the input, (B, 3, H, W); None for any batch, height and width.
        dtype: float32, or float16: then of input, output and weights; softmax, LayerNorm and the
            means over the picture stay in float32.
        opset: Version of ONNX's operators, one of `opsets()`.
        properties: Texts that the model shall carry, `metadata_props`.

    Returns:
        The file's content. The model takes `input`, RGB in [0, 1], and gives `output`.

    Raises:
        UserError: The package onnx is missing.
    """
    onnx = _onnx()
    form = export_form(network, dtype)
    example = torch.zeros(shape or traced_shape(network.window_size), dtype=dtype)
    free = {
        INPUT: {0: "batch", 2: "height", 3: "width"},
        OUTPUT: {0: "batch", 2: "output_height", 3: "output_width"},
    }
    buffer = io.BytesIO()
    # PyTorch takes another exporter by default since 2.9, which the oldest does not have.
    has_choice = "dynamo" in inspect.signature(torch.onnx.export).parameters
    options = {"dynamo": False} if has_choice else {}
    with branchless(), torch.no_grad(), warnings.catch_warnings():
        # Of sizes made numbers, which are the same for every picture; and that it is the older.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            form,
            (example,),
            buffer,
            opset_version=min(opset, _WRITTEN),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes=free if shape is None else None,
            **options,
        )
    model = onnx.load_from_string(buffer.getvalue())
    if opset > _WRITTEN:
        model = onnx.version_converter.convert_version(model, opset)
        oldest = onnx.helper.find_min_ir_version_for(model.opset_import)
        model.ir_version = max(model.ir_version, oldest)
    onnx.helper.set_model_props(model, dict(properties or {}))
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def errors_of(
    model: bytes, network: nn.Module, shapes: Iterable[Shape]
) -> Iterator[tuple[Shape, float]]:
    """Compare a model in ONNX Runtime with PyTorch, see `differences`.

    Args:
        model: The file's content.
        network: As for `to_onnx`, in float32 on the CPU.
        shapes: Of the random pictures.

    Raises:
        UserError: The package onnxruntime is missing.
    """
    session = open_session(model, ["CPUExecutionProvider"])
    dtype = np.float16 if session.get_inputs()[0].type == "tensor(float16)" else np.float32

    def run(x: np.ndarray) -> np.ndarray:
        return session.run([OUTPUT], {INPUT: x.astype(dtype)})[0]

    return differences(run, network, shapes)


def open_session(
    model: bytes | str, providers: list[str], threads: int | None = None
) -> "onnxruntime.InferenceSession":
    """Load a model in ONNX Runtime.

    Args:
        model: A file's path or content.
        providers: What runs it, in order of preference.
        threads: How many of the CPU it uses; None for as many as PyTorch.

    Raises:
        UserError: The package onnxruntime is missing, or does not take the model.
    """
    onnxruntime = _onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 4  # Its errors are raised, too; warnings tell of optimisations.
    try:
        return onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:  # It raises a class for each of its statuses.
        what = "the model" if isinstance(model, bytes) else printable(model)
        raise UserError(f"{what}: ONNX Runtime cannot load it: {reason_of(error)}") from None


def reason_of(error: Exception) -> str:
    """What an error of ONNX Runtime says, in a line."""
    return " ".join(str(error).split())[:200]


def opsets() -> range:
    """The versions of operators that models can be written with.

    Raises:
        UserError: The package onnx is missing.
    """
    return range(OLDEST_OPSET, _onnx().defs.onnx_opset_version() + 1)


def versions() -> str:
    """What writes and checks: ONNX and ONNX Runtime with their versions.

    Raises:
        UserError: One is missing.
    """
    return f"ONNX {_onnx().__version__} and ONNX Runtime {_onnxruntime().__version__}"


def _onnxruntime():
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(_missing("onnxruntime")) from error
    return onnxruntime


def _onnx():
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.version_converter
    except ImportError as error:
        raise UserError(_missing("onnx")) from error
    return onnx


def _missing(package: str) -> str:
    return f"ONNX needs the package {package}: pip install 'esc-arch[onnx]'"
