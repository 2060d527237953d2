"""BasicSR's reading of option files: what the file says, on the machine that is there."""

import copy
import functools
import logging
import math
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import wrapt

from esc_arch.errors import printable
from esc_arch.plugin.compat.patching import gpu_count, log, patch, swapped
from esc_arch.plugin.compat.resumption import resume_state_loading
from esc_arch.whole_files import remove_link


def options_loaded_safely(options: ModuleType) -> None:
    """BasicSR reads option files with a YAML loader that builds any Python object they name.

    And `train: optim_d: *optim_g` is one mapping to it, from which `type` is taken twice.
    """
    import yaml

    def wrap(ordered_yaml: Callable) -> Callable:
        def wrapper() -> tuple[type, type]:
            loader, dumper = ordered_yaml()
            if issubclass(loader, yaml.constructor.SafeConstructor) and not issubclass(
                loader, yaml.constructor.FullConstructor
            ):
                return loader, dumper

            # Here, for it needs BasicSR's registries.
            from esc_arch.plugin.preflight.reading import OptionLoader

            return OptionLoader, dumper

        return wrapper

    patch(options, "ordered_yaml", wrap)


def options_logged_plainly(options: ModuleType) -> None:
    """BasicSR logs options as they are: text of theirs could forge lines or move the cursor."""

    def wrap(dict2str: Callable) -> Callable:
        def wrapper(opt: dict, *args: Any, **kwargs: Any) -> str:
            return dict2str(_plain(opt), *args, **kwargs)

        return wrapper

    patch(options, "dict2str", wrap)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_plain(key): _plain(part) for key, part in value.items()}
    return printable(value) if isinstance(value, str) else value


def log_escaped(module: ModuleType) -> None:
    """BasicSR logs names of files and data sets as they are: they could forge lines.

    Only lists of options have several lines, which are no warnings.

    Args:
        module: `basicsr.utils.logger`.
    """
    for logger in (module.logging.getLogger("basicsr"), log):
        if _escape not in logger.filters:
            logger.addFilter(_escape)


def _escape(record: logging.LogRecord) -> bool:
    kept = "" if record.levelno >= logging.WARNING else "\n\t"
    text = record.getMessage()
    record.msg = "".join(one if one in kept else printable(one) for one in text)
    record.args = ()
    return True


def files_in_utf8(module: ModuleType) -> None:
    """BasicSR reads option files and writes logs in the encoding of the locale.

    Where that is not UTF-8, a name beyond ASCII ends the run or is missing in the log.

    Args:
        module: `basicsr.utils.options` or `basicsr.utils.logger`.
    """
    if not hasattr(module, "open"):
        module.open = functools.partial(open, encoding="utf-8")
    if type(getattr(module, "logging", None)) is ModuleType:
        module.logging = _LoggingInUtf8(module.logging)


class _LoggingInUtf8(wrapt.ObjectProxy):
    """The module logging, whose files are in UTF-8 and several processes'."""

    def FileHandler(self, filename: str, mode: str = "a", **kwargs: Any) -> Any:  # noqa: N802
        if mode == "w":
            remove_link(filename)
            open(filename, mode).close()
        # Loading processes may open it, too: each of them writes at the end.
        kwargs.setdefault("encoding", "utf-8")
        return self.__wrapped__.FileHandler(filename, "a", **kwargs)


def options_without_enough_gpus(options: ModuleType) -> None:
    """What BasicSR makes of an option file that was written for another machine, or oddly.

    - `num_gpu: 4` and `prefetch_mode: cuda` end in CUDA errors on a machine without those GPUs,
      and the batch is that of the GPUs that happen to be there. Published option files have to run
      everywhere: such values are lowered, and the batch is kept, each with a line.
    - A seed that BasicSR draws is another one in each process, and on each resumption.
    - `debug` anywhere in a name changes three options; here it does at the beginning of a name.
    - `path: experiments_root` is overwritten.
    """

    def wrap(parse_options: Callable) -> Callable:
        def wrapper(*args: Any, **kwargs: Any) -> tuple[dict, Any]:
            # BasicSR's own train.py, run as a script, has a second load_resume_state.
            if hasattr(sys.modules["__main__"], "load_resume_state"):
                resume_state_loading(sys.modules["__main__"])
            reader = _YamlReader(options.yaml)
            with swapped(options, yaml=reader):
                opt, parsed = parse_options(*args, **kwargs)
            # Here too, for it knows options by what reads them.
            from esc_arch.plugin.preflight.reading import settle

            settle(opt)
            _agree_on_seed(opt, reader.given, parsed, options)
            _place_experiments(opt, reader.given)
            _fit_to_gpus(opt)
            _fit_batch(opt)
            # Here, for it needs BasicSR's registries.
            from esc_arch.plugin.scale_option import name_the_scale

            name_the_scale(opt)
            return opt, parsed

        return wrapper

    patch(options, "parse_options", wrap)


def links_replaced(module: ModuleType) -> None:
    """BasicSR writes through links that lie where its files go, in an experiment of a stranger.

    And it fails where the option file is the copy that the experiment has of it.

    Args:
        module: `basicsr.utils.options` or `basicsr.utils.img_util`.
    """

    def wrap_copy(copy_opt_file: Callable) -> Callable:
        def wrapper(opt_file: str, experiments_root: str) -> None:
            place = os.path.join(experiments_root, os.path.basename(opt_file))
            if os.path.abspath(place) != os.path.abspath(opt_file):
                remove_link(place)
                copy_opt_file(opt_file, experiments_root)

        return wrapper

    def wrap_write(imwrite: Callable) -> Callable:
        def wrapper(img: Any, file_path: str, *args: Any, **kwargs: Any) -> Any:
            remove_link(file_path)
            return imwrite(img, file_path, *args, **kwargs)

        return wrapper

    for name, wrap in (("copy_opt_file", wrap_copy), ("imwrite", wrap_write)):
        if hasattr(module, name):
            patch(module, name, wrap)


class RunName(str):
    """Name of a run: BasicSR asks whether `debug` is in it, and means at its beginning."""

    def __contains__(self, part: object) -> bool:
        return self.startswith("debug") if part == "debug" else super().__contains__(part)


class _YamlReader(wrapt.ObjectProxy):
    """The module yaml, which keeps what it read last as it was in the file."""

    given: dict[str, Any] = {}

    def load(self, *args: Any, **kwargs: Any) -> Any:
        loaded = self.__wrapped__.load(*args, **kwargs)
        if isinstance(loaded, dict):
            # Here too, for it knows options by what reads them.
            from esc_arch.plugin.preflight.reading import take_as_meant

            take_as_meant(loaded)
            self.given = copy.deepcopy(loaded)
            if isinstance(loaded.get("name"), str):
                loaded["name"] = RunName(loaded["name"])
        return loaded


def _agree_on_seed(opt: dict, given: dict, parsed: Any, options: ModuleType) -> None:
    """Take one seed in all processes; `seed_drawn` tells that it is of no option file."""
    forced = any(entry.startswith("manual_seed=") for entry in parsed.force_yml or ())
    if given.get("manual_seed") is not None or forced:
        return
    opt["seed_drawn"] = True
    if opt["world_size"] > 1:
        import torch

        seeds = [opt["manual_seed"]]
        torch.distributed.broadcast_object_list(seeds)
        opt["manual_seed"] = seeds[0]
        options.set_random_seed(seeds[0] + opt["rank"])


def _place_experiments(opt: dict, given: dict) -> None:
    """Put the experiment below `path: experiments_root`, where the option file has that."""
    root = (given.get("path") or {}).get("experiments_root")
    if not opt["is_train"] or not root:
        return
    before = opt["path"]["experiments_root"]
    after = os.path.join(os.path.expanduser(str(root)), str(opt["name"]))
    for key, value in opt["path"].items():
        if isinstance(value, str) and (value == before or value.startswith(before + os.sep)):
            opt["path"][key] = after + value[len(before) :]


def _fit_to_gpus(opt: dict) -> None:
    """Lower the options that ask for more GPUs than there are."""
    available = gpu_count()
    warn = log.warning if opt["rank"] == 0 else log.debug
    # In distributed training every process has one GPU, and num_gpu only tells GPU from CPU.
    if opt["num_gpu"] > available and not (opt["dist"] and available):
        device = f"{available} GPU" if available else "the CPU"
        if not opt["dist"]:
            # BasicSR multiplies the batch by num_gpu, in one process.
            opt["batches_asked"] = opt["num_gpu"] / max(available, 1)
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


def _fit_batch(opt: dict) -> None:
    """Keep the images of an iteration, whatever the number of GPUs.

    `datasets: train: batch_size` is that number over all processes and GPUs; each takes its share
    in parts of at most `batch_size_per_gpu`, one after the other. Without it `train:
    accumulate_steps: n` says that `batch_size_per_gpu` is one of n parts. Afterwards
    `batch_size_per_gpu` is what one process or GPU takes in an iteration.
    """
    from basicsr.utils.registry import DATASET_REGISTRY, MODEL_REGISTRY

    from esc_arch.errors import UserError
    from esc_arch.plugin.own_options import own_value

    asked = opt.pop("batches_asked", 1)
    dataset_opt = opt["datasets"].get("train")
    if not opt["is_train"] or dataset_opt is None:
        return
    train_opt = opt["train"]
    model = MODEL_REGISTRY._obj_map.get(opt.get("model_type"))
    steps = own_value("train:accumulate_steps", train_opt.get("accumulate_steps"), model, 1)
    devices = opt["world_size"] if opt["dist"] else max(opt["num_gpu"], 1)
    dataset = DATASET_REGISTRY._obj_map.get(dataset_opt.get("type"))
    total = own_value("datasets:train:batch_size", dataset_opt.get("batch_size"), dataset)
    part = dataset_opt.get("batch_size_per_gpu")
    if total is not None:
        if total % devices:
            raise UserError(
                f"datasets: train: batch_size: {total!r}: must be a multiple of {devices}, the "
                "number of processes or GPUs that share it"
            )
        share = total // devices
        if part is not None:
            steps = max(math.ceil(share / part), steps)
    elif asked > 1:
        # 6 GPUs asked for and 4 there: half as much again, in two parts.
        share, steps = round(part * asked) * steps, steps * math.ceil(asked)
        (log.warning if opt["rank"] == 0 else log.debug)(
            "datasets:train:batch_size_per_gpu: %s for each GPU asked for: %s images an iteration "
            "all the same, in %s parts (add batch_size: %s for that many whatever there is)",
            part,
            share * devices,
            steps,
            share * devices,
        )
    elif steps > 1:
        share = part * steps
    else:
        return
    dataset_opt["batch_size_per_gpu"] = share
    queue_size = opt.get("queue_size")
    if type(queue_size) is int and queue_size % share:
        # Real-ESRGAN's pool takes whole batches.
        opt["queue_size"] = queue_size + -queue_size % share
        log.warning("queue_size: %s: %s, a multiple of %s", queue_size, opt["queue_size"], share)
    if steps > 1:
        train_opt["accumulate_steps"] = steps
