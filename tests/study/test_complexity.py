import pytest
import torch

from esc_arch.archs import ESC, ESCFP
from esc_arch.study.complexity import count_flops

TINY = {
    "dim": 8,
    "pdim": 4,
    "kernel_size": 5,
    "n_blocks": 1,
    "conv_blocks": 2,
    "window_size": 8,
    "num_heads": 2,
    "upscaling_factor": 2,
    "attn_type": "Naive",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("arch", [ESC, ESCFP])
@pytest.mark.parametrize("size", [(8, 8), (17, 30), (24, 9)])
def test_the_count_is_that_of_fvcore_with_which_the_paper_counts(arch, size):
    fvcore = pytest.importorskip("fvcore.nn")
    network = arch(**TINY).eval()
    counter = fvcore.FlopCountAnalysis(network, torch.zeros(1, 3, *size))
    counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert count_flops(network, *size) == counter.total()


def test_the_count_is_that_of_the_formulas():
    network = ESC(**TINY)
    height, width = 17, 30
    padded = 24 * 32
    c, p, k, w, scale = 8, 4, 5, 8, 2
    hidden = 2 * c
    conv_ffn = c * hidden + 9 * hidden + hidden * c
    layer_norms = 3 * 5 * c
    conv_attn = p * p * k * k + 9 * p + p + c * c  # long range, dynamic, pool, aggr
    kernel_generator = p * (p // 2) + (p // 2) * 9 * p
    block = conv_ffn + c * c + 2 * (conv_ffn + conv_attn) + 9 * c * c + layer_norms
    rest = 9 * 3 * c + 9 * c * c + 9 * c * 3 * scale**2
    expected = height * width * (block + rest) + 2 * kernel_generator
    expected += padded * (3 * c * c + 2 * w * w * c)  # to_qkv, q k^T and weights times v
    assert count_flops(network, height, width) == expected
