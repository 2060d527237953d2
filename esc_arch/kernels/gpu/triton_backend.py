"""Registers the Triton kernels, and falls back where they fail."""

import functools
import os
import warnings

import torch
from torch import Tensor

from esc_arch.kernels import choose
from esc_arch.kernels.gpu.window_attention import DTYPES, can_run, triton_window_attention
from esc_arch.ops import attention

# With TRITON_INTERPRET=1 in the environment Triton interprets kernels, on the CPU.
DEVICES = ("cuda", "cpu") if os.environ.get("TRITON_INTERPRET") == "1" else ("cuda",)


def attend(q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, window_size: int) -> Tensor:
    """Compute `ops.feature_attention` by Triton, or by what runs without it."""
    if not torch.compiler.is_compiling() and not works(q.device.type, q.device.index):
        return attention.attend_in_windows(attention.flex_or_sdpa, q, k, v, bias_table, window_size)
    with torch.autocast(q.device.type, enabled=False):
        return triton_window_attention(q, k, v, bias_table, window_size)[0]


@functools.cache
def works(device: str, index: int | None) -> bool:
    """Try the kernel once on a device; a failure is said, once."""
    place = device if index is None else f"{device}:{index}"
    try:
        x = torch.zeros(1, 16, 4, 4, device=place)
        triton_window_attention(x, x, x, torch.zeros(1, 49, device=place), 4)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # Compilers and drivers fail in too many ways to name.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        warnings.warn(
            f"attn_type 'Auto': Triton cannot run here ({reason[0]}); Flex runs instead",
            stacklevel=2,
        )
        return False
    return True


for device in DEVICES:
    choose.register("feature_attention", device, name="Triton", dtypes=DTYPES, takes=can_run)(
        attend
    )
