"""What option files that people publish have in common: templates, and what each changes in one."""

import copy
from dataclasses import dataclass
from typing import Any

ABSENT = object()
UNREAD = ": nothing reads this key"
ESC = {
    "type": "ESC",
    "dim": 16,
    "pdim": 8,
    "kernel_size": 5,
    "n_blocks": 1,
    "conv_blocks": 1,
    "window_size": 8,
    "num_heads": 2,
    "upscaling_factor": 4,
}
MSRRESNET = {
    "type": "MSRResNet",
    "num_in_ch": 3,
    "num_out_ch": 3,
    "num_feat": 8,
    "num_block": 1,
    "upscale": 4,
}
RRDBNET = {
    "type": "RRDBNet",
    "num_in_ch": 3,
    "num_out_ch": 3,
    "num_feat": 8,
    "num_block": 1,
    "num_grow_ch": 4,
}
SWINIR = {
    "type": "SwinIR",
    "upscale": 4,
    "in_chans": 3,
    "img_size": 16,
    "window_size": 8,
    "img_range": 1.0,
    "depths": [1],
    "embed_dim": 12,
    "num_heads": [2],
    "mlp_ratio": 2,
    "upsampler": "pixelshuffle",
    "resi_connection": "1conv",
}
UNET_D = {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 8, "skip_connection": True}
VGG_D = {"type": "VGGStyleDiscriminator", "num_in_ch": 3, "num_feat": 8, "input_size": 128}
L1 = {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"}
ADAM = {"type": "Adam", "lr": 2e-4, "weight_decay": 0, "betas": [0.9, 0.99]}
GAN = {
    "type": "GANLoss",
    "gan_type": "vanilla",
    "real_label_val": 1.0,
    "fake_label_val": 0.0,
    "loss_weight": 0.1,
}
PERCEPTUAL = {
    "type": "PerceptualLoss",
    "layer_weights": {"conv5_4": 1},
    "vgg_type": "vgg19",
    "use_input_norm": True,
    "range_norm": False,
    "perceptual_weight": 1.0,
    "style_weight": 0,
    "criterion": "l1",
}
PSNR = {"type": "calculate_psnr", "crop_border": 4, "test_y_channel": True}
SSIM = {"type": "calculate_ssim", "crop_border": 4, "test_y_channel": True}
DEGRADATION = {
    "resize_prob": [0.2, 0.7, 0.1],
    "resize_range": [0.15, 1.5],
    "gaussian_noise_prob": 0.5,
    "noise_range": [1, 30],
    "poisson_scale_range": [0.05, 3],
    "gray_noise_prob": 0.4,
    "jpeg_range": [30, 95],
    "second_blur_prob": 0.8,
    "resize_prob2": [0.3, 0.4, 0.3],
    "resize_range2": [0.3, 1.2],
    "gaussian_noise_prob2": 0.5,
    "noise_range2": [1, 25],
    "poisson_scale_range2": [0.05, 2.5],
    "gray_noise_prob2": 0.4,
    "jpeg_range2": [30, 95],
    "gt_size": 128,
    "queue_size": 180,
}
KERNELS = ["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"]
BLUR = {
    "blur_kernel_size": 21,
    "kernel_list": KERNELS,
    "kernel_prob": [0.45, 0.25, 0.12, 0.03, 0.12, 0.03],
    "sinc_prob": 0.1,
    "blur_sigma": [0.2, 3],
    "betag_range": [0.5, 4],
    "betap_range": [1, 2],
    "blur_kernel_size2": 21,
    "kernel_list2": KERNELS,
    "kernel_prob2": [0.45, 0.25, 0.12, 0.03, 0.12, 0.03],
    "sinc_prob2": 0.1,
    "blur_sigma2": [0.2, 1.5],
    "betag_range2": [0.5, 4],
    "betap_range2": [1, 2],
    "final_sinc_prob": 0.8,
}
SRGAN = {
    "model_type": "SRGANModel",
    "network_d": VGG_D,
    "train:optim_d": ADAM,
    "train:gan_opt": GAN,
    "train:net_d_iters": 1,
    "train:net_d_init_iters": 0,
}
REAL = {
    "model_type": "RealESRNetModel",
    "gt_usm": True,
    "datasets:train": {
        "name": "DF2K+OST",
        "type": "RealESRGANDataset",
        "dataroot_gt": "gt",
        "meta_info": "list.txt",
        "io_backend": {"type": "disk"},
        "use_hflip": True,
        "use_rot": False,
        "num_worker_per_gpu": 5,
        "batch_size_per_gpu": 2,
        "prefetch_mode": None,
        **BLUR,
    },
    **DEGRADATION,
}
REAL_GAN = {
    **REAL,
    **SRGAN,
    "model_type": "RealESRGANModel",
    "l1_gt_usm": True,
    "percep_gt_usm": True,
    "gan_gt_usm": False,
    "gt_usm": ABSENT,
    "network_d": UNET_D,
}


def training() -> dict[str, Any]:
    """A file to train x4 on pairs, as in BasicSR, HAT, SwinIR and many more."""
    return copy.deepcopy(
        {
            "name": "train_SRx4_scratch",
            "model_type": "SRModel",
            "scale": 4,
            "num_gpu": "auto",
            "manual_seed": 0,
            "datasets": {
                "train": {
                    "name": "DF2K",
                    "type": "PairedImageDataset",
                    "dataroot_gt": "gt",
                    "dataroot_lq": "lq",
                    "filename_tmpl": "{}",
                    "io_backend": {"type": "disk"},
                    "gt_size": 128,
                    "use_hflip": True,
                    "use_rot": True,
                    "num_worker_per_gpu": 6,
                    "batch_size_per_gpu": 2,
                    "dataset_enlarge_ratio": 1,
                    "prefetch_mode": None,
                },
                "val": {
                    "name": "Set5",
                    "type": "PairedImageDataset",
                    "dataroot_gt": "gt",
                    "dataroot_lq": "lq",
                    "io_backend": {"type": "disk"},
                },
            },
            "network_g": ESC,
            "path": {"pretrain_network_g": None, "strict_load_g": True, "resume_state": None},
            "train": {
                "ema_decay": 0.999,
                "optim_g": ADAM,
                "scheduler": {"type": "MultiStepLR", "milestones": [250000], "gamma": 0.5},
                "total_iter": 500000,
                "warmup_iter": -1,
                "pixel_opt": L1,
            },
            "val": {"val_freq": 5e3, "save_img": False, "pbar": False, "metrics": {"psnr": PSNR}},
            "logger": {
                "print_freq": 100,
                "save_checkpoint_freq": 5e3,
                "use_tb_logger": False,
                "wandb": {"project": None, "resume_id": None},
            },
            "dist_params": {"backend": "nccl", "port": 29500},
        }
    )


def testing() -> dict[str, Any]:
    """A file to test on benchmarks."""
    return copy.deepcopy(
        {
            "name": "test_SRx4",
            "model_type": "SRModel",
            "scale": 4,
            "num_gpu": 1,
            "manual_seed": 0,
            "datasets": {
                "test_1": {
                    "name": "Set5",
                    "type": "PairedImageDataset",
                    "dataroot_gt": "gt",
                    "dataroot_lq": "lq",
                    "io_backend": {"type": "disk"},
                }
            },
            "network_g": ESC,
            "path": {"pretrain_network_g": "net_g.pth", "strict_load_g": True},
            "val": {"save_img": True, "suffix": None, "metrics": {"psnr": PSNR, "ssim": SSIM}},
        }
    )


@dataclass(frozen=True)
class Published:
    """One option file.

    Attributes:
        name: Whose, and what is special about it.
        change: Options that differ from the template, by path; ABSENT removes one.
        errors: What each error must contain, in any order; none if it is expected to run.
        warnings: The same for warnings.
        test: Whether it is to test.
    """

    name: str
    change: dict[str, Any]
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    test: bool = False

    def options(self) -> dict[str, Any]:
        """The content of the file."""
        options = testing() if self.test else training()
        for path, value in self.change.items():
            *above, key = path.split(":")
            section = options
            for part in above:
                section = section.setdefault(part, {})
            if value is ABSENT:
                section.pop(key, None)
            else:
                section[key] = copy.deepcopy(value)
        return options


_FOREIGN_MODEL = "if it is another repository's, install that as a plugin, or take SRModel or"


def foreign_model(name: str, test: bool = False, **change: Any) -> Published:
    """A file whose only fault is that its model is another repository's."""
    expected = (f"model_type: no model '{name}' is registered; {_FOREIGN_MODEL}",)
    return Published(f"{name} {sorted(change)}", {"model_type": name, **change}, expected, (), test)


def foreign_network(name: str, **options: Any) -> Published:
    """A file whose only fault is that its network is another repository's."""
    expected = f"network_g:type: no network '{name}' is registered; if it is another repository's,"
    return Published(name, {"network_g": {"type": name, **options}}, (expected,))
