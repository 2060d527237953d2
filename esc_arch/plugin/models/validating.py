"""Validation whose figures mean what they say, kept beside the checkpoints."""

import inspect
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from basicsr.metrics import calculate_metric
from basicsr.models import sr_model
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only
from basicsr.utils.registry import METRIC_REGISTRY

from esc_arch.errors import UserError, printable
from esc_arch.plugin.compat.patching import swapped
from esc_arch.plugin.random_states import random_states_kept
from esc_arch.whole_files import write_atomically

VALIDATION_FILE = "validation.json"
# Metrics of BasicSR that are the better the lower they are.
LOWER_IS_BETTER = ("calculate_niqe", "calculate_fid", "calculate_lpips")


class Validating:
    """Mixin, in front of any of BasicSR's models.

    - The random states after a validation are those before it, and what it measured is kept in
      `validation.json` of the experiment, so that the best results outlive a resumption.
    - A metric that needs GT is left out, with a line, where a data set has none; BasicSR would
      compare with the last training patch, or end the run.
    - Images equal to GT have an infinite PSNR; the mean is over the others, with a line.
    - `calculate_niqe` without `better` counts as the better the lower.
    - Where a data set has `mean` and `std`, images are brought back before they are measured.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        for metric in ((opt.get("val") or {}).get("metrics") or {}).values():
            if metric.get("type") in LOWER_IS_BETTER:
                metric.setdefault("better", "lower")
        self._values: dict[str, list[float]] | None = None
        self._without_gt: set[str] = set()
        self._normalization: tuple[Any, Any] | None = None
        super().__init__(opt)

    def nondist_validation(
        self, dataloader: Any, current_iter: int | str, tb_logger: Any, save_img: bool
    ) -> None:
        """Validate as BasicSR does, with the differences that the class names.

        Raises:
            UserError: Two images of the set would be saved under one name, or a metric cannot be
                computed.
        """
        dataset = dataloader.dataset
        if save_img:
            saved_names(dataset)
        # A data set without GT must not be compared with what was trained on last.
        self.__dict__.pop("gt", None)
        metrics = (self.opt.get("val") or {}).get("metrics") or {}
        self.metric_results = dict.fromkeys(metrics, 0)
        mean, std = dataset.opt.get("mean"), dataset.opt.get("std")
        self._normalization = (mean, std) if mean is not None or std is not None else None
        self._values, self._without_gt = defaultdict(list), set()
        path = self.opt["path"]
        if getattr(dataset, "saved_apart", False):
            folder = os.path.join(path["visualization"], dataset.opt["name"])
            self.opt["path"] = {**path, "visualization": folder}
        try:
            with random_states_kept(), swapped(sr_model, calculate_metric=self._measure):
                super().nondist_validation(dataloader, current_iter, tb_logger, save_img)
        finally:
            self.opt["path"] = path
            self._values = self._normalization = None
        if self.opt["is_train"] and metrics:
            results = self._measured()
            values = results.setdefault(dataset.opt["name"], {})
            for metric, value in self.metric_results.items():
                values.setdefault(metric, {})[str(current_iter)] = float(value)
            self._keep_measured(results)

    def get_current_visuals(self) -> dict[str, torch.Tensor]:
        """The images as they are measured and saved."""
        visuals = super().get_current_visuals()
        if self._normalization is not None:
            mean, std = (
                torch.tensor(default if each is None else each).reshape(-1, 1, 1)
                for each, default in zip(self._normalization, (0.0, 1.0), strict=True)
            )
            visuals = type(visuals)(
                (name, value * std + mean if isinstance(value, torch.Tensor) else value)
                for name, value in visuals.items()
            )
        return visuals

    def _measure(self, data: Mapping[str, Any], metric: dict[str, Any]) -> Any:
        """BasicSR's `calculate_metric`, for one image."""
        name = next(name for name, each in self.opt["val"]["metrics"].items() if each is metric)
        needs = inspect.signature(METRIC_REGISTRY.get(metric["type"])).parameters.get("img2")
        if needs is not None and needs.default is inspect.Parameter.empty and "img2" not in data:
            self._without_gt.add(name)
            return 0.0
        border, (height, width) = metric.get("crop_border"), data["img"].shape[:2]
        if isinstance(border, int) and min(height, width) <= 2 * border:
            raise UserError(
                f"val: metrics: {name}: crop_border: {border}: nothing is left of an image of "
                f"{width} x {height} pixels; the scale is usual"
            )
        try:
            value = calculate_metric(data, metric)
        except Exception as error:
            raise UserError(
                f"val: metrics: {name}: {metric['type']} fails on an image of {width} x {height} "
                f"pixels ({type(error).__name__}: {printable(error)})"
            ) from error
        self._values[name].append(float(value))
        return 0.0 if math.isinf(float(value)) else value

    def _update_best_metric_result(
        self, dataset_name: str, metric: str, val: float, current_iter: int
    ) -> None:
        if metric in self._without_gt:
            return
        values = (self._values or {}).get(metric, [])
        finite = [value for value in values if not math.isinf(value)]
        if len(finite) < len(values):
            val = sum(finite) / len(finite) if finite else values[0]
            self.metric_results[metric] = val
            get_root_logger().warning(
                f"{dataset_name}: {metric} of {len(values) - len(finite)} of {len(values)} images, "
                "which equal their GT, is infinite; the mean is over the others."
            )
        super()._update_best_metric_result(dataset_name, metric, val, current_iter)

    def _log_validation_metric_values(
        self, current_iter: int | str, dataset_name: str, tb_logger: Any
    ) -> None:
        if self._without_gt:
            names = ", ".join(sorted(self._without_gt))
            get_root_logger().warning(f"{dataset_name}: has no GT, so {names} is left out.")
            for name in self._without_gt:
                self.metric_results.pop(name, None)
        super()._log_validation_metric_values(current_iter, dataset_name, tb_logger)

    def was_validated(self, dataset: str, current_iter: int) -> bool:
        """Whether results of an iteration are kept.

        Args:
            dataset: Name of the validation set.
            current_iter: The iteration.
        """
        measured = self._measured().get(dataset, {})
        values = [each for name, each in measured.items() if name in self.opt["val"]["metrics"]]
        return bool(values) and all(str(current_iter) in each for each in values)

    def best_iteration(self, saved: Mapping[int, Any]) -> int | None:
        """The best of the saved iterations, by the first metric of the first validation set.

        Args:
            saved: Has the iterations to choose from.
        """
        measured = self._measured()
        if not measured:
            return None
        metric, options = next(iter(self.opt["val"]["metrics"].items()))
        values = next(iter(measured.values())).get(metric, {})
        values = {
            int(iteration): value
            for iteration, value in values.items()
            if int(iteration) in saved and not math.isnan(value)
        }
        best = max if options.get("better", "higher") == "higher" else min
        return best(values, key=values.__getitem__, default=None)

    @property
    def _validation_file(self) -> Path:
        return Path(self.opt["path"]["experiments_root"], VALIDATION_FILE)

    def _measured(self) -> dict[str, dict[str, dict[str, float]]]:
        """Value by data set, metric and iteration."""
        try:
            return json.loads(self._validation_file.read_text())
        except (OSError, ValueError):
            return {}

    @master_only
    def _keep_measured(self, results: Mapping[str, Any]) -> None:
        try:
            write_atomically(self._validation_file, json.dumps(results, indent=1).encode())
        except OSError as error:
            get_root_logger().error(f"{VALIDATION_FILE} not written: {error.strerror or error}.")

    def set_results_aside(self, names: set[str], current_iter: int) -> None:
        """Begin anew with metrics of some names, which measure otherwise from an iteration on."""
        results = self._measured()
        known = names & {name for metrics in results.values() for name in metrics}
        for metrics in results.values():
            for name in metrics.keys() & known:
                metrics[f"{name} until iteration {current_iter}"] = metrics.pop(name)
        if known:
            get_root_logger().warning(
                f"{printable(', '.join(sorted(known)))}: measured otherwise from now on, so that "
                "the best results begin anew."
            )
            self._keep_measured(results)

    def resume_best_results(self, current_iter: int) -> None:
        """Go back to the best results as they were; later ones are forgotten.

        Args:
            current_iter: The iteration resumed from.
        """
        wanted = (self.opt.get("val") or {}).get("metrics") or {}
        results = self._measured()
        for dataset, metrics in results.items() if wanted else ():
            self._initialize_best_metric_results(dataset)
            for metric, values in metrics.items():
                for iteration in sorted(map(int, values)):
                    if iteration > current_iter:
                        # Of the part of the run that is now done again.
                        del values[str(iteration)]
                    elif metric in wanted:
                        self._update_best_metric_result(
                            dataset, metric, values[str(iteration)], iteration
                        )
        if results:
            self._keep_measured(results)


def saved_names(dataset: Any) -> dict[str, str]:
    """Names that the images of a data set are saved under, and where each comes from.

    Args:
        dataset: As BasicSR builds them.

    Raises:
        UserError: Two LQ images differ in folder or suffix only.
    """
    seen: dict[str, str] = {}
    for entry in getattr(dataset, "paths", None) or ():
        path = entry.get("lq_path") if isinstance(entry, dict) else entry
        if not isinstance(path, str):
            continue
        stem = os.path.splitext(os.path.basename(path))[0]
        if stem in seen:
            raise UserError(
                f"datasets: {dataset.opt['name']}: {printable(seen[stem])} and {printable(path)} "
                f"would both be saved as {printable(stem)}; rename one, or val: save_img: false"
            )
        seen[stem] = path
    return seen


def keep_images_apart(datasets: Iterable[Any]) -> None:
    """Have validation sets with images of equal names save them in folders of their own.

    In training BasicSR saves by the image's name alone, so that one set overwrites another's.

    Args:
        datasets: All validation sets of a training.

    Raises:
        UserError: Two LQ images of one set differ in folder or suffix only.
    """
    owners: dict[str, str] = {}
    for dataset in datasets:
        name = dataset.opt["name"]
        both = sorted(owners.keys() & saved_names(dataset).keys())
        if both:
            dataset.saved_apart = True
            get_root_logger().warning(
                f"{name}: {printable(both[0])} is an image of {owners[both[0]]} too: images of "
                f"{name} are saved in visualization/{name}."
            )
        owners.update(dict.fromkeys(saved_names(dataset), name))
