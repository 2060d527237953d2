"""Registers everything with BasicSR, and mends BasicSR, the moment each of its modules is imported.

Nothing is imported before BasicSR itself is. It does not matter whether BasicSR or this package is
imported first, nor whether BasicSR's own `__init__` imports this package.
"""

import importlib
import importlib.machinery
import importlib.util
import logging
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import wrapt

_log = logging.getLogger(__name__)

# Module of BasicSR -> what mends it, functions of `esc_arch.plugin.compat`.
PATCHES: dict[str, tuple[str, ...]] = {
    "basicsr.utils.options": ("options_loaded_safely", "options_without_enough_gpus"),
    "basicsr.utils.dist_util": ("launchers_without_gpu",),
    "basicsr.utils.file_client": ("lmdb_opened_twice",),
    "basicsr.utils.img_process_util": ("blur_of_channels_last_images",),
    "basicsr.utils.logger": ("wandb_generate_id",),
    "basicsr.models.base_model": ("distributed_wrapper_without_gpu", "optimizers_beyond_adam"),
    "basicsr.models.realesrgan_model": ("real_esrgan_models_without_gpu",),
    "basicsr.models.realesrnet_model": ("real_esrgan_models_without_gpu",),
    "basicsr.data": ("datasets_in_spawned_workers",),
    "basicsr.data.degradations": ("jpeg_quality_as_float",),
    "basicsr.metrics.fid": ("fid_matrix_square_root",),
    "basicsr.train": ("resume_state_loading",),
}
# Modules that BasicSR 1.4.2 imports and newer libraries lack -> what has the same functions.
MOVED_MODULES = {
    "torchvision.transforms.functional_tensor": "torchvision.transforms.functional",
    "scipy.ndimage.filters": "scipy.ndimage",
}


def watch_for_basicsr() -> None:
    """Register and mend as soon as BasicSR's modules are imported, or at once if they are."""
    if any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        return
    sys.meta_path.append(_MovedModules())
    for module, names in PATCHES.items():
        wrapt.register_post_import_hook(_patcher(names), module)
    wrapt.register_post_import_hook(_register_networks, "basicsr.archs")
    wrapt.register_post_import_hook(_register_data_sets, "basicsr.data")
    wrapt.register_post_import_hook(_register_models, "basicsr.models")


def _patcher(names: Sequence[str]) -> Callable[[ModuleType], None]:
    def patch(module: ModuleType) -> None:
        from esc_arch.plugin import compat

        for name in names:
            getattr(compat, name)(module)

    return patch


def _register_networks(_: ModuleType) -> None:
    from basicsr.utils.registry import ARCH_REGISTRY

    from esc_arch.archs import NETWORKS

    for name, network in NETWORKS.items():
        _register(ARCH_REGISTRY, name, network)


def _register_data_sets(_: ModuleType) -> None:
    from basicsr.utils.registry import DATASET_REGISTRY

    from esc_arch.plugin.data.downsample_dataset import DownsampleImageDataset

    _register(DATASET_REGISTRY, "DownsampleImageDataset", DownsampleImageDataset)


def _register_models(_: ModuleType) -> None:
    from basicsr.utils.registry import MODEL_REGISTRY

    from esc_arch.plugin.models.esc_model import ESCModel, ESRModel

    for model in (ESCModel, ESRModel):
        _register(MODEL_REGISTRY, model.__name__, model)


def _register(registry: Any, name: str, cls: type) -> None:
    """Register a class, unless somebody else has taken its name, which is then left alone."""
    other = registry._obj_map.get(name)
    if other is None:
        registry.register(cls)
    elif other is not cls:
        _log.warning(
            "esc_arch: '%s' is registered by %s (%s) already: that one is used, not esc_arch's",
            name,
            other.__module__,
            getattr(sys.modules.get(other.__module__), "__file__", "no file"),
        )


class _MovedModules:
    """Finds modules under names that they no longer have; asked last, after all other finders."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in MOVED_MODULES:
            return None
        return importlib.util.spec_from_loader(name, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        moved = importlib.import_module(MOVED_MODULES[spec.name])
        module.__dict__.update({k: v for k, v in vars(moved).items() if not k.startswith("__")})
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass
