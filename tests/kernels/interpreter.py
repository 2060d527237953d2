"""What the tests that Triton's interpreter runs have in common."""

import numpy as np
import pytest

from esc_arch.kernels.gpu import launches


@pytest.fixture(autouse=True)
def products_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter keeps bfloat16 as its bits, and multiplies these as integers."""
    import triton.language as tl
    from triton.runtime import interpreter

    def values(operand: "interpreter.TensorHandle") -> np.ndarray:
        if operand.dtype.scalar != tl.bfloat16:
            return operand.data
        return (operand.data.astype(np.uint32) << 16).view(np.float32)

    def create_dot(self: object, a: object, b: object, start: object, *_: object) -> object:
        product = np.matmul(values(a), values(b), dtype=start.data.dtype)
        return interpreter.TensorHandle(product + start.data, start.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


@pytest.fixture(autouse=True)
def launched_as_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs as large as on a GPU, not as the interpreter is quick with."""
    monkeypatch.setattr(launches, "INTERPRETED", False)
