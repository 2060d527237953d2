"""Tiles cover an image, and together give what the whole image gives."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from esc_arch.archs.esc import ESC
from esc_arch.inference.tiling import global_pools, super_resolve_tiled, tile_spans, tile_weights


@pytest.mark.parametrize("length", [1, 7, 8, 40, 64, 65, 100])
@pytest.mark.parametrize("tile_size, tile_pad", [(1, 0), (8, 0), (16, 5), (16, 16), (200, 8)])
@pytest.mark.parametrize("multiple", [1, 8])
def test_tiles_cover_a_side_once_and_their_weights_add_up_to_one(
    length, tile_size, tile_pad, multiple
):
    spans = tile_spans(length, tile_size, tile_pad, multiple)
    assert [spans[0].start, *(span.end for span in spans)] == [
        *(span.start for span in spans),
        length,
    ]
    scale = 2
    total = torch.zeros(length * scale)
    for span in spans:
        assert span.end - span.start <= -(-tile_size // multiple) * multiple
        assert span.start % multiple == span.outer_start % multiple == 0
        weights = tile_weights(span, scale)
        assert weights.min() >= 0
        total[span.outer_start * scale : span.outer_end * scale] += weights
    torch.testing.assert_close(total, torch.ones_like(total))


def test_the_ends_of_a_margin_that_is_not_the_images_end_do_not_count():
    span = tile_spans(100, 20, 8)[2]
    weights = tile_weights(span, 1)
    assert weights[:4].sum() == weights[-4:].sum() == 0


@pytest.mark.parametrize("size", [(30, 41), (64, 16), (5, 5)])
@pytest.mark.parametrize("tile_size, multiple", [(8, 1), (13, 1), (12, 8)])
def test_a_network_that_sees_no_further_than_half_the_margin_gives_the_same(
    size, tile_size, multiple
):
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 12, 5, padding=2).double()
    lq = torch.rand(2, 3, *size, dtype=torch.double)

    def network(x):
        return F.pixel_shuffle(convolution(x), 2)

    tiled = super_resolve_tiled(network, lq, tile_size, 4, multiple)
    torch.testing.assert_close(tiled, network(lq), atol=1e-6, rtol=0)


def test_no_tile_is_larger_than_asked_for_and_the_watch_sees_each():
    sizes, seen = [], []

    def network(x):
        sizes.append(x.shape[-2:])
        return x

    def watch(tiles):
        for tile in tiles:
            seen.append(tile)
            yield tile

    lq = torch.rand(1, 3, 50, 70)
    assert torch.allclose(super_resolve_tiled(network, lq, 24, 4, watch=watch), lq)
    assert len(seen) == len(sizes) == 9
    assert max(max(size) for size in sizes) <= 24 + 2 * 4


class Brighten(nn.Module):
    """Adds the mean of its input to each pixel."""

    def __init__(self):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        return x + self.pool(x)


def test_tiles_share_what_the_whole_image_pools():
    lq = torch.rand(2, 3, 40, 56, dtype=torch.double)
    network = Brighten()
    pools = global_pools(network)
    assert pools == [network.pool]
    whole = network(lq)
    torch.testing.assert_close(super_resolve_tiled(network, lq, 16, 4, 1, pools), whole)
    assert (super_resolve_tiled(network, lq, 16, 4) - whole).abs().max() > 0.01
    torch.testing.assert_close(network(lq[..., :5, :5]), Brighten()(lq[..., :5, :5]))


def test_tiles_of_esc_differ_less_where_they_share_what_they_pool():
    torch.manual_seed(0)
    network = ESC(16, 4, 5, 2, 2, 8, 2, 2, exp_ratio=1.25).eval()
    for name, parameter in network.named_parameters():
        if "dwc_proj" in name:
            nn.init.normal_(parameter, std=0.5)
    # Dark on the left and bright on the right: tiles that have little in common.
    lq = torch.rand(1, 3, 48, 96) * torch.linspace(0, 1, 96)
    with torch.inference_mode():
        whole = network(lq)
        alone = super_resolve_tiled(network, lq, 24, 24, 8)
        sharing = super_resolve_tiled(network, lq, 24, 24, 8, global_pools(network))
    errors = [(tiled - whole).abs().mean().item() for tiled in (alone, sharing)]
    assert 0 < errors[1] < errors[0] / 3
