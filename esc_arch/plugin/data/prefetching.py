"""BasicSR's prefetching in a thread, which passes errors on and ends when it is told to."""

import queue
from collections.abc import Iterator
from typing import Any

from basicsr.data.prefetch_dataloader import PrefetchDataLoader, PrefetchGenerator
from torch.utils.data import DataLoader


class FaithfulPrefetcher(PrefetchGenerator):
    """Batches from a thread: BasicSR's, but that an error there would leave everybody waiting."""

    def __init__(self, generator: Iterator[Any], num_prefetch_queue: int) -> None:
        self._error: BaseException | None = None
        self._stopped = False
        super().__init__(generator, num_prefetch_queue)

    def run(self) -> None:
        """Fill the queue; the thread's own function."""
        try:
            for item in self.generator:
                if not self._put(item):
                    return
        except BaseException as error:
            self._error = error
        self._put(None)

    def _put(self, item: Any) -> bool:
        while not self._stopped:
            try:
                self.queue.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def __next__(self) -> Any:
        """The next batch.

        Raises:
            Exception: What loading it raised.
        """
        try:
            return super().__next__()
        except StopIteration:
            if self._error is not None:
                raise self._error from None
            raise

    def stop(self) -> None:
        """End the thread; an interpreter that ends while it runs may abort."""
        self._stopped = True
        self.join(timeout=10)
        self.generator = iter(())


class FaithfulPrefetchLoader(PrefetchDataLoader):
    """BasicSR's prefetching loader over `FaithfulPrefetcher`, one thread at a time."""

    _prefetcher: FaithfulPrefetcher | None = None

    def __iter__(self) -> FaithfulPrefetcher:
        """Begin anew; what an earlier iterator still prepared is dropped."""
        self.stop()
        self._prefetcher = FaithfulPrefetcher(DataLoader.__iter__(self), self.num_prefetch_queue)
        return self._prefetcher

    def stop(self) -> None:
        """End the thread of the last iterator."""
        if self._prefetcher is not None:
            self._prefetcher.stop()
            self._prefetcher = None
