"""The checks of an option file, one method a part of the file."""

import functools
import inspect
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import basicsr.models.lr_scheduler
import basicsr.test
import basicsr.train
import basicsr.utils.options
import torch
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.data.realesrgan_paired_dataset import RealESRGANPairedDataset
from basicsr.models.sr_model import SRModel
from basicsr.models.srgan_model import SRGANModel
from basicsr.utils.file_client import FileClient
from basicsr.utils.registry import (
    ARCH_REGISTRY,
    DATASET_REGISTRY,
    LOSS_REGISTRY,
    METRIC_REGISTRY,
    MODEL_REGISTRY,
    Registry,
)

from esc_arch.plugin.models.optimizers import optimizer_names
from esc_arch.plugin.preflight.files import (
    checkpoint_problem,
    folder_pair_problem,
    is_file,
    lmdb_pair_problem,
    purpose_problem,
    root_problem,
    weights_problem,
)
from esc_arch.plugin.preflight.reading import apply_force_yml, keep_datasets, read_option_file
from esc_arch.plugin.preflight.registered import (
    all_reads,
    is_known,
    parameters_of,
    pipeline_reads,
    read_by_other_datasets,
    read_by_other_models,
    reads_of_function,
    registered,
    registered_names,
    wrong_type,
)
from esc_arch.plugin.preflight.rules import RULES, is_free_text, is_number, is_template, matches
from esc_arch.plugin.preflight.sandbox import Blocked, TooLarge, sandbox
from esc_arch.plugin.preflight.source import (
    UNKNOWN,
    Path,
    Read,
    child_keys,
    lookup,
)
from esc_arch.plugin.preflight.wording import did_you_mean, one_line, show
from esc_arch.plugin.scale_option import name_the_scale

CLOSE = 0.8
"""Likeness (difflib) from which an unread key counts as misspelt."""

_EXPONENT_TEXT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")
_DATASET_PHASES = {True: ("train", "val"), False: ("val", "test")}


def check_options(
    opt_path: str | os.PathLike[str],
    force_yml: Iterable[str] | None = None,
    is_train: bool = True,
    datasets: Iterable[str] | None = None,
) -> list[str]:
    """Find all that is wrong with an option file. Creates, downloads and changes nothing.

    Plugins must have been imported, for their networks, models and data sets to be known.

    Args:
        opt_path: The option file.
        force_yml: Overrides as BasicSR takes them, `train:ema_decay=0.99`.
        is_train: Whether it is for `basicsr train` or `basicsr test`.
        datasets: Names of the data sets to test on; all of the file by default.

    Returns:
        One line an error; empty if training or testing can start.
    """
    errors: list[str] = []
    options = read_option_file(os.fspath(opt_path), errors)
    if options is None:
        return errors
    problem = purpose_problem(os.fspath(opt_path), options, is_train)
    if problem is not None:
        return [problem]
    apply_force_yml(options, force_yml or (), errors)
    if datasets is not None:
        keep_datasets(options, datasets, errors)
    name_the_scale(options)
    _Check(options, is_train, errors).all()
    return list(dict.fromkeys(errors))


class _Check:
    """The checks of one option file; `self.errors` gathers what they find."""

    def __init__(self, options: dict[str, Any], is_train: bool, errors: list[str]) -> None:
        self.options = options
        self.is_train = is_train
        self.errors = errors
        self.wrong: set[Path] = set()
        self.built: dict[str, torch.nn.Module] = {}

    def all(self) -> None:
        """Run every check."""
        self.values()
        model = self.registered_type(MODEL_REGISTRY, ("model_type",), "model")
        model = model if inspect.isclass(model) else None
        self.keys_of_sections(model)
        self.datasets()
        for key in self.options:
            if isinstance(key, str) and key.startswith("network_"):
                self.network(key)
        self.losses()
        if self.is_train:
            self.optimizers(model)
            self.schedulers()
            self.training(model)
        self.metrics()
        self.logger()
        self.missing_keys(model)
        self.checkpoints()

    def error(self, path: Path, message: str) -> None:
        """Add an error of the option at `path`."""
        self.wrong.add(path)
        self.errors.append(f"{one_line(':'.join(map(str, path)))}: {message}")

    def get(self, *path: str) -> Any:
        """Value at a path; None where it is absent or was found wrong."""
        value = lookup(self.options, path)
        return None if value is UNKNOWN or path in self.wrong else value

    def section(self, *path: str) -> dict[str, Any]:
        """Section at a path, with keys that are text; empty where there is none."""
        value = self.get(*path)
        if not isinstance(value, dict):
            return {}
        return {key: part for key, part in value.items() if isinstance(key, str)}

    # values of BasicSR's own options

    def values(self) -> None:
        """Check types and ranges of all options that are not some registered thing's own."""
        for path, value in self._walk(self.options, ()):
            if isinstance(value, str) and _EXPONENT_TEXT.fullmatch(value.strip()):
                if not is_free_text(path):
                    self.error(
                        path,
                        f"'{value}' is text to YAML, which wants a decimal point in such a number: "
                        f"write {_with_point(value.strip())}",
                    )
                    continue
            for pattern, rule in RULES:
                if matches(path, pattern):
                    wanted = rule(value)
                    if wanted:
                        self.error(path, f"{wanted}, not {show(value)}")
                    break

    def _walk(self, section: dict[Any, Any], above: Path) -> Iterator[tuple[Path, Any]]:
        for key, value in section.items():
            if not isinstance(key, str):
                # Networks and losses may take mappings of anything.
                if len(above) < 2:
                    self.error((*above, str(key)), "a key must be text; put it in quotes")
                continue
            yield (*above, key), value
            if isinstance(value, dict):
                yield from self._walk(value, (*above, key))

    # keys

    def keys_of_sections(self, model: type | None) -> None:
        """Find misspelt keys of the sections that BasicSR and the model read by key."""
        reads = pipeline_reads() + (all_reads(model) if model else ())
        sections: list[Path] = [(), ("path",), ("train",), ("val",), ("logger",)]
        sections += [("logger", "wandb"), ("val", "tile")]
        for section in sections:
            others = functools.partial(read_by_other_models, section)
            self.misspelt(section, child_keys(reads, section), others)

    def misspelt(
        self, path: Path, known: set[str], read_elsewhere: Callable[[str], bool] = lambda key: False
    ) -> None:
        """Add an error for each key of a section that is nearly, but not quite, a known one."""
        section = self.section(*path)
        candidates = _candidates(known, self.section())
        for key in section:
            if is_known(key, known) or len(key) > 100:
                continue
            hint = did_you_mean(key, candidates - set(section), CLOSE)
            hint = hint or did_you_mean(key, candidates, CLOSE)
            if hint and not read_elsewhere(key):
                self.error((*path, key), f"nothing reads this key{hint}")

    def keywords(
        self, path: Path, function: Any, skip: int = 0, extra: Iterable[str] = ("type",)
    ) -> bool:
        """Check that a section is made of keywords of a callable.

        Args:
            path: The section.
            function: What is called with the section.
            skip: How many of its first parameters come from elsewhere.
            extra: Keys that are taken out before.

        Returns:
            Whether all is well.
        """
        described = parameters_of(function, skip)
        if described is None:
            return True
        before = len(self.errors)
        parameters, takes_any = described
        section = self.section(*path)
        for key, value in section.items():
            if key in extra or (*path, key) in self.wrong:
                continue
            if key in parameters:
                wanted = wrong_type(value, parameters[key])
                if wanted:
                    self.error((*path, key), f"{wanted}, not {show(value)}")
            elif not takes_any:
                missing = set(parameters) - set(section)
                hint = did_you_mean(key, missing or parameters)
                self.error((*path, key), f"{_called(function)} takes no such keyword{hint}")
        if takes_any:
            self.misspelt(path, {*parameters, *extra})
        for name, parameter in parameters.items():
            if parameter.default is parameter.empty and name not in section:
                self.error((*path, name), f"missing; {_called(function)} needs it")
        return len(self.errors) == before

    def registered_type(self, registry: Registry, path: Path, what: str) -> Any:
        """What a `type` names, or None with an error if there is no such thing."""
        name = self.get(*path)
        if name is None or path in self.wrong:
            return None
        if not isinstance(name, str):
            self.error(path, f"must be the name of a {what}, not {show(name)}")
            return None
        found = registered(registry, name)
        if found is None:
            names = registered_names(registry)
            self.error(path, f"no {what} {show(name)} is registered{did_you_mean(name, names)}")
        return found

    # registered things

    def network(self, key: str) -> None:
        """Check the keywords of a network, and that it can be built of them."""
        network = self.registered_type(ARCH_REGISTRY, (key, "type"), "network")
        if network is None:
            if isinstance(self.options[key], dict) and "type" not in self.options[key]:
                self.error((key, "type"), "missing; it names the network")
            return
        if not self.keywords((key,), network) or any(path[0] == key for path in self.wrong):
            return
        options = {name: value for name, value in self.options[key].items() if name != "type"}
        self.build(key, network, options)
        for name in ("upscaling_factor", "upscale"):
            factor, scale = options.get(name), self.get("scale")
            if key == "network_g" and is_number(factor) and scale and factor != scale:
                self.error((key, name), f"is {factor}, but scale is {scale}: they must be the same")

    def build(self, key: str, network: Any, options: dict[str, Any]) -> None:
        """Build a network without memory for its weights, to see whether its options fit."""
        try:
            with sandbox(), torch.device("meta"):
                self.built[key] = network(**_copied(options))
        except (TooLarge, MemoryError, RecursionError):
            # A network that is merely large has no keyword this large.
            numbers = [name for name, value in options.items() if is_number(value)]
            largest = max(numbers, key=lambda name: abs(options[name]), default=None)
            if largest is not None and abs(options[largest]) > 4096:
                self.error((key, largest), f"{show(options[largest])} is too large to build")
        except (Blocked, NotImplementedError):
            pass
        except FileNotFoundError as error:
            self.error((key,), f"no such file: {one_line(error.filename)}")
        except Exception as error:
            text = one_line(error)
            # Some networks read values while they are built, which weights without memory lack.
            if "meta" in text.lower() or isinstance(error, ImportError):
                return
            named = next((n for n in options if re.match(rf"{re.escape(n)}\b", text)), None)
            if named and text.startswith(f"{named} is "):
                self.error((key, named), text.removeprefix(f"{named} "))
            elif any(re.search(rf"\b{re.escape(n)}\b", text) for n in options):
                self.error((key,), text)
            else:
                given = ", ".join(f"{name}: {show(value)}" for name, value in options.items())
                problem = f"{type(error).__name__}: {text}".rstrip(": ")
                self.error((key,), f"cannot be built of {one_line(given)} ({problem})")

    def losses(self) -> None:
        """Check each loss under `train`."""
        for key, value in self.section("train").items():
            if not key.endswith("_opt") or not isinstance(value, dict) or not value:
                continue
            path = ("train", key)
            if "type" not in value:
                self.error((*path, "type"), "missing; it names the loss")
                continue
            loss = self.registered_type(LOSS_REGISTRY, (*path, "type"), "loss")
            # A perceptual loss would load its VGG.
            if loss is None or not self.keywords(path, loss) or "vgg_type" in value:
                continue
            if any(wrong[:2] == path for wrong in self.wrong):
                continue
            try:
                with sandbox():
                    loss(**_copied({name: v for name, v in value.items() if name != "type"}))
            except Blocked:
                pass
            except Exception as error:
                self.error(path, one_line(error) or f"{_called(loss)} does not take these values")

    def metrics(self) -> None:
        """Check each metric of the validation."""
        for key, value in self.section("val", "metrics").items():
            path = ("val", "metrics", key)
            if not isinstance(value, dict):
                continue
            if "type" not in value:
                self.error((*path, "type"), "missing; it names the metric")
                continue
            metric = self.registered_type(METRIC_REGISTRY, (*path, "type"), "metric")
            if metric is not None:
                # The images come from the validation.
                images = sum(
                    name in ("img", "img2") for name in (parameters_of(metric) or ((),))[0]
                )
                self.keywords(path, metric, skip=images, extra=("type", "better"))

    def optimizers(self, model: type | None) -> None:
        """Check the optimizers."""
        for key, value in self.section("train").items():
            path = ("train", key)
            if not key.startswith("optim_") or not isinstance(value, dict):
                continue
            name = self.get(*path, "type")
            if not isinstance(name, str):
                continue
            names = optimizer_names()
            if name not in names:
                problem = f"no optimizer {show(name)} in torch.optim{did_you_mean(name, names)}"
                self.error((*path, "type"), problem)
                continue
            optimizer = getattr(torch.optim, name)
            self.keywords(path, optimizer, skip=1)
            if "lr" not in value:
                self.error((*path, "lr"), "missing; it is the learning rate")
            if not any(wrong[:2] == path for wrong in self.wrong):
                try:
                    with sandbox():
                        keywords = {k: v for k, v in value.items() if k != "type"}
                        optimizer([torch.zeros(1, requires_grad=True)], **_copied(keywords))
                except Blocked:
                    pass
                except Exception as error:
                    self.error(path, f"{name} does not take these values: {one_line(error)}")

    def schedulers(self) -> None:
        """Check the learning-rate scheduler."""
        path = ("train", "scheduler")
        if not self.section(*path):
            return
        # MultiStepLR is BasicSR's second name of its own class.
        schedulers = {
            "MultiStepLR": "MultiStepRestartLR",
            "MultiStepRestartLR": "MultiStepRestartLR",
            "CosineAnnealingRestartLR": "CosineAnnealingRestartLR",
        }
        name = self.get(*path, "type")
        if not isinstance(name, str):
            return
        if name not in schedulers:
            known = ", ".join(schedulers)
            self.error(
                (*path, "type"),
                f"BasicSR knows {known}, not {show(name)}{did_you_mean(name, schedulers)}",
            )
            return
        scheduler = getattr(basicsr.models.lr_scheduler, schedulers[name])
        if not self.keywords(path, scheduler, skip=1) or any(w[:2] == path for w in self.wrong):
            return
        steps = "restarts" if schedulers[name] == "MultiStepRestartLR" else "periods"
        given = self.section(*path)
        if steps in given or "restart_weights" in given:
            lengths = [len(given.get(part, (1,))) for part in (steps, "restart_weights")]
            if lengths[0] != lengths[1]:
                self.error(
                    (*path, "restart_weights"),
                    f"has {lengths[1]} values, but {steps} has {lengths[0]}: they must be as many",
                )

    # data

    def datasets(self) -> None:
        """Check each data set: its phase, keys, and the files it names."""
        phases = _DATASET_PHASES[self.is_train]
        sections = self.section("datasets")
        for key, value in sections.items():
            path = ("datasets", key)
            phase = key.split("_")[0]
            if phase not in phases or (phase == "train" and key != "train"):
                wanted = "train, val or val_2" if self.is_train else "test_1, test_2 or val"
                self.error(path, f"the name of a data set must be like {wanted}")
            if not isinstance(value, dict):
                continue
            if "type" not in value:
                self.error((*path, "type"), "missing; it names the data set's class")
            dataset = self.registered_type(DATASET_REGISTRY, (*path, "type"), "data set")
            if inspect.isclass(dataset):
                known = child_keys(pipeline_reads(), path) | child_keys(all_reads(dataset), ())
                known |= {"on_bad_sample"}  # Of the GuardedDataset around each.
                self.misspelt(path, known, read_by_other_datasets)
            self.dataset_values(path, value)
            self.data_files(path, value, dataset)
        if self.is_train and isinstance(self.get("datasets"), dict) and "train" not in sections:
            self.error(("datasets", "train"), "missing; it is the data to train on")
        if not self.is_train and isinstance(self.get("datasets"), dict):
            if not sections:
                self.error(("datasets",), "must have at least one data set, such as test_1")
            self.offer_fewer(sections)

    def offer_fewer(self, sections: dict[str, Any]) -> None:
        """Where some data sets are not there, say how to test on the others."""
        absent = {wrong[1] for wrong in self.wrong if wrong[2:] and wrong[2].startswith("dataroot")}
        faulty = {wrong[1] for wrong in self.wrong if wrong[0] == "datasets" and wrong[1:]}
        names = [
            value.get("name", key) if isinstance(value, dict) else key
            for key, value in sections.items()
            if key not in faulty
        ]
        if absent and names:
            words = " ".join(shlex.quote(str(name)) for name in names)
            self.errors.append(
                f"datasets: {len(absent)} of {len(sections)} cannot be read (above); to test on "
                f"the others only: --datasets {one_line(words)}"
            )

    def dataset_values(self, path: Path, value: dict[str, Any]) -> None:
        """Check values of a data set that depend on each other."""
        scale = self.get("scale")
        for place, size in ((path, self.get(*path, "gt_size")), ((), self.get("gt_size"))):
            if is_number(size) and is_number(scale) and path[1] == "train" and size % scale:
                self.error((*place, "gt_size"), f"{size} must be a multiple of scale, {scale}")
        if value.get("prefetch_mode") == "cuda" and value.get("pin_memory") is not True:
            self.error((*path, "prefetch_mode"), "cuda needs pin_memory: true beside it")
        workers = 0 if path[1] != "train" else value.get("num_worker_per_gpu")
        if value.get("persistent_workers") is True and workers == 0:
            self.error((*path, "persistent_workers"), "must be false where there are no workers")
        for number in ("", "2"):
            names, weights = value.get(f"kernel_list{number}"), value.get(f"kernel_prob{number}")
            if isinstance(names, list) and isinstance(weights, list) and len(names) != len(weights):
                self.error(
                    (*path, f"kernel_prob{number}"),
                    f"has {len(weights)} values, but kernel_list{number} has {len(names)}",
                )
        backend = self.get(*path, "io_backend")
        if isinstance(backend, dict):
            kind = backend.get("type")
            if kind is None:
                self.error((*path, "io_backend", "type"), "missing; disk or lmdb")
            elif not isinstance(kind, str) or kind not in FileClient._backends:
                known = ", ".join(FileClient._backends)
                self.error(
                    (*path, "io_backend", "type"), f"must be one of {known}, not {show(kind)}"
                )

    def data_files(self, path: Path, value: dict[str, Any], dataset: Any) -> None:
        """Check that the folders, LMDBs and lists of a data set are there and fit together."""
        backend = self.get(*path, "io_backend")
        is_lmdb = isinstance(backend, dict) and backend.get("type") == "lmdb"
        roots_found = True
        for key, location in value.items():
            place = (*path, key)
            if not isinstance(key, str) or place in self.wrong or location is None:
                continue
            if key.startswith("dataroot"):
                for root in location if isinstance(location, list) else [location]:
                    problem = root_problem(root, is_lmdb)
                    if problem:
                        roots_found = False
                        self.error(place, problem)
            elif key.startswith("meta_info") and key in ("meta_info", "meta_info_file"):
                if is_lmdb and key == "meta_info":
                    continue
                if not isinstance(location, str):
                    self.error(place, f"must be a path, not {show(location)}")
                elif not is_file(location):
                    self.error(place, f"no such file: {one_line(location)}")
        paired = (PairedImageDataset, RealESRGANPairedDataset)
        roots = [key for key in ("dataroot_gt", "dataroot_lq") if key in value]
        listed = any(value.get(key) for key in ("meta_info", "meta_info_file"))
        if not inspect.isclass(dataset) or not issubclass(dataset, paired):
            return
        for key in roots:
            if value[key] is None:
                roots_found = False
                self.error((*path, key), "must be a path, not None")
        if roots_found and len(roots) == 2:
            scale = self.get("scale")
            if is_lmdb:
                problem = lmdb_pair_problem(value["dataroot_gt"], value["dataroot_lq"], scale)
            elif listed:
                problem = None
            else:
                template = value.get("filename_tmpl", "{}")
                template = template if is_template(template) is None else "{}"
                problem = folder_pair_problem(
                    value["dataroot_gt"], value["dataroot_lq"], template, scale, path[1] == "train"
                )
            if problem:
                self.error((*path, "dataroot_lq"), problem)

    # the rest

    def training(self, model: type | None) -> None:
        """Check what training needs of several options together."""
        train = self.section("train")
        simple = (
            model is not None and issubclass(model, SRModel) and not issubclass(model, SRGANModel)
        )
        if simple and train and not train.get("pixel_opt") and not train.get("perceptual_opt"):
            if not {"gan_opt", "feature_matching_opt"} & set(train):
                self.error(("train", "pixel_opt"), "missing; there is no loss to train with")
        queue, batch = self.get("queue_size"), self.get("datasets", "train", "batch_size_per_gpu")
        if is_number(queue) and is_number(batch) and queue % batch:
            self.error(
                ("queue_size",), f"{queue} must be a multiple of batch_size_per_gpu, {batch}"
            )

    def logger(self) -> None:
        """Check the loggers against each other."""
        if self.is_train and self.get("logger", "wandb", "project") is not None:
            if self.get("logger", "use_tb_logger") is not True:
                self.error(("logger", "use_tb_logger"), "must be true when wandb has a project")

    def missing_keys(self, model: type | None) -> None:
        """Find keys that are surely read, and not there."""
        filled = self._filled()
        pipeline = basicsr.train.train_pipeline if self.is_train else basicsr.test.test_pipeline
        required = reads_of_function(pipeline)
        required += reads_of_function(basicsr.utils.options.parse_options)
        if model is not None:
            steps = ("feed_data", "optimize_parameters") if self.is_train else ("feed_data",)
            required += all_reads(model, methods=steps)
        for read in required:
            self._require(read, filled, read.path, filled)
        for key, value in self.section("datasets").items():
            dataset = value.get("type") if isinstance(value, dict) else None
            dataset = registered(DATASET_REGISTRY, dataset) if isinstance(dataset, str) else None
            if inspect.isclass(dataset) and isinstance(filled["datasets"].get(key), dict):
                own = filled["datasets"][key]
                for read in all_reads(dataset, methods=("__getitem__",)):
                    self._require(read, own, ("datasets", key, *read.path), filled)

    def _require(self, read: Read, scope: Any, path: Path, filled: dict[str, Any]) -> None:
        if not read.required or any("*" in key and key != "*" for key in read.path):
            return
        stars = [""]
        if "*" in path:
            holder = lookup(filled, path[: path.index("*")])
            stars = [k for k in holder if isinstance(k, str)] if isinstance(holder, dict) else []
        for star in stars:
            place = tuple(star if key == "*" else key for key in path)
            for depth in range(1, len(place) + 1):
                if not isinstance(lookup(filled, place[: depth - 1]), dict):
                    break
                if lookup(filled, place[:depth]) is UNKNOWN:
                    known = any(wrong == place[:depth] for wrong in self.wrong)
                    if not known and read.happens(scope, star):
                        self.error(place[:depth], "missing")
                    break

    def _filled(self) -> dict[str, Any]:
        """The options with what BasicSR adds to them before it reads them."""
        filled = _copied(self.options)
        filled.update(
            dist=False,
            rank=0,
            world_size=1,
            is_train=self.is_train,
            auto_resume=False,
            root_path=".",
            dist_params=filled.get("dist_params", {}),
        )
        filled.setdefault("manual_seed", 0)
        if isinstance(filled.get("datasets"), dict):
            for key, dataset in filled["datasets"].items():
                if isinstance(key, str) and isinstance(dataset, dict):
                    dataset["phase"] = key.split("_")[0]
                    if "scale" in filled:
                        dataset["scale"] = filled["scale"]
        if isinstance(filled.get("path"), dict):
            for key in ("models", "training_states", "log", "visualization"):
                filled["path"].setdefault(key, "")
            for key in ("experiments_root", "results_root", "resume_state"):
                filled["path"].setdefault(key, None)
        return filled

    def checkpoints(self) -> None:
        """Check that the checkpoints are there."""
        for key, value in self.section("path").items():
            place = ("path", key)
            if place in self.wrong or not isinstance(value, str):
                continue
            if key.startswith("pretrain_network_"):
                problem = checkpoint_problem(value) or self.weights_problem(key, value)
            elif key == "resume_state" and not is_file(value):
                problem = (
                    f"no such training state: {one_line(value)}; --auto_resume finds the newest"
                )
            else:
                continue
            if problem:
                self.error(place, problem)

    def weights_problem(self, key: str, value: str) -> str | None:
        """Why a checkpoint cannot be loaded into its network, as far as that was built here."""
        name = key.removeprefix("pretrain_network_")
        path = self.section("path")
        return weights_problem(
            value,
            self.built.get(f"network_{name}"),
            path.get(f"param_key_{name}", "params"),
            path.get(f"strict_load_{name}", True) is not False,
        )


def _with_point(text: str) -> str:
    mantissa, exponent = re.split("[eE]", text)
    mantissa = mantissa if "." in mantissa else f"{mantissa}.0"
    # YAML 1.1 also wants the exponent's sign.
    return f"{mantissa}e{exponent if exponent[0] in '+-' else f'+{exponent}'}"


def _candidates(known: set[str], top: dict[str, Any]) -> set[str]:
    """Known keys, with the networks of the file filled in where a key is made of one's name."""
    networks = {"network_g", "network_d"} | {key for key in top if key.startswith("network_")}
    filled = set()
    for key in known:
        filled |= {key.replace("*", name, 1) for name in networks} if "*" in key else {key}
    return {key for key in filled if "*" not in key}


def _called(function: Any) -> str:
    return getattr(function, "__name__", str(function))


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    return [_copied(part) for part in value] if isinstance(value, list) else value
