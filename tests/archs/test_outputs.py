"""Networks' results as others take them: contiguous, so that discriminators can view them."""

import pytest
import torch
import yaml

from esc_arch.archs import ESC, ESCFP, ESCReal
from esc_arch.archs.escrealm import ESCRealM
from esc_arch.kernels import choose

SMALL = dict(dim=16, pdim=8, kernel_size=5, n_blocks=1, conv_blocks=1, window_size=8, num_heads=2)
NETWORKS = {
    "ESC x2": lambda: ESC(**SMALL, upscaling_factor=2),
    "ESC x1": lambda: ESC(**SMALL, upscaling_factor=1),
    "ESC FlashBias": lambda: ESC(
        **SMALL, upscaling_factor=2, attn_type="FlashBias", flashbias_rank=4
    ),
    "ESCFP": lambda: ESCFP(**SMALL, upscaling_factor=4),
    "ESCReal": lambda: ESCReal(**SMALL),
    "ESCRealM": lambda: ESCRealM(**SMALL),
    "ESCReal DySample": lambda: ESCReal(**SMALL, use_dysample=True),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_results_are_contiguous_in_training_and_evaluation(name, channels_last):
    network = NETWORKS[name]()
    x = torch.rand(2, 3, 9, 12)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    assert network.train()(x).is_contiguous()
    with torch.no_grad():
        assert network.eval()(x).is_contiguous()
        assert network(x[:1]).is_contiguous()
        with choose.switched_off():
            assert network(x).is_contiguous()


GAN_MODELS = ["SRGANModel", "ESRGANModel", "RealESRGANModel"]
DISCRIMINATORS = [
    {"type": "VGGStyleDiscriminator", "num_in_ch": 3, "num_feat": 4, "input_size": 128},
    {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 4},
]


@pytest.mark.slow
@pytest.mark.parametrize("discriminator", DISCRIMINATORS, ids=lambda opt: opt["type"])
@pytest.mark.parametrize("model_type", GAN_MODELS)
@pytest.mark.parametrize("network", ["ESC", "ESCFP", "ESCReal"])
def test_basicsrs_gan_models_train_it_with_each_discriminator(
    network, model_type, discriminator, tmp_path
):
    from basicsr.models import build_model

    optimizer = {"type": "Adam", "lr": 1e-4}
    options = {
        "name": "gan",
        "model_type": model_type,
        "scale": 4,
        "num_gpu": 0,
        "is_train": True,
        "dist": False,
        "manual_seed": 0,
        "network_g": {"type": network, **SMALL, "upscaling_factor": 4},
        "network_d": dict(discriminator),
        "path": {"strict_load_g": True, "experiments_root": str(tmp_path)},
        "l1_gt_usm": False,
        "percep_gt_usm": False,
        "gan_gt_usm": False,
        "queue_size": 2,
        "train": yaml.safe_load(
            yaml.safe_dump(
                {
                    "ema_decay": 0.9,
                    "optim_g": dict(optimizer),
                    "optim_d": dict(optimizer),
                    "scheduler": {"type": "MultiStepLR", "milestones": [5], "gamma": 0.5},
                    "pixel_opt": {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"},
                    "gan_opt": {
                        "type": "GANLoss",
                        "gan_type": "vanilla",
                        "real_label_val": 1.0,
                        "fake_label_val": 0.0,
                        "loss_weight": 0.1,
                    },
                    "net_d_iters": 1,
                    "net_d_init_iters": 0,
                }
            )
        ),
    }
    model = build_model(options)
    model.lq, model.gt = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 128, 128)
    model.gt_usm = model.gt
    before = [p.detach().clone() for p in (*model.net_g.parameters(), *model.net_d.parameters())]
    for iteration in (1, 2):
        model.optimize_parameters(iteration)
    after = [*model.net_g.parameters(), *model.net_d.parameters()]
    assert all(p.isfinite().all() for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert {"l_g_gan", "l_d_real", "l_d_fake"} <= model.log_dict.keys()
