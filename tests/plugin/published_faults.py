"""Option files with faults that show only after the start in BasicSR, and with what it forgives."""

from published_templates import ABSENT, ADAM, DEGRADATION, ESC, PERCEPTUAL, REAL, SRGAN, Published

_FFHQ = {
    "name": "FFHQ",
    "type": "FFHQDataset",
    "dataroot_gt": "gt",
    "io_backend": {"type": "disk"},
    "use_hflip": True,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "num_worker_per_gpu": 1,
    "batch_size_per_gpu": 2,
}


def _perceptual(**change: object) -> dict[str, object]:
    return {**SRGAN, "train:perceptual_opt": {**PERCEPTUAL, **change}}


FAULTS = [
    # What BasicSR forgives.
    Published("whole numbers of all kinds", {"num_gpu": 1.0, "val:metrics:psnr:crop_border": 4.0}),
    Published(
        "names of data sets with folders in them",
        {"datasets:train:name": "DF2K/OST: sub", "datasets:val:name": "Set5/x4"},
    ),
    Published("a suffix that is a number", {"val:suffix": 4}, test=True),
    Published(
        "names of data sets that lead elsewhere",
        {"datasets:val:name": "../Set5"},
        ("datasets:val:name: must be text that can name a folder",),
    ),
    # What it stops at.
    Published(
        "types that are null",
        {
            "network_g:type": None,
            "train:optim_g:type": None,
            "train:pixel_opt:type": None,
            "val:metrics:psnr:type": None,
        },
        (
            "network_g:type: must be the name of a network, not None",
            "train:optim_g:type: must be text, not None",
            "train:pixel_opt:type: must be the name of a loss, not None",
            "val:metrics:psnr:type: must be the name of a metric, not None",
        ),
    ),
    Published(
        "layers as a list",
        _perceptual(layer_weights=["conv5_4"]),
        ("layer_weights: must be a section, layer: weight, not ['conv5_4']",),
    ),
    Published(
        "KAIR's criterion, and weights that are none",
        _perceptual(criterion="l2", layer_weights={"conv5_4": "1", "conv3_4": None}),
        (
            "perceptual_opt:criterion: must be l1 or fro, not 'l2'",
            "layer_weights:conv5_4: must be a number, not '1'",
            "layer_weights:conv3_4: must be a number, not None",
        ),
    ),
    Published(
        "Real-ESRGAN's data under SRModel",
        {"datasets:train": REAL["datasets:train"]},
        ("RealESRGANDataset has no lq, which SRModel takes to train: write PairedImageDataset or",),
    ),
    Published(
        "faces under SRModel",
        {"datasets:train": _FFHQ},
        ("datasets:train:type: FFHQDataset has no lq, which SRModel takes to train",),
    ),
    Published(
        "training on LR images alone",
        {
            "model_type": "ESCModel",
            "datasets:train:type": "SingleImageDataset",
            "datasets:train:dataroot_gt": ABSENT,
            "datasets:train:gt_size": ABSENT,
            "datasets:train:use_hflip": ABSENT,
            "datasets:train:use_rot": ABSENT,
            "datasets:train:filename_tmpl": ABSENT,
        },
        ("datasets:train:type: SingleImageDataset has no gt, which ESCModel takes to train",),
    ),
    Published(
        "pairs for two rounds of degradation",
        {**DEGRADATION, "model_type": "RealESRNetModel", "gt_usm": True},
        ("RealESRNetModel takes to train: write RealESRGANDataset or high_order_degradation",),
    ),
    Published(
        "patches beyond Real-ESRGAN's pictures, and an unknown kernel",
        {**REAL, "gt_size": 512, "datasets:train:kernel_list2": ["iso"] * 5 + ["box"]},
        (
            "gt_size: 512 is more than 400, as pictures are cut",
            "kernel_list2: must be a list of kernels: iso, aniso, generalized_iso, ",
        ),
    ),
    Published(
        "a loss of each pixel",
        {"train:pixel_opt:reduction": "none"},
        ("pixel_opt: L1Loss fails on two pictures (ValueError: it gives 768 numbers; one is",),
    ),
    Published(
        "a loss of discriminators as that of pixels",
        {"train:pixel_opt": {"type": "GANLoss", "gan_type": "vanilla"}},
        ("train:pixel_opt: GANLoss fails on two pictures (RuntimeError: ",),
    ),
    # What hints must say, or not.
    Published(
        "optimizers in small letters",
        {"train:optim_g:type": "adamw"},
        ("no optimizer 'adamw' in torch.optim; did you mean AdamW?",),
    ),
    Published(
        "a key twice, once misspelt",
        {"train:optim_g": {**ADAM, "weight_deacy": 0}, "network_g": {**ESC, "dimm": 16}},
        (
            "train:optim_g:weight_deacy: Adam takes no such keyword",
            "network_g:dimm: ESC takes no such keyword",
        ),
    ),
    Published(
        "pretrain_netG beside null",
        {"path:pretrain_netG": "x.pth"},
        ("makes a folder of it; here it is path: pretrain_network_g",),
    ),
    Published(
        "truth as text",
        {"model_type": "ESCModel", "compile": "false"},
        ("compile: must be true or false, not 'false'",),
    ),
]
