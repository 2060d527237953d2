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


def test_modes_and_replaced_weights_are_recorded_anew() -> None:
    recorder, layer, x = Recorder(), nn.Linear(3, 3).eval(), torch.rand(2, 3)
    replays = Replays(layer, recorder)

    def call_twice() -> None:
        replays(x)
        assert torch.equal(replays(x), layer(x))

    with torch.no_grad():
        call_twice()
        with torch.autocast("cpu", torch.bfloat16):
            call_twice()
    with torch.inference_mode():
        call_twice()
    with torch.no_grad():
        replays(x)  # Writes into no tensor of inference mode.
        layer.train()
        call_twice()
        layer.eval()
        weights = {name: 2 * tensor for name, tensor in layer.state_dict().items()}
        layer.load_state_dict(weights, assign=True)
        call_twice()
    assert len(recorder.sizes) == 5


def test_recordings_make_way_where_memory_does_not_suffice() -> None:
    recorder, room = Recorder(), [True]

    def run(x: Tensor) -> Tensor:
        if not room[0] and replays._recordings:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return 2 * x

    replays = Replays(run, recorder)
    wide, tall = torch.rand(2, 3), torch.rand(3, 2)
    for _ in range(2):
        replays(wide)
    room[0] = False
    assert torch.equal(replays(tall), 2 * tall)
    assert not replays._recordings

    def refuse(run: Callable[[Tensor], Tensor], x: Tensor) -> Recording:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    replays = Replays(double, refuse)
    for _ in range(3):
        assert torch.equal(replays(wide), 2 * wide)


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
