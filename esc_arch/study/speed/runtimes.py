"""Networks in the runtimes that people deploy with, in the place of PyTorch."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import torch
from torch import Tensor

from esc_arch.errors import UserError
from esc_arch.inference.export_checks import Shape
from esc_arch.study.speed.contenders import Contender


def in_runtime(contender: Contender, scale: int, shape: Shape) -> Callable[[Tensor], Tensor]:
    """Load a network, exported for one shape, in its row's runtime, with PyTorch's threads.

    It is exported by a process of its own, so that its memory is not the runtime's.

    Args:
        contender: The row; its `runtime` is set.
        scale: Scale.
        shape: Of the input, (B, 3, H, W).

    Returns:
        Maps (B, 3, H, W) to (B, 3, s * H, s * W).

    Raises:
        UserError: A package is missing, or the network is none of ours.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        model = pool.submit(_exported, contender, scale, shape).result()
    return _onnx_runtime(model) if contender.runtime == "onnx" else _openvino(model)


def _exported(contender: Contender, scale: int, shape: Shape) -> bytes:
    from esc_arch.inference.onnx_files import to_onnx

    return to_onnx(contender.build(scale), shape)


def _onnx_runtime(model: bytes) -> Callable[[Tensor], Tensor]:
    from esc_arch.inference.onnx_files import INPUT, OUTPUT, open_session

    session = open_session(model, ["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run([OUTPUT], {INPUT: x.numpy()})[0])


def _openvino(model: bytes) -> Callable[[Tensor], Tensor]:
    try:
        import openvino
    except ImportError as error:
        raise UserError("OpenVINO is missing: pip install openvino") from error
    core = openvino.Core()
    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(core.read_model(model), "CPU", options)
    return lambda x: torch.from_numpy(compiled(x.numpy())[0])
