"""Each GAN model trains ESC with each discriminator, through `basicsr train`."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from option_data import picture, write_folder
from published_templates import ABSENT, REAL_GAN, SRGAN, UNET_D, VGG_D, Published
from runs_in_process import (
    folder,  # noqa: F401  (each test starts in it)
    iterations,
    train,
)

DISCRIMINATORS = {
    "VGGStyle": VGG_D,
    "UNet": UNET_D,
    "DeepUNet": {**UNET_D, "type": "DeepUNetDiscriminatorSN"},
}
MODELS: dict[str, dict[str, Any]] = {
    "SRGANModel": SRGAN,
    # With LDL's loss, which needs the averaged network.
    "ESRGANModel": {
        **SRGAN,
        "model_type": "ESRGANModel",
        "train:ldl_opt": {"type": "L1Loss", "loss_weight": 1.0},
    },
    "RealESRGANModel": REAL_GAN,
    "RealHATGANModel": {**REAL_GAN, "model_type": "RealHATGANModel"},
}
SHORT = {
    "name": "tiny",
    "train:total_iter": 2,
    "datasets:train:num_worker_per_gpu": 0,
    "datasets:train:batch_size_per_gpu": 1,
    "queue_size": 2,
    "logger:print_freq": 1,
    "val": None,
    "datasets:val": ABSENT,
}


@pytest.mark.parametrize(
    "model",
    [pytest.param(name, marks=[pytest.mark.slow] * name.startswith("Real")) for name in MODELS],
)
@pytest.mark.parametrize("discriminator", DISCRIMINATORS)
def test_a_gan_model_trains_esc_with_a_discriminator(
    model: str, discriminator: str, tmp_path: Path
) -> None:
    for side, size in (("gt", 128), ("lq", 32)):
        write_folder(tmp_path / side, {name: picture(size) for name in "ab"})
    (tmp_path / "list.txt").write_text("a.png\nb.png\n")
    changes = {**MODELS[model], "network_d": DISCRIMINATORS[discriminator], **SHORT}
    options = tmp_path / "options.yml"
    options.write_text(yaml.safe_dump(Published(model, changes).options()))
    log = train(options)
    assert iterations(log) == [1, 2]
    assert "l_g_gan: " in log and "l_d_real: " in log
