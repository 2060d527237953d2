"""Option files of the forms that people publish, written from facts: keys, types and values.

Each is a template of a repository's files with what that repository changes in it. `training` and
`testing` are what nearly all of them share.
"""

from published_templates import (
    ABSENT,
    ADAM,
    GAN,
    MSRRESNET,
    PERCEPTUAL,
    REAL,
    REAL_GAN,
    RRDBNET,
    SRGAN,
    SWINIR,
    UNET_D,
    UNREAD,
    Published,
    foreign_model,
    foreign_network,
    testing,
)

FILES = [
    # What trains as it is.
    Published("BasicSR MSRResNet", {"network_g": MSRRESNET}),
    Published("BasicSR SRGAN", {**SRGAN, "train:perceptual_opt": PERCEPTUAL}),
    Published(
        "BasicSR ESRGAN",
        {**SRGAN, "model_type": "ESRGANModel", "network_g": RRDBNET, "train:ldl_opt": None},
    ),
    Published("SwinIR classical", {"model_type": "SwinIRModel", "network_g": SWINIR}),
    Published(
        "SwinIR fine-tuned, two optimizers written once",
        {"model_type": "SwinIRModel", "network_g": SWINIR, "train:total_iter": 250000},
    ),
    Published("Real-ESRNet", REAL),
    Published("Real-ESRGAN", {**REAL_GAN, "train:perceptual_opt": PERCEPTUAL}),
    Published(
        "LDL with artifact loss",
        {**SRGAN, "train:ldl_opt": {"type": "L1Loss", "loss_weight": 1.0}, "scale": 4},
    ),
    Published(
        "Restormer's clipping with ESCModel",
        {"model_type": "ESCModel", "train:use_grad_clip": True},
    ),
    Published(
        "NAFNet's optimizer",
        {"train:optim_g": {"type": "AdamW", "lr": 1e-3, "weight_decay": 1e-3, "betas": [0.9, 0.9]}},
    ),
    Published(
        "BasicSR cosine with restarts",
        {
            "train:scheduler": {
                "type": "CosineAnnealingRestartLR",
                "periods": [250000, 250000],
                "restart_weights": [1, 1],
                "eta_min": 1e-7,
            }
        },
    ),
    Published(
        "two validation sets",
        {"datasets:val_2": {**testing()["datasets"]["test_1"], "name": "Set14"}},
    ),
    Published("no validation", {"val": None, "datasets:val": ABSENT}),
    Published("validation left out", {"val": ABSENT, "datasets:val": ABSENT}),
    Published(
        "numbers as floats", {"datasets:train:batch_size_per_gpu": 2.0, "train:total_iter": 5e5}
    ),
    Published("gt_size as a float", {"datasets:train:gt_size": 128.0}),
    Published("nulls for truth", {"path:strict_load_g": None, "val:save_img": None}),
    Published("ones for truth", {"datasets:train:use_hflip": 1, "datasets:train:use_rot": 0}),
    Published(
        "ECBSR on Y",
        {
            "network_g": {**MSRRESNET, "num_in_ch": 1, "num_out_ch": 1},
            "datasets:train:color": "y",
            "datasets:val:color": "y",
        },
    ),
    # What trains, with a word about what has no effect.
    Published(
        "BasicSR use_shuffle", {"datasets:train:use_shuffle": True}, (), (f"use_shuffle{UNREAD}",)
    ),
    Published(
        "Restormer gt_sizes",
        {"datasets:train:gt_sizes": [128, 160]},
        (),
        (f"train:gt_sizes{UNREAD}",),
    ),
    Published("NAFNet use_vflip", {"datasets:train:use_vflip": True}, (), (f"use_vflip{UNREAD}",)),
    Published(
        "Restormer progressive",
        {
            "datasets:train:mini_batch_sizes": [8, 5, 4],
            "datasets:train:iters": [92000, 64000, 48000],
            "datasets:train:geometric_augs": True,
        },
        (),
        (f"mini_batch_sizes{UNREAD}", f"train:iters{UNREAD}", f"geometric_augs{UNREAD}"),
    ),
    Published("HAT tile", {"tile": {"tile_size": 64, "tile_pad": 16}}, (), (f"tile{UNREAD}",)),
    Published("NAFNet use_grad_clip under SRModel", {"train:use_grad_clip": True}),
    Published("traiNNer use_amp under SRModel", {"use_amp": True}, (), (f"use_amp{UNREAD}",)),
    Published("traiNNer compile under SRModel", {"compile": True}, (), (f"compile{UNREAD}",)),
    Published("neosr accum_iter", {"train:accum_iter": 2}, (), (f"train:accum_iter{UNREAD}",)),
    Published(
        "degradations jpeg_diff_range",
        {"jpeg_diff_range": [-10, 10]},
        (),
        (f"jpeg_diff_range{UNREAD}",),
    ),
    Published(
        "a discriminator left over",
        {"network_d": UNET_D, "train:optim_d": ADAM, "path:pretrain_network_d": None},
        (),
        (f"network_d{UNREAD}", f"train:optim_d{UNREAD}", f"path:pretrain_network_d{UNREAD}"),
    ),
    Published(
        "y_channel",
        {"val:metrics:psnr": {"type": "calculate_psnr", "crop_border": 4, "y_channel": True}},
        (),
        ("calculate_psnr ignores this key; did you mean test_y_channel?",),
    ),
    Published("NIQE", {"val:metrics:niqe": {"type": "calculate_niqe", "crop_border": 4}}),
    Published("experiments_root of the authors", {"path:experiments_root": "experiments"}),
    Published(
        "root left over", {"path:root": ABSENT, "rgb_range": 1.0}, (), (f"rgb_range{UNREAD}",)
    ),
    # What would train something else than asked for.
    Published(
        "MPRNet edge_opt",
        {"train:edge_opt": {"type": "EdgeLoss", "loss_weight": 0.05}},
        (f"train:edge_opt{UNREAD}",),
    ),
    Published(
        "ssim_opt",
        {"train:ssim_opt": {"type": "SSIMLoss", "loss_weight": 0.1}},
        (f"train:ssim_opt{UNREAD}",),
    ),
    Published("gan_opt under SRModel", {"train:gan_opt": GAN}, (f"train:gan_opt{UNREAD}",)),
    Published(
        "seed",
        {"seed": 10, "manual_seed": ABSENT},
        ("seed: nothing reads this key; here it is manual_seed",),
    ),
    Published("train manual_seed", {"train:manual_seed": 0}, (f"train:manual_seed{UNREAD}",)),
    Published(
        "MMSR pretrain_model_G",
        {"path": {"pretrain_model_G": "x.pth"}},
        ("makes a folder of it; here it is path: pretrain_network_g",),
    ),
    Published(
        "MMSR root", {"path:root": "/data/x"}, (f"path:root{UNREAD}, and BasicSR makes a folder",)
    ),
    Published("SwinIR strict_load", {"path:strict_load": False}, (f"path:strict_load{UNREAD}",)),
    # What is another repository's.
    foreign_model("HATModel", tile={"tile_size": 512, "tile_pad": 32}),
    foreign_model("DATModel"),
    foreign_model("ATDModel"),
    foreign_model("SRFormerModel"),
    foreign_model("MambaIRModel"),
    foreign_model("CATANetModel"),
    foreign_model("RGTModel"),
    foreign_model("EDSRModel"),
    foreign_model("ImageRestorationModel", **{"train:mixup": True}),
    foreign_model("ImageCleanModel", **{"train:mixing_augs": {"mixup": True}}),
    foreign_model("UpscaleModel"),
    foreign_model("FeMaSRModel", **{"train:codebook_opt": {"loss_weight": 1.0}}),
    Published(
        "RankSRGANModel",
        {"model_type": "RankSRGANModel", "train:rank_opt": {"type": "RankLoss"}},
        ("no model 'RankSRGANModel' is registered", "no loss 'RankLoss' is registered"),
    ),
    foreign_model("CodeFormerModel", **{"train:codebook_opt": {"loss_weight": 1.0}}),
    foreign_model("GFPGANModel", **{"path:pretrain_network_identity": None}),
    foreign_model("HATModel", test=True),
    foreign_model("DATModel", test=True, use_chop=False),
    foreign_network("HAT", upscale=4, in_chans=3, window_size=16, embed_dim=180),
    foreign_network("DAT", upscale=4, split_size=[8, 32], embed_dim=180),
    foreign_network("GRLNet", upscale=4),
    foreign_network("CRAFTv2", upscale=4),
    foreign_network("MambaIR", upscale=4, d_state=16),
    foreign_network("NAFNet", width=32, enc_blk_nums=[1, 1]),
    foreign_network("Restormer", inp_channels=3, dim=48),
    foreign_network("CATANet", upscale=4),
    foreign_network("PFTNet", upscale=4),
    Published(
        "LPIPSLoss",
        {"train:pixel_opt:type": "LPIPSLoss"},
        ("no loss 'LPIPSLoss' is registered; if it is another",),
    ),
    Published(
        "PSNRLoss",
        {"train:pixel_opt": {"type": "PSNRLoss", "loss_weight": 1, "reduction": "mean"}},
        ("no loss 'PSNRLoss' is registered; if it is another",),
    ),
    Published(
        "L2Loss",
        {"train:pixel_opt:type": "L2Loss"},
        ("no loss 'L2Loss' is registered; if it is another",),
    ),
    Published(
        "Restormer's scheduler",
        {
            "train:scheduler": {
                "type": "CosineAnnealingRestartCyclicLR",
                "periods": [92000, 208000],
                "restart_weights": [1, 1],
                "eta_mins": [0.0003, 0.000001],
            }
        },
        ("MultiStepRestartLR, not 'CosineAnnealingRestartCyclicLR'",),
    ),
    Published(
        "NAFNet's scheduler",
        {"train:scheduler": {"type": "TrueCosineAnnealingLR", "T_max": 400000, "eta_min": 1e-7}},
        ("not 'TrueCosineAnnealingLR'",),
    ),
    Published(
        "LQGT data of MMSR",
        {"datasets:train:type": "LQGTDataset"},
        ("no data set 'LQGTDataset' is registered; if it is another",),
    ),
    Published(
        "Dataset_PairedImage of Restormer",
        {"datasets:train:type": "Dataset_PairedImage"},
        ("no data set 'Dataset_PairedImage' is registered; if it is",),
    ),
    # What ends in the middle, or before it starts.
    Published("scale forgotten", {"scale": ABSENT}, ("scale: missing",)),
    Published(
        "cosine too short",
        {
            "train:scheduler": {
                "type": "CosineAnnealingRestartLR",
                "periods": [100000],
                "eta_min": 1e-7,
            }
        },
        ("periods: end after 100000 iterations, but total_iter is 500000",),
    ),
    Published(
        "discriminator of 128 for patches of 96",
        {**SRGAN, "datasets:train:gt_size": 96},
        ("network_d:input_size: is 128, but gt_size is 96",),
    ),
    Published(
        "patches beyond the pictures",
        {"datasets:train:gt_size": 4096},
        ("gt_size: 4096 is more than",),
    ),
    Published(
        "psnr of tensors",
        {"val:metrics:psnr": {"type": "calculate_psnr_pt", "crop_border": 4}},
        ("calculate_psnr_pt fails on a picture of 256 x 256",),
    ),
    Published(
        "psnr without GT",
        {
            "datasets:val": {
                "name": "real",
                "type": "SingleImageDataset",
                "dataroot_lq": "lq",
                "io_backend": {"type": "disk"},
            }
        },
    ),
    Published(
        "grey for three channels",
        {"datasets:train:color": "y"},
        ("datasets:train:color: y gives pictures of one channel",),
    ),
    Published(
        "two roots",
        {"datasets:train:dataroot_gt": ["gt", "gt"], "datasets:train:dataroot_lq": ["lq", "lq"]},
        ("dataroot_gt: must be one path, not a list", "dataroot_lq: must be one path, not a list"),
    ),
    Published(
        "one name twice",
        {"datasets:val_2": testing()["datasets"]["test_1"]},
        ("datasets:val_2:name: 'Set5' is datasets:val's name too",),
    ),
    Published(
        "Real-ESRNet without a list",
        {**REAL, "datasets:train": {**REAL["datasets:train"], "meta_info": None}},
    ),
    Published(
        "unknown layer",
        {**SRGAN, "train:perceptual_opt": {**PERCEPTUAL, "layer_weights": {"conv5_5": 1}}},
        ("layer_weights:conv5_5: no such layer in vgg19",),
    ),
    Published(
        "border beyond the picture",
        {"val:metrics:psnr:crop_border": 200},
        ("crop_border: 200 leaves nothing of",),
    ),
    Published(
        "memcached",
        {"datasets:train:io_backend": {"type": "memcached", "sys_path": "."}},
        ("io_backend:type: memcached is refused",),
    ),
    Published(
        "lmdb that may grow",
        {
            "datasets:train:io_backend": {"type": "lmdb", "map_size": 10**12},
            "datasets:train:dataroot_gt": "gt.lmdb",
            "datasets:train:dataroot_lq": "lq.lmdb",
        },
        (
            "io_backend:map_size: lmdb takes no such key",
            "dataroot_gt: no such LMDB",
            "dataroot_lq: no such LMDB",
        ),
    ),
    # Testing.
    Published("ESC as published", {"path:param_key_g": "params_ema"}, test=True),
    Published("no suffix in the file", {"val:suffix": ABSENT}, test=True),
    Published("an empty suffix", {"val:suffix": ""}, test=True),
    Published("SwinIR test", {"model_type": "SwinIRModel", "network_g": SWINIR}, test=True),
    Published(
        "unknown weights",
        {"path:param_key_g": "params-ema"},
        ("has no 'params-ema', only params, params_ema; did you mean params_ema?",),
        test=True,
    ),
    Published(
        "no weights",
        {"path:pretrain_network_g": None},
        ("path:pretrain_network_g: missing: the network would be random",),
        test=True,
    ),
    Published(
        "a section of validation that is null",
        {"val": None},
        (),
        ("val: has neither metrics nor save_img: nothing is measured nor saved",),
        test=True,
    ),
    Published(
        "SwinIR tile in a test",
        {"tile": {"tile_size": 64, "tile_pad": 8}},
        (),
        (f"tile{UNREAD}",),
        test=True,
    ),
]
