"""Sizes that come again are recorded and replayed; what is recorded here is no CUDA graph."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import esc_arch
from esc_arch.errors import UserError
from esc_arch.inference.replays import Recording, Replays
from esc_arch.inference.upscaler import Upscaler


class Recorder:
    """Records as CUDA graphs do: what is replayed reads one tensor and writes another."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, ...]] = []
        self.replays = 0

    def __call__(self, run: Callable[[Tensor], Tensor], x: Tensor) -> Recording:
        self.sizes.append(tuple(x.shape))
        given = x.clone()
        result = run(given)

        def replay() -> None:
            self.replays += 1
            result.copy_(run(given))

        return Recording(given, result, replay)


def double(x: Tensor) -> Tensor:
    return 2 * x


def test_a_size_is_recorded_when_it_comes_again_and_replayed_from_then_on() -> None:
    recorder = Recorder()
    replays = Replays(double, recorder)
    inputs = [torch.rand(2, 3) for _ in range(4)]
    results = []
    for count, x in enumerate(inputs):
        results.append(replays(x))
        assert len(recorder.sizes) == min(count, 1) and recorder.replays == count
    # Later replays do not write into the results of earlier ones.
    for x, result in zip(inputs, results, strict=True):
        assert torch.equal(result, 2 * x)


def test_sizes_dtypes_and_layouts_are_recorded_each_and_those_used_long_ago_are_dropped() -> None:
    recorder = Recorder()
    replays = Replays(double, recorder, kept=2)
    wide, tall, other = torch.rand(2, 3), torch.rand(3, 2), torch.rand(2, 3).double()
    for x in (wide, wide, tall, tall, wide, other, other):
        assert torch.equal(replays(x), 2 * x)
    assert recorder.sizes == [(2, 3), (3, 2), (2, 3)]
    assert torch.equal(replays(wide), 2 * wide)
    assert len(recorder.sizes) == 3  # It was used after the tall one, which went.
    replays(tall)
    assert len(recorder.sizes) == 4
    transposed = torch.rand(3, 2).t()
    replays(transposed)
    assert torch.equal(replays(transposed), 2 * transposed)
    assert len(recorder.sizes) == 5


def test_what_cannot_be_recorded_runs_as_it_is_and_that_is_said_once() -> None:
    def fail(run: Callable[[Tensor], Tensor], x: Tensor) -> Recording:
        raise RuntimeError("it waits for the GPU\nand more")

    replays, x = Replays(double, fail), torch.rand(2, 3)
    replays(x)
    with pytest.warns(UserWarning, match="^no CUDA graphs here: it waits for the GPU; it runs"):
        assert torch.equal(replays(x), 2 * x)
    assert torch.equal(replays(x), 2 * x)


def test_whole_pictures_are_replayed_with_the_weights_of_the_moment_and_tiles_are_not() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2)).eval()
    upscaler, recorder = Upscaler(network, {"scale": 2}, tile=0), Recorder()
    upscaler._replays = Replays(network, recorder)  # As on a GPU, which is not here.
    lq = torch.rand(3, 5, 6)
    for _ in range(3):
        result = upscaler.upscale(lq)
    assert recorder.replays == 2
    plain = Upscaler(network, {"scale": 2}, tile=0)
    assert torch.equal(result, plain.upscale(lq))
    with torch.no_grad():
        network[0].weight.mul_(0.5)
    assert torch.equal(upscaler.upscale(lq), plain.upscale(lq))
    upscaler.tile, upscaler.tile_pad = 4, 1
    replayed = recorder.replays
    for _ in range(3):
        upscaler.upscale(lq)
    assert recorder.replays == replayed


def test_cuda_graphs_are_refused_in_one_line_without_cuda() -> None:
    network = nn.Conv2d(3, 12, 3)
    with pytest.raises(UserError, match="^cuda_graphs: CUDA graphs need a CUDA GPU; .* is cpu$"):
        Upscaler(network, {"scale": 2}, cuda_graphs=True)
    with pytest.raises(UserError, match="^cuda_graphs: CUDA graphs need a CUDA GPU; .* is cpu$"):
        esc_arch.load(device="cpu", cuda_graphs=True)
