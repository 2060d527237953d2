"""Rows of a picture that is never in memory as a whole."""

import numpy as np
import torch

from esc_arch.inference.picture_files import Source
from esc_arch.ops.windows import reflect_indices


class PaddedRows:
    """Rows of a picture that is reflected beyond its end; earlier ones are forgotten."""

    def __init__(self, source: Source, height: int) -> None:
        self._indices = reflect_indices(source.height, 0, height, torch.device("cpu")).numpy()
        # The first row that is needed from each row on.
        self._needed = np.minimum.accumulate(self._indices[::-1])[::-1]
        self._next = source.open_rows()
        self._first = self._end = 0
        self._kept = np.empty((0, source.width, source.channels), source.dtype)

    def read(self, start: int, end: int) -> np.ndarray:
        """Rows start to end of the padded picture; `start` never gets smaller."""
        wanted = self._indices[start:end]
        self._forget(self._needed[start])
        missing = int(wanted.max()) + 1 - self._end
        if missing > 0:
            self._kept = np.concatenate([self._kept, self._next(missing)])
            self._end += missing
            self._forget(self._needed[start])
        return self._kept[wanted - self._first]

    def _forget(self, before: int) -> None:
        drop = min(max(int(before) - self._first, 0), len(self._kept))
        self._kept = self._kept[drop:]
        self._first += drop
