import numpy as np
import pytest
import torch

from esc_arch.ops.geometry import d4_mean, embed_kernel
from esc_arch.ops.windows import pad_to_multiple, reflect_pad, window_partition, window_reverse


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (7, 4), (9, 16)])
@pytest.mark.parametrize("pad", [(0, 0), (3, 0), (1, 30), (15, 15)])
def test_reflect_pad_is_numpys_for_any_amount(size, pad):
    x = torch.randn(2, 3, *size)
    expected = np.pad(x.numpy(), ((0, 0), (0, 0), (0, pad[0]), (0, pad[1])), mode="reflect")
    np.testing.assert_array_equal(reflect_pad(x, *pad).numpy(), expected)


def test_pad_to_multiple_leaves_whole_windows_alone():
    x = torch.randn(1, 2, 16, 24)
    assert pad_to_multiple(x, 8) is x
    assert pad_to_multiple(x, 10).shape == (1, 2, 20, 30)


@pytest.mark.parametrize("channels_last", [False, True])
def test_windows_are_row_major_and_put_back(channels_last):
    x = torch.arange(2 * 6 * 4 * 8).view(2, 6, 4, 8)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    windows = window_partition(x, 2, num_heads=3)
    assert windows.shape == (2 * 2 * 4, 3, 4, 2)
    # Second sample, window in row 1 and column 2, head 1: its four pixels, row by row.
    expected = x[1, 2:4, 2:4, 4:6].flatten(1).T
    assert torch.equal(windows[8 + 4 + 2, 1], expected)
    assert torch.equal(window_reverse(windows, 2, 4, 8), x)


def test_d4_mean_is_invariant_and_keeps_what_is():
    kernel = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    mean = d4_mean(kernel)
    for turned in (mean.rot90(1, (-2, -1)), mean.flip(-1), mean.flip(-2), mean.mT):
        torch.testing.assert_close(turned, mean)
    torch.testing.assert_close(d4_mean(mean), mean)
    eight = [k for t in range(4) for k in (kernel.rot90(t, (2, 3)), kernel.rot90(t, (2, 3)).mT)]
    torch.testing.assert_close(mean, sum(eight) / 8)


def test_an_embedded_kernel_convolves_alike():
    x, kernel = torch.randn(1, 2, 9, 9), torch.randn(4, 2, 3, 3)
    expected = torch.nn.functional.conv2d(x, kernel, padding=1)
    out = torch.nn.functional.conv2d(x, embed_kernel(kernel, 7), padding=3)
    torch.testing.assert_close(out, expected)
