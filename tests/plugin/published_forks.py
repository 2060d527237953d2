"""More option files of the forms that people publish: what other trainers' files bring along."""

from published_templates import ABSENT, ESC, REAL, REAL_GAN, SRGAN, UNREAD, Published


def _called(keyword: str) -> dict[str, object]:
    """ESC with its scale under another keyword."""
    options = {name: value for name, value in ESC.items() if name != "upscaling_factor"}
    return {**options, keyword: 4}


FORKS = [
    Published("HAT's upscale", {"network_g": _called("upscale")}),
    Published("neosr's scale", {"network_g": _called("scale")}),
    Published(
        "scale as a float",
        {"scale": 4.0, "network_g": {**ESC, "upscaling_factor": 4.0, "dim": 16.0}},
    ),
    Published("no dist_params", {"dist_params": None}),
    Published(
        "color: gray",
        {"datasets:train:color": "gray", "datasets:val:color": "RGB"},
        (),
        ("datasets:train:color: 'gray' has no effect; y is grey",),
    ),
    Published(
        "gt_size null",
        {"datasets:train:gt_size": None},
        ("datasets:train:gt_size: must be a whole number at least 1, not None",),
    ),
    Published(
        "mean without std",
        {"datasets:train:mean": [0.5, 0.5, 0.5], "datasets:val:std": [1, 1, 1]},
        (
            "datasets:train:std: missing; mean is there",
            "datasets:val:mean: missing; std is there",
        ),
    ),
    Published(
        "SparseAdam",
        {"train:optim_g": {"type": "SparseAdam", "lr": 1e-3}},
        ("train:optim_g:type: no optimizer 'SparseAdam'",),
    ),
    Published(
        "LDL artifacts_opt under SRModel",
        {**SRGAN, "model_type": "SRModel", "train:artifacts_opt": {"type": "L1Loss"}},
        (
            f"train:artifacts_opt{UNREAD}",
            f"train:gan_opt{UNREAD}; SRGANModel, ESRGANModel, RealESRGANModel read it",
        ),
        (
            f"network_d{UNREAD}, it has no effect; SRGANModel, ",
            f"train:optim_d{UNREAD}, it has no effect; SRGANModel, ",
            f"train:net_d_iters{UNREAD}",
            f"train:net_d_init_iters{UNREAD}",
        ),
    ),
    Published(
        "traiNNer-redux losses",
        {
            "train:losses": [{"type": "mssimloss", "loss_weight": 1.0}],
            "train:grad_clip": True,
            "train:ema_power": 0.75,
        },
        (f"train:losses{UNREAD}", "train:grad_clip: must be a number above 0, the largest norm"),
        (f"train:ema_power{UNREAD}",),
    ),
    Published("traiNNer-redux without clipping", {"train:grad_clip": False}),
    Published(
        "MMSR's weights of losses",
        {"train:pixel_weight": 1.0, "train:feature_criterion": "l1", "train:gan_weight": 0},
        (f"train:pixel_weight{UNREAD}", f"train:feature_criterion{UNREAD}"),
        (f"train:gan_weight{UNREAD}",),
    ),
    Published(
        "GFPGAN's weights of losses",
        {"train:identity_weight": 10, "train:comp_style_weight": 200, "train:gan_lr_weight": None},
        (f"train:identity_weight{UNREAD}", f"train:comp_style_weight{UNREAD}"),
        (f"train:gan_lr_weight{UNREAD}",),
    ),
    Published(
        "keys in the wrong section",
        {
            "ema_decay": 0.99,
            "val_freq": 100,
            "train:lr": 1e-4,
            "train:weight_decay": 1e-4,
            "train:milestones": [1000],
            "train:ema_decay": ABSENT,
            "param_key_g": "params_ema",
            "val:crop_border": 4,
            "logger:pbar": True,
        },
        (
            f"train:weight_decay{UNREAD}",
            "param_key_g: nothing reads this key; it belongs under path",
        ),
        (
            "ema_decay: nothing reads this key, it has no effect; it belongs under train",
            f"val_freq{UNREAD}",
            f"train:lr{UNREAD}",
            f"train:milestones{UNREAD}",
            f"val:crop_border{UNREAD}",
            f"logger:pbar{UNREAD}",
        ),
    ),
    Published(
        "keys that are read in other sections or of other things only",
        {
            "train:momentum": 0.9,
            "train:params": 1,
            "train:val_freq": 100,
            "val:lr": 1e-4,
            "val:gt_size": 96,
            "logger:metrics": {"psnr": {}},
            "datasets:train:rank": 0,
            "datasets:train:phase": "val",
            "datasets:train:scale": 2,
            "datasets:val:suffix": "x",
            "is_train": False,
            "state": "x.state",
            "type": "SRModel",
        },
        (),
        (
            f"train:momentum{UNREAD}, it has no effect",
            f"train:params{UNREAD}",
            f"train:val_freq{UNREAD}",
            f"val:lr{UNREAD}",
            f"val:gt_size{UNREAD}",
            f"logger:metrics{UNREAD}",
            f"datasets:train:rank{UNREAD}",
            f"datasets:train:phase{UNREAD}",
            "datasets:train:scale: 2 has no effect: that of the top level is taken, 4",
            f"datasets:val:suffix{UNREAD}",
            f"is_train{UNREAD}",
            f"state{UNREAD}",
            f"type{UNREAD}",
        ),
    ),
    Published(
        "momentum beside SGD",
        {"train:optim_g": {"type": "SGD", "lr": 1e-3}, "train:momentum": 0.9},
        (),
        (f"train:momentum{UNREAD}, it has no effect; it belongs under train: optim_g",),
    ),
    Published(
        "NAFNet's suffix at the top",
        {"suffix": None, "crop_border": None, "val:suffix": ABSENT},
        (),
        (f"suffix{UNREAD}, it has no effect; it belongs under val", f"crop_border{UNREAD}"),
        test=True,
    ),
    Published(
        "Restormer's window_size under ESCModel",
        {"model_type": "ESCModel", "val:window_size": 8},
        (),
        (f"val:window_size{UNREAD}",),
    ),
    Published(
        "Restormer's window_size",
        {"val:window_size": 8, "val:max_minibatch": 8, "val:rgb2bgr": True},
        (),
        (
            f"val:window_size{UNREAD}, it has no effect",
            f"val:max_minibatch{UNREAD}",
            f"val:rgb2bgr{UNREAD}",
        ),
    ),
    Published(
        "ESRGANArtifactsDisModel, with what the next round would say",
        {
            **SRGAN,
            "model_type": "ESRGANArtifactsDisModel",
            "train:artifacts_opt": {"type": "L1Loss", "loss_weight": 1.0},
            "train:manual_seed": 0,
        },
        (
            "or take SRGANModel, without train:artifacts_opt, train:manual_seed, which nothing "
            "reads there",
        ),
    ),
    Published(
        "traiNNer-redux without a model",
        {"model_type": ABSENT, "train:losses": [{"type": "l1loss"}]},
        (
            "model_type: missing; take SRModel or ESCModel, without train:losses, which nothing "
            "reads there",
        ),
    ),
    Published(
        "Restormer's own data set without flips",
        {
            "datasets:train:type": "Dataset_PairedImage",
            "datasets:train:use_hflip": ABSENT,
            "datasets:train:use_rot": ABSENT,
        },
        ("or take PairedImageDataset with use_hflip, use_rot besides",),
    ),
    Published(
        "HAT's ImageNetPairedDataset",
        {
            "datasets:train:type": "ImageNetPairedDataset",
            "datasets:train:dataroot_lq": ABSENT,
            "datasets:train:meta_info_file": "list.txt",
        },
        ("no data set 'ImageNetPairedDataset' is registered; if it is another repository's, ",),
    ),
    Published(
        "GFPGAN's network of faces under SRGANModel",
        {
            **SRGAN,
            "network_identity": {"type": "ResNetArcFace"},
            "path:pretrain_network_identity": "arcface.pth",
        },
        ("path:pretrain_network_identity: nothing reads this key",),
        ("network_identity: nothing reads this key, it has no effect",),
    ),
    Published(
        "NAFNet's data, with what the next round would say",
        {
            "datasets:train:type": "Dataset_PairedImage",
            "datasets:train:gt_size": 384,
            "datasets:train:dataroot_lq": "gt",
            "datasets:train:geometric_augs": True,
            "datasets:train:pretrain": "x.pth",
            "datasets:val:type": "PairedImagedataset",
            "datasets:val:dataroot_lq": "nowhere",
        },
        (
            "or take PairedImageDataset",
            "datasets:train:pretrain: nothing reads this key (of PairedImageDataset)",
            "gt_size: 384 is more than a.png has, 256 x 256 (of PairedImageDataset)",
            "that is not scale 4 (of PairedImageDataset)",
            "did you mean PairedImageDataset?",
            "datasets:val:dataroot_lq: no such folder: nowhere",
        ),
    ),
    Published(
        "KAIR's data without a type",
        {
            "datasets:train:type": ABSENT,
            "datasets:train:dataset_type": "sr",
            "datasets:train:gt_size": ABSENT,
        },
        ("type: missing; it names the data set's class, or take PairedImageDataset with gt_size",),
    ),
    Published(
        "NAFNet's model without what SRModel needs",
        {"model_type": "ImageRestorationModel", "train:optim_g": ABSENT, "train:pixel_opt": ABSENT},
        ("or take SRModel or ESCModel, with train:optim_g, train:pixel_opt besides",),
    ),
    Published(
        "ESC-Real's first stage without gt_usm",
        {**REAL, "model_type": "RealHATMSEModel", "gt_usm": ABSENT, "queue_size": 2},
    ),
    Published(
        "ESC-Real's second stage without its three",
        {
            **REAL_GAN,
            "model_type": "RealHATGANModel",
            "queue_size": 2,
            "l1_gt_usm": ABSENT,
            "percep_gt_usm": ABSENT,
            "gan_gt_usm": ABSENT,
        },
    ),
    Published(
        "Real-ESRGAN without its three",
        {**REAL_GAN, "l1_gt_usm": ABSENT, "percep_gt_usm": ABSENT, "gan_gt_usm": ABSENT},
        ("l1_gt_usm: missing", "percep_gt_usm: missing", "gan_gt_usm: missing"),
    ),
    Published(
        "mesa_opt without an average, and a ratio that is none",
        {
            "model_type": "ESRModel",
            "train:ema_decay": 0,
            "train:mesa_opt": {"type": "L1Loss", "loss_weight": 1.0, "start_ratio": "x"},
        },
        (
            "train:mesa_opt: compares with the EMA network: set ema_decay, too",
            "train:mesa_opt:start_ratio: must be a number at least 0, not 'x'",
        ),
    ),
    Published(
        "Python's None for null",
        {
            "path:pretrain_network_g": "None",
            "path:resume_state": "None",
            "datasets:train:prefetch_mode": "None",
            "val:suffix": "None",
            "manual_seed": "None",
            "logger:wandb:project": "None",
        },
    ),
    Published(
        "Python's None where there must be something",
        {"train:total_iter": "None", "datasets:train:gt_size": "None"},
        (
            "train:total_iter: must be a whole number at least 1, not 'None'",
            "datasets:train:gt_size: must be a whole number at least 1, not None",
        ),
    ),
]
