"""Networks in a form that exporters can hold: any size, no question asked of it, no kernels.

The networks stay as they are. Where a formula of `esc_arch.ops` decides something by the size of
what it is given, another one of the same results stands for it while the network is exported.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esc_arch import ops
from esc_arch.kernels import choose
from esc_arch.ops import fusible, windows

# Rows of scores of a window that are held at once, over all heads: with windows of 32 x 32 a
# megabyte a window, and 16 parts for four heads, of which the graph consists.
_ROWS_AT_ONCE = 256


def export_form(network: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Copy a network for an export; to be run within `branchless`.

    Args:
        network: A network of the ESC family.
        dtype: What it shall compute in. In half precision LayerNorm and the mean over the picture
            stay in float32: the sum over 480p overflows float16.

    Returns:
        The copy, on the CPU, in evaluation mode, its large kernels averaged over D4 already. It
        completes pictures to whole windows, as `evaluated` does.
    """
    form = copy.deepcopy(network).cpu().float().eval().requires_grad_(False)
    for module in form.modules():
        if isinstance(getattr(module, "plk_filter", None), nn.Parameter):
            mean = ops.d4_mean(module.plk_filter)
            module.plk_filter = nn.Parameter(mean.contiguous(), requires_grad=False)
    form = form.to(dtype)
    return _WholeWindows(form if dtype == torch.float32 else _exact_statistics(form))


def evaluated(network: nn.Module, x: Tensor) -> Tensor:
    """What an exported model computes of pictures (B, 3, H, W): as the paper's evaluation does.

    They are continued to whole windows by reflection, and the result is cut. ConvAttn pools over
    all that the network is given, so that this is not the same as to leave it to the attention.
    """
    height, width = x.shape[-2:]
    scale = network.upscaling_factor
    out = network(windows.pad_to_multiple(x, network.window_size))
    return out[..., : height * scale, : width * scale]


@contextmanager
def branchless() -> Iterator[None]:
    """Let formulas run that are the same operations for every size, and no kernels.

    Attention is written as products and softmax, a part of the scores at a time.
    """

    def self_attention(
        x: Tensor, to_qkv: nn.Module, table: Tensor, window_size: int, attn_type: str
    ) -> Tensor:
        bias = _table_bias(table, window_size)
        return _in_windows(x, to_qkv, window_size, int(table.shape[0]), bias)

    def flashbias_self_attention(
        x: Tensor, to_qkv: nn.Module, bias_q: Tensor, bias_k: Tensor, window_size: int
    ) -> Tensor:
        bias = bias_q @ bias_k.transpose(-2, -1)
        return _in_windows(x, to_qkv, window_size, int(bias_q.shape[0]), bias)

    stand_ins = {
        "d4_mean": lambda kernel: kernel,  # Averaged by `export_form`.
        "long_range_dynamic_conv": _long_range_dynamic_conv,
        "factored_dynamic_conv": _factored_dynamic_conv,
        "pad_to_multiple": _pad_to_multiple,
        "reflect_margin": _reflect_margin,
        "self_attention": self_attention,
        "flashbias_self_attention": flashbias_self_attention,
    }
    with choose.switched_off(), fusible.standing_in(stand_ins):
        yield


class _WholeWindows(nn.Module):
    """A network as it is evaluated; all that is within gets whole windows."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return evaluated(self.network, x)


class _InFloat32(nn.Module):
    """Computes one layer in float32, whatever comes in."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer.float()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.float()).to(x.dtype)


def _exact_statistics(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        if isinstance(child, (nn.LayerNorm, nn.AdaptiveAvgPool2d)):
            setattr(module, name, _InFloat32(child))
        else:
            _exact_statistics(child)
    return module


# Sizes that do not depend on the picture are made numbers by `int`: tracing gives tensors for all.


def _reflected(size: int, before: int, total: int, device: torch.device) -> Tensor:
    """`windows.reflect_indices` for sizes that are not known yet: a triangle wave."""
    # A side of one pixel is repeated: its period is 1, not 0.
    period = 2 * (size - 1) + 1 // size
    position = (torch.arange(total, device=device) - before) % period
    return torch.minimum(position, period - position)


def _pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    for axis in (-2, -1):
        size = x.shape[axis]
        total = (size + (multiple - 1)) // multiple * multiple
        x = x.index_select(axis, _reflected(size, 0, total, x.device))
    return x


def _reflect_margin(x: Tensor, margin: int) -> Tensor:
    for axis in (-2, -1):
        size = x.shape[axis]
        x = x.index_select(axis, _reflected(size, margin, size + 2 * margin, x.device))
    return x


def _long_range_dynamic_conv(x: Tensor, large_kernel: Tensor, kernels: Tensor) -> Tensor:
    padding = (int(large_kernel.shape[-1]) // 2,) * 2
    return F.conv2d(x, large_kernel, padding=padding) + _dynamic_conv(x, kernels)


def _factored_dynamic_conv(x: Tensor, spatial: Tensor, dynamic: Tensor) -> Tensor:
    padding = (int(spatial.shape[-1]) // 2,) * 2
    long_range = F.conv2d(x, spatial, padding=padding, groups=int(spatial.shape[0]))
    return long_range + _dynamic_conv(x, dynamic)


def _dynamic_conv(x: Tensor, kernels: Tensor) -> Tensor:
    """Convolve with each image's own 3x3 kernels, as few runtimes can: by multiply-adds."""
    weights = kernels.reshape(-1, int(x.shape[1]), 9, 1, 1)
    # Ends counted from the back are the same for every size.
    parts = (slice(0, -2), slice(1, -1), slice(2, None))
    strips = [F.pad(x, (1, 1, 1, 1))[..., rows, :] for rows in parts]
    shifted = [strip[..., columns] for strip in strips for columns in parts]
    taps = [part * weights.select(2, tap) for tap, part in enumerate(shifted)]
    return sum(taps[1:], taps[0])


def _in_windows(x: Tensor, to_qkv: nn.Module, window_size: int, heads: int, bias: Tensor) -> Tensor:
    """Attend within windows, all of them whole, with a bias (heads, w * w, w * w)."""
    w, channels = window_size, int(x.shape[1])
    rows, columns = x.shape[-2] // w, x.shape[-1] // w
    qkv = to_qkv(x).view(-1, 3, heads, channels // heads, rows, w, columns, w)
    qkv = qkv.permute(1, 0, 4, 6, 2, 5, 7, 3).reshape(3, -1, heads, w * w, channels // heads)
    out = _attend(qkv[0], qkv[1], qkv[2], bias)
    out = out.view(-1, rows, columns, heads, w, w, channels // heads)
    return out.permute(0, 3, 6, 1, 4, 2, 5).reshape(-1, channels, rows * w, columns * w)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v for (windows, heads, N, D), the softmax in float32."""
    heads, pixels, head_dim = (int(size) for size in q.shape[1:])
    at_once = max(1, _ROWS_AT_ONCE // heads)
    bias = bias.to(q.dtype)
    keys = (k * head_dim**-0.5).transpose(-2, -1)
    parts = []
    for start in range(0, pixels, at_once):
        end = min(start + at_once, pixels)
        part = q.narrow(2, start, end - start)
        scores = part @ keys + bias.narrow(1, start, end - start)
        parts.append(_softmax(scores) @ v)
    return torch.cat(parts, dim=2)


def _softmax(scores: Tensor) -> Tensor:
    if scores.dtype == torch.float32:
        return scores.softmax(-1)
    return scores.float().softmax(-1).to(scores.dtype)


def _table_bias(table: Tensor, window_size: int) -> Tensor:
    """The bias (heads, w * w, w * w) out of its table, without indices.

    Runtimes compute it when they load a file. Five blocks of it in the file would take 80 MB, and
    indices 8 MB.
    """
    w, heads = window_size, int(table.shape[0])
    # (heads, rows of the table, query column, key column), then query row and key row in front.
    columns = _slide(table.view(heads, 2 * w - 1, 2 * w - 1), w)
    grid = _slide(columns.permute(0, 2, 3, 1), w)
    return grid.permute(0, 3, 1, 4, 2).reshape(heads, w * w, w * w)


def _slide(line: Tensor, w: int) -> Tensor:
    """out[..., q, k] = line[..., k - q + w - 1], for (..., 2w - 1).

    Rows of 2w - 1 out of what repeats after 2w values are each shifted by one.
    """
    lead = [int(size) for size in line.shape[:-1]]
    period = F.pad(line, (0, 1)).unsqueeze(-2)
    repeated = period.expand(*lead, w, 2 * w).reshape(*lead, 2 * w * w)
    rows = repeated.narrow(-1, 0, w * (2 * w - 1)).reshape(*lead, w, 2 * w - 1)
    return rows.narrow(-1, w - 1, w)
