"""The data of one training run: data sets, loaders, and how far the run has come in them."""

import functools
from collections.abc import Callable
from typing import Any

import basicsr.data
import torch
from basicsr.utils import get_root_logger
from torch.utils.data import DataLoader, Dataset

from esc_arch.errors import UserError
from esc_arch.plugin.compat.patching import swapped
from esc_arch.plugin.data.exact_order import GuardedDataset, ResumableSampler
from esc_arch.plugin.data.prefetching import FaithfulPrefetchLoader
from esc_arch.plugin.data.worker_log import LogOfRun
from esc_arch.plugin.models.validating import keep_images_apart


class RunData:
    """What BasicSR builds of `datasets`, exchanged for or wrapped by this package's.

    Args:
        stop_if_asked: Called before each sample of a validation is read; may raise.

    Attributes:
        opt: The parsed options, once they are.
        resume_state: The training state that the run goes on from, or None.
        epoch, samples_seen: Place in the data: epoch, and samples of it that all processes
            together have trained on.
        val_loaders: Loaders of the validation sets.
    """

    def __init__(self, stop_if_asked: Callable[[], None]) -> None:
        self._stop_if_asked = stop_if_asked
        self._sampler: ResumableSampler | None = None
        self._loader: DataLoader | None = None
        self.opt: dict[str, Any] = {}
        self.resume_state: dict[str, Any] | None = None
        self.val_loaders: list[DataLoader] = []
        self.epoch, self.samples_seen = 0, 0

    def make_sampler(self, *args: Any, **kwargs: Any) -> ResumableSampler:
        """In place of BasicSR's EnlargedSampler."""
        self._sampler = ResumableSampler(*args, **kwargs)
        return self._sampler

    def wrap_build_dataset(self, build_dataset: Callable[[dict], Dataset]) -> Callable:
        """BasicSR's function, with bad samples named."""

        @functools.wraps(build_dataset)
        def build(dataset_opt: dict[str, Any]) -> GuardedDataset:
            refuse_same_set_names(self.opt.get("datasets", {}))
            training = dataset_opt.get("phase") == "train"
            # The seed of the run is only told to the loader, see wrap_build_dataloader.
            return GuardedDataset(
                build_dataset(dataset_opt),
                dataset_opt,
                before_read=None if training else self._stop_if_asked,
            )

        return build

    def wrap_build_dataloader(self, build_dataloader: Callable[..., DataLoader]) -> Callable:
        """BasicSR's function, for loaders that draw nothing from the training's generators."""

        @functools.wraps(build_dataloader)
        def build(dataset: Any, dataset_opt: dict, *args: Any, **kwargs: Any) -> DataLoader:
            training = dataset_opt.get("phase") == "train"
            if training:
                dataset_opt = self._for_training(dataset_opt)
            with swapped(basicsr.data, PrefetchDataLoader=FaithfulPrefetchLoader):
                loader = build_dataloader(dataset, dataset_opt, *args, **kwargs)
            seed = kwargs.get("seed") or 0
            dataset.seed = seed
            # Otherwise each start of a loader would draw from the generator of the training.
            loader.generator = torch.Generator().manual_seed(seed)
            loader.worker_init_fn = LogOfRun(loader.worker_init_fn)
            if training:
                self._loader = loader
            else:
                self.val_loaders.append(loader)
            return loader

        return build

    def _for_training(self, dataset_opt: dict[str, Any]) -> dict[str, Any]:
        dataset_opt = dict(dataset_opt)
        if dataset_opt.get("prefetch_mode") == "cpu" and not dataset_opt["num_worker_per_gpu"]:
            # BasicSR reads them in a thread, which draws from the generators of the training.
            get_root_logger().warning(
                "datasets: train: prefetch_mode: cpu with num_worker_per_gpu: 0: one process is "
                "started to load data, so that random numbers repeat."
            )
            dataset_opt["num_worker_per_gpu"] = 1
        return dataset_opt

    def wrap_create_loaders(self, create: Callable[..., tuple]) -> Callable[..., tuple]:
        """BasicSR's function, with the number of epochs that reaches `total_iter`."""

        @functools.wraps(create)
        def create_train_val_dataloader(opt: dict[str, Any], logger: Any) -> tuple:
            loader, sampler, val_loaders, _, total_iters = create(opt, logger)
            if (opt.get("val") or {}).get("save_img"):
                keep_images_apart(each.dataset for each in val_loaders)
            if len(sampler) < loader.batch_size:
                ratio = opt["datasets"]["train"].get("dataset_enlarge_ratio", 1)
                raise UserError(
                    f"datasets: train: {len(loader.dataset)} images, with dataset_enlarge_ratio "
                    f"{ratio}, are {len(sampler)} for each process, fewer than one batch of "
                    f"{loader.batch_size}: lower batch_size_per_gpu, or dataset_enlarge_ratio: "
                    f"{-(-loader.batch_size * sampler.num_replicas // len(loader.dataset))}"
                )
            done = 0
            if self.resume_state is not None:
                done = self.resume_state["iter"]
                self._find_place(self.resume_state)
            left = total_iters - done
            if left < 1:
                logger.info(f"Iteration {done} is reached: there is nothing left to train.")
                return loader, sampler, val_loaders, self.epoch - 1, total_iters
            last = sampler.plan(left, loader.batch_size, self.epoch)
            logger.info(f"Iterations {done + 1} to {total_iters} end in epoch {last}.")
            return loader, sampler, val_loaders, last, total_iters

        return create_train_val_dataloader

    def _find_place(self, state: dict[str, Any]) -> None:
        if state.get("place_in_data") is not None:
            self.epoch, self.samples_seen = state["place_in_data"]
        else:
            # Of BasicSR itself: told from the iteration, if nothing has changed since.
            self.epoch = state["epoch"]
            batches = len(self._sampler) // self._loader.batch_size
            within = min(max(state["iter"] - self.epoch * batches, 0), batches)
            self.samples_seen = within * self._batch
        # BasicSR goes on with the epoch that it finds there.
        state["epoch"] = self.epoch
        self._sampler.resume(self.epoch, self.samples_seen)

    @property
    def _batch(self) -> int:
        """Samples that all processes together take in one step."""
        return self._loader.batch_size * self._sampler.num_replicas

    def count_step(self) -> None:
        """Note that the run has trained on one more batch."""
        if self._sampler.epoch != self.epoch:
            self.epoch, self.samples_seen = self._sampler.epoch, 0
        self.samples_seen += self._batch

    def close(self) -> None:
        """End what still loads."""
        for loader in (self._loader, *self.val_loaders):
            if isinstance(loader, FaithfulPrefetchLoader):
                loader.stop()


def refuse_same_set_names(datasets: dict[str, Any]) -> None:
    """Refuse two validation or test sets of one name, whose results would be mixed.

    Args:
        datasets: The options of all.

    Raises:
        UserError: There are two.
    """
    seen: dict[Any, str] = {}
    for key, dataset in datasets.items():
        if key == "train":
            continue
        name = dataset.get("name")
        if name in seen:
            raise UserError(
                f"datasets: {seen[name]} and {key} both have name: {name}, so their results would "
                "be mixed; give one another name"
            )
        seen[name] = key
