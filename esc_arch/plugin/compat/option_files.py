"""BasicSR's reading of option files: no Python objects, and no GPUs that are not there."""

import sys
from collections import OrderedDict
from collections.abc import Callable
from types import ModuleType
from typing import Any

from esc_arch.plugin.compat.patching import gpu_count, log, patch
from esc_arch.plugin.compat.resumption import resume_state_loading


def options_loaded_safely(options: ModuleType) -> None:
    """BasicSR reads option files with a YAML loader that builds any Python object they name."""
    import yaml

    def wrap(ordered_yaml: Callable) -> Callable:
        def wrapper() -> tuple[type, type]:
            loader, dumper = ordered_yaml()
            if issubclass(loader, yaml.constructor.SafeConstructor) and not issubclass(
                loader, yaml.constructor.FullConstructor
            ):
                return loader, dumper

            class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
                pass

            def ordered(loader: Loader, node: yaml.MappingNode) -> OrderedDict:
                return OrderedDict(loader.construct_pairs(node))

            Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, ordered)
            return Loader, dumper

        return wrapper

    patch(options, "ordered_yaml", wrap)


def options_without_enough_gpus(options: ModuleType) -> None:
    """`num_gpu: 4` and `prefetch_mode: cuda` end in CUDA errors on a machine without those GPUs.

    With one GPU for `num_gpu: 4`, BasicSR would put four GPUs' batches on the one. Published
    option files have to run everywhere, so such values are lowered, each with a line of warning.
    """

    def wrap(parse_options: Callable) -> Callable:
        def wrapper(*args: Any, **kwargs: Any) -> tuple[dict, Any]:
            # BasicSR's own train.py, run as a script, has a second load_resume_state.
            if hasattr(sys.modules["__main__"], "load_resume_state"):
                resume_state_loading(sys.modules["__main__"])
            opt, parsed = parse_options(*args, **kwargs)
            _fit_to_gpus(opt)
            # Here, for it needs BasicSR's registries.
            from esc_arch.plugin.scale_option import name_the_scale

            name_the_scale(opt)
            return opt, parsed

        return wrapper

    patch(options, "parse_options", wrap)


def _fit_to_gpus(opt: dict) -> None:
    """Lower the options that ask for more GPUs than there are."""
    available = gpu_count()
    warn = log.warning if opt["rank"] == 0 else log.debug
    # In distributed training every process has one GPU, and num_gpu only tells GPU from CPU.
    if opt["num_gpu"] > available and not (opt["dist"] and available):
        device = f"{available} GPU" if available else "the CPU"
        warn("num_gpu: %s, but %d found: using %s", opt["num_gpu"], available, device)
        opt["num_gpu"] = available
    if available:
        return
    for name, dataset in opt["datasets"].items():
        # Pinned memory only serves copies to a GPU.
        dataset["pin_memory"] = False
        if dataset.get("prefetch_mode") == "cuda":
            warn("datasets:%s:prefetch_mode: cuda needs a GPU: loading without it", name)
            dataset["prefetch_mode"] = None
