"""Samples that depend on their place in the run, not on which process made them before what.

BasicSR shuffles by epoch, and draws crops and flips from random generators that each loading
process seeds once and goes on using. A run that is stopped within an epoch and resumed would see
its data in another order and cropped otherwise. Here the sampler hands out, with each index, the
sample's place in the run; the data set draws from generators seeded by that place; and a resumed
sampler leaves out the places already seen.
"""

import contextlib
import copy
import io
import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from basicsr.data.data_sampler import EnlargedSampler
from basicsr.utils import get_root_logger, imfrombytes
from torch.utils.data import Dataset

from esc_arch.errors import UserError, printable
from esc_arch.plugin.compat.data_loading import refuse_unreadable_lmdb
from esc_arch.plugin.own_options import own_value
from esc_arch.plugin.random_states import random_states_kept
from esc_arch.prepare.bounds import file_fault
from esc_arch.prepare.headers import read_header


class PlacedIndex(int):
    """Index into a data set that also carries the sample's place in the run.

    Attributes:
        place: Epoch, and position within it over all processes.
    """

    place: tuple[int, int]

    @classmethod
    def of(cls, index: int, place: tuple[int, int]) -> "PlacedIndex":
        """Make one."""
        placed = cls(index)
        placed.place = place
        return placed


class ResumableSampler(EnlargedSampler):
    """BasicSR's sampler, which can begin in the middle of an epoch and end with the run.

    BasicSR counts the epochs of a run as if an incomplete batch at an epoch's end counted, which
    the loader leaves out, so its runs end early. `plan` counts what is really given out.
    """

    _resumed_epoch, _samples_seen = -1, 0
    _last_epoch, _last_samples = -1, 0

    def resume(self, epoch: int, samples_seen: int) -> None:
        """Leave out the beginning of one epoch.

        Args:
            epoch: The epoch within which the run was stopped.
            samples_seen: Samples of it that all processes together have trained on.
        """
        self._resumed_epoch, self._samples_seen = epoch, samples_seen

    def plan(self, iterations: int, batch_size: int, first_epoch: int = 0) -> int:
        """End after so many batches.

        Args:
            iterations: Batches still to come, at least 1.
            batch_size: Samples of one batch of this process.
            first_epoch: The epoch that comes first, perhaps the one given to `resume`.

        Returns:
            The last epoch.
        """
        epoch, left = first_epoch, iterations
        while True:
            batches = self._length(epoch) // batch_size
            if batches >= left:
                self._last_epoch, self._last_samples = epoch, left * batch_size
                return epoch
            left -= batches
            epoch += 1
            if epoch > first_epoch + 1:
                # All alike from here on.
                whole = (left - 1) // batches
                epoch, left = epoch + whole, left - whole * batches

    def _length(self, epoch: int) -> int:
        """Samples of this process in an epoch."""
        if epoch != self._resumed_epoch:
            return self.num_samples
        return max(self.total_size - self._samples_seen, 0) // self.num_replicas

    def __iter__(self) -> Iterator[PlacedIndex]:
        """Yield this process's indices for the epoch set last, with their places."""
        skipped = self._samples_seen if self.epoch == self._resumed_epoch else 0
        length = self._length(self.epoch)
        if self.epoch == self._last_epoch:
            length = min(length, self._last_samples)
        everybody = copy.copy(self)
        everybody.num_replicas, everybody.rank = 1, 0
        everybody.num_samples = self.total_size
        indices = list(EnlargedSampler.__iter__(everybody))
        # Shared out anew from where the run was stopped: there may be other processes now.
        for number in range(length):
            position = skipped + number * self.num_replicas + self.rank
            yield PlacedIndex.of(indices[position], (self.epoch, position))


class BadSampleError(UserError):
    """A sample that cannot be read.

    A loading process hands its errors to the main one as text that begins with its traceback; only
    the last line, which is the message, is kept.
    """

    def __init__(self, message: str) -> None:
        if message.startswith("Caught "):
            message = message.strip().splitlines()[-1].rpartition("BadSampleError: ")[2]
        super().__init__(message)


class GuardedDataset(Dataset):
    """A data set whose samples depend on their place, and whose bad samples are named.

    Everything else is asked of the data set it wraps. In its options it reads `on_bad_sample`:
    `stop` (default) ends the run when a sample cannot be read; `skip` warns and takes the next one
    instead, and holds for training only.

    Args:
        dataset: What BasicSR built.
        dataset_opt: Its options.
        seed: `manual_seed` of the run.
        before_read: Called before each sample is read; may raise.

    Raises:
        UserError: `on_bad_sample` has another value.
    """

    def __init__(
        self,
        dataset: Dataset,
        dataset_opt: dict[str, Any],
        seed: int = 0,
        before_read: Callable[[], None] | None = None,
    ) -> None:
        self.dataset = dataset
        self.seed = seed
        self.before_read = before_read
        self.section = f"datasets: {dataset_opt.get('phase', 'train')}"
        self.roots = {side: dataset_opt.get(f"dataroot_{side}") for side in ("gt", "lq")}
        for root in self.roots.values():
            if str(root or "").endswith(".lmdb"):
                refuse_unreadable_lmdb(str(root), self.section)
        if len(dataset) == 0:
            roots = ", ".join(printable(root) for root in self.roots.values() if root)
            raise UserError(f"{self.section}: no images in {roots or 'it'}")
        phase = dataset_opt.get("phase", "train")
        on_bad_sample = own_value(
            f"datasets:{phase}:on_bad_sample",
            dataset_opt.get("on_bad_sample"),
            type(dataset),
            "stop",
        )
        self.training = phase == "train"
        self.scale = dataset_opt.get("scale")
        self.skips = self.training and on_bad_sample == "skip"
        self._looked_at: set[int] = set()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        # Unpickling asks for names before there is a data set to ask.
        if name.startswith("__") or "dataset" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read one sample.

        Raises:
            BadSampleError: It cannot be read, and is not to be skipped.
        """
        if self.before_read is not None:
            self.before_read()
        place = getattr(index, "place", None)
        seeded = contextlib.nullcontext() if place is None else _seeded(self.seed, *place)
        with seeded:
            sample = self._read(int(index))
        if not self.training:
            self._check_name(sample)
            self._check_size(sample)
        return sample

    def _read(self, index: int) -> dict[str, Any]:
        for candidate in range(index, index + len(self)):
            candidate %= len(self)
            try:
                if candidate not in self._looked_at:
                    self._refuse_what_may_not_end(candidate)
                sample = self.dataset[candidate]
                if candidate not in self._looked_at:
                    self._look_at_files(candidate)
                    self._looked_at.add(candidate)
                return sample
            except Exception as error:
                message = f"{self.section}: {self._what_is_wrong(candidate, error)}"
                # Without an open LMDB or folder there is nothing to go on with.
                if not self.skips or getattr(self.dataset, "file_client", None) is None:
                    raise BadSampleError(
                        f"{message}; mend the data (or for training on_bad_sample: skip)"
                    ) from error
                get_root_logger().warning(f"{message}; skipped, the next one is taken")
        raise BadSampleError(f"{self.section}: not one of {len(self)} samples can be read")

    def _refuse_what_may_not_end(self, index: int) -> None:
        """Refuse a pipe or a device in place of an image's file, and one of far too much work."""
        for side, path in self._files(index).items():
            if not self._is_key(side) and (fault := _may_not_end(path)) is not None:
                raise ValueError(fault)

    def _is_key(self, side: str) -> bool:
        return str(self.roots[side] or "").endswith(".lmdb")

    def _files(self, index: int) -> dict[str, str]:
        """Path, or key in an LMDB, of each side of a sample, as far as the data set tells."""
        paths = getattr(self.dataset, "paths", None)
        entry = paths[index] if paths is not None else {}
        if not isinstance(entry, dict):
            entry = {"gt_path": entry}
        found = {side: entry.get(f"{side}_path") for side in ("gt", "lq")}
        return {side: path for side, path in found.items() if isinstance(path, str)}

    def _look_at_files(self, index: int) -> None:
        """Refuse a pair that does not fit as it is stored, once.

        OpenCV turns a picture as its EXIF orientation says, and BasicSR cuts a GT image that is
        too large for its LQ without a word, which both hide that the two do not show the same.
        """
        files = self._files(index)
        client = getattr(self.dataset, "file_client", None)
        if client is None or len(files) < 2:
            return
        gt, lq = (read_header(io.BytesIO(client.get(files[side], side))) for side in files)
        if gt is None or lq is None:
            # OpenCV has read them; what Pillow cannot, it cannot tell about.
            return
        if gt.turn != lq.turn:
            raise ValueError(
                f"EXIF orientation {gt.turn} of GT and {lq.turn} of LQ: one of the two is turned "
                "as it is read; save both without orientation, upright"
            )
        if self.training or self.scale is None:
            return
        surplus = (gt.height - lq.height * self.scale, gt.width - lq.width * self.scale)
        if any(each >= self.scale for each in surplus):
            raise ValueError(
                f"GT is {gt.width} x {gt.height} and LQ {lq.width} x {lq.height}: that is not "
                f"scale {self.scale}"
            )

    def _what_is_wrong(self, index: int, error: Exception) -> str:
        """Name the file or LMDB key to blame."""
        read = getattr(getattr(self.dataset, "file_client", None), "get", None)
        named = []
        for side, path in self._files(index).items():
            is_key = self._is_key(side)
            name = f"key '{path}' of {self.roots[side]}" if is_key else path
            fault = None if is_key else _may_not_end(path)
            if fault is None and read is not None:
                fault = _fault(read, path, side)
            if fault is not None:
                return f"{name}: {fault}"
            named.append(name)
        reason = " ".join(str(error).split()) or type(error).__name__
        return f"{' and '.join(named) or f'sample {index}'}: {reason}"

    def _check_name(self, sample: dict[str, Any]) -> None:
        """Refuse a name that would put the image made of it outside the results folder."""
        path = sample.get("lq_path", "")
        name = os.path.splitext(os.path.basename(path))[0]
        if name.strip(". ") == "" or "\0" in name or "\\" in name:
            raise BadSampleError(f"{self.section}: {path!r}: cannot name a result image")

    def _check_size(self, sample: dict[str, Any]) -> None:
        """Refuse a pair whose GT is not as many times larger as the metrics need it to be."""
        gt, lq = sample.get("gt"), sample.get("lq")
        # Videos have a dimension more, and data sets for other tasks no scale.
        if self.scale is None or not all(getattr(each, "ndim", 0) == 3 for each in (gt, lq)):
            return
        (gt_height, gt_width), (height, width) = gt.shape[-2:], lq.shape[-2:]
        if (gt_height, gt_width) != (height * self.scale, width * self.scale):
            raise BadSampleError(
                f"{self.section}: {sample.get('lq_path')} is {width} x {height}, but "
                f"{sample.get('gt_path')} {gt_width} x {gt_height}: that is not scale {self.scale}"
            )


def _may_not_end(path: str) -> str | None:
    """Why reading a path may never end, or is no reading at all."""
    if not os.path.isfile(path):
        there = os.path.exists(path)
        return "is a folder, a pipe or a device; an image file is needed" if there else None
    try:
        with open(path, "rb") as file:
            return file_fault(file)
    except OSError:
        return None  # Whoever reads it says more.


def _fault(read: Callable[[str, str], bytes | None], path: str, side: str) -> str | None:
    """What is wrong with a file or LMDB value by itself, or None."""
    try:
        content = read(path, side)
    except FileNotFoundError:
        return "no such file"
    except Exception as error:
        return f"cannot be read: {' '.join(str(error).split())}"
    if content is None:
        return "missing, though the LMDB's meta_info.txt lists it"
    if (fault := file_fault(io.BytesIO(content))) is not None:
        return fault
    try:
        image = imfrombytes(content)
    except Exception:
        image = None
    return None if image is not None else f"not a whole image ({len(content)} bytes)"


@contextlib.contextmanager
def _seeded(seed: int, epoch: int, position: int) -> Iterator[None]:
    with random_states_kept():
        words = np.random.SeedSequence([seed, epoch, position]).generate_state(3)
        random.seed(int(words[0]))
        np.random.seed(words[1])
        # Not torch.manual_seed, which would seed the GPUs too.
        torch.default_generator.manual_seed(int(words[2]))
        yield
