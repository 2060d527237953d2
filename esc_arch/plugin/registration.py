"""Registers everything with BasicSR, and mends BasicSR, the moment each of its modules is imported.

Nothing is imported before BasicSR itself is. It does not matter whether BasicSR or this package is
imported first, nor whether BasicSR's own `__init__` imports this package.
"""

import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from esc_arch.plugin.imports import watch_imports, when_looked_for

# Module of BasicSR -> what mends it: functions of the modules of `esc_arch.plugin.compat`.
PATCHES: dict[str, tuple[str, ...]] = {
    "basicsr.utils.registry": (
        "registries.names_taken_by_others",
        "registries.names_that_there_are",
    ),
    "basicsr.utils.options": (
        "option_files.options_loaded_safely",
        "option_files.options_without_enough_gpus",
        "option_files.options_logged_plainly",
        "option_files.files_in_utf8",
        "option_files.links_replaced",
    ),
    "basicsr.utils.img_util": ("data_loading.pictures_bounded", "option_files.links_replaced"),
    "basicsr.utils.dist_util": ("devices.launchers_without_gpu",),
    "basicsr.utils.file_client": ("data_loading.lmdb_opened_twice",),
    "basicsr.utils.img_process_util": ("devices.blur_of_channels_last_images",),
    "basicsr.utils.logger": (
        "libraries.wandb_generate_id",
        "option_files.files_in_utf8",
        "option_files.log_escaped",
    ),
    "basicsr.models.base_model": (
        "devices.distributed_wrapper_without_gpu",
        "libraries.optimizers_beyond_adam",
        "libraries.files_loaded_without_code",
    ),
    "basicsr.models.realesrgan_model": ("devices.real_esrgan_models_without_gpu",),
    "basicsr.models.realesrnet_model": ("devices.real_esrgan_models_without_gpu",),
    "basicsr.archs.inception": ("libraries.files_loaded_without_code",),
    "basicsr.archs.spynet_arch": ("libraries.files_loaded_without_code",),
    "basicsr.archs.dfdnet_arch": ("libraries.files_loaded_without_code",),
    "basicsr.archs.basicvsr_arch": ("libraries.files_loaded_without_code",),
    "basicsr.archs.vgg_arch": ("libraries.files_loaded_without_code",),
    "basicsr.archs.tof_arch": ("libraries.files_loaded_without_code",),
    "basicsr.data": ("data_loading.datasets_in_spawned_workers",),
    "basicsr.data.degradations": ("libraries.jpeg_quality_as_float",),
    "basicsr.metrics.fid": ("libraries.fid_matrix_square_root",),
    "basicsr.train": ("resumption.resume_state_loading",),
}

# Module that holds a class -> names of what is registered of it. Read where they are registered,
# so that nothing is imported before.
MODELS: dict[str, tuple[str, ...]] = {
    "esc_arch.plugin.models.esc_model": ("ESCModel", "ESRModel"),
    "esc_arch.plugin.models.real_hat_gan": ("RealHATGANModel",),
    "esc_arch.plugin.models.real_hat_mse": ("RealHATMSEModel",),
}
DATA_SETS: dict[str, tuple[str, ...]] = {
    "esc_arch.plugin.data.downsample_dataset": ("DownsampleImageDataset",),
    # BasicSR's own of this name is registered with a suffix, so that there is room for another.
    "esc_arch.plugin.data.real_folders": ("RealESRGANDataset",),
}
# Networks that stand on BasicSR's; those of `esc_arch.archs` need torch alone.
DISCRIMINATORS: dict[str, tuple[str, ...]] = {
    "esc_arch.plugin.models.discriminators": ("DeepUNetDiscriminatorSN",),
}

_watching = False


def watch_for_basicsr() -> None:
    """Register and mend as soon as BasicSR's modules are imported, or at once if they are."""
    global _watching
    if _watching:
        return
    _watching = True
    watch_imports()
    when_looked_for("basicsr", _hook_into_its_modules)


def _hook_into_its_modules() -> None:
    # Only now: it imports asyncio, which takes longer than all else of `basicsr --help`.
    import wrapt

    for module, functions in PATCHES.items():
        wrapt.register_post_import_hook(_patcher(functions), module)
    wrapt.register_post_import_hook(_register_networks, "basicsr.archs")
    wrapt.register_post_import_hook(_register_data_sets, "basicsr.data")
    wrapt.register_post_import_hook(_register_models, "basicsr.models")


def mend(module: ModuleType) -> None:
    """Apply the patches of one of BasicSR's modules; nothing that is whole or mended is changed.

    Args:
        module: The module; `__main__` where BasicSR's train.py runs as a script counts as
            `basicsr.train`.
    """
    name = "basicsr.train" if module.__name__ == "__main__" else module.__name__
    _patcher(PATCHES[name])(module)


def _patcher(functions: tuple[str, ...]) -> Callable[[ModuleType], None]:
    def patch(module: ModuleType) -> None:
        for path in functions:
            file, _, function = path.partition(".")
            getattr(importlib.import_module(f"esc_arch.plugin.compat.{file}"), function)(module)

    return patch


def _register_networks(_: ModuleType) -> None:
    from basicsr.utils.registry import ARCH_REGISTRY

    from esc_arch.archs import NETWORKS
    from esc_arch.archs.foreign_networks import FOREIGN_NAMES
    from esc_arch.plugin.peers import PEERS

    for name, network in {**NETWORKS, **FOREIGN_NAMES, **PEERS}.items():
        _register(ARCH_REGISTRY, name, network)
    _register_all(ARCH_REGISTRY, DISCRIMINATORS)


def _register_data_sets(_: ModuleType) -> None:
    from basicsr.utils.registry import DATASET_REGISTRY

    _register_all(DATASET_REGISTRY, DATA_SETS)


def _register_models(_: ModuleType) -> None:
    from basicsr.utils.registry import MODEL_REGISTRY

    _register_all(MODEL_REGISTRY, MODELS)


def _register_all(registry: Any, classes: Mapping[str, tuple[str, ...]]) -> None:
    for module, names in classes.items():
        for name in names:
            _register(registry, name, getattr(importlib.import_module(module), name))


def _register(registry: Any, name: str, cls: type) -> None:
    """Register a class, unless somebody else has taken its name, which is then left alone."""
    from esc_arch.plugin.compat.registries import tell_whose_it_is

    other = registry._obj_map.get(name)
    if other is None:
        registry.register(cls)
    elif other is not cls:
        tell_whose_it_is(name, other)
