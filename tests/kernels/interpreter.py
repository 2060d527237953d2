"""What the tests that Triton's interpreter runs have in common."""

import numpy as np
import pytest

from esc_arch.kernels.gpu import launches


@pytest.fixture(autouse=True)
def products_as_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of float32 are summed in order, and those of bfloat16 are products of numbers.

    The kernels rely on a product of transposed matrices to be the same to the bit, which NumPy's
    is not on each processor; of bfloat16, Triton's interpreter multiplies the bits as integers.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    def values(operand: "interpreter.TensorHandle") -> np.ndarray:
        if operand.dtype.scalar != tl.bfloat16:
            return operand.data
        return (operand.data.astype(np.uint32) << 16).view(np.float32)

    def create_dot(self: object, a: object, b: object, start: object, *_: object) -> object:
        if a.dtype.scalar == tl.float32:
            result = start.data
            for column, row in zip(a.data.T, b.data, strict=True):
                result = result + np.outer(column, row)
        else:
            result = np.matmul(values(a), values(b), dtype=start.data.dtype) + start.data
        return interpreter.TensorHandle(result, start.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


@pytest.fixture(autouse=True)
def launched_as_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs as large as on a GPU, not as the interpreter is quick with."""
    monkeypatch.setattr(launches, "INTERPRETED", False)
