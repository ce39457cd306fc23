"""ThroughputMeter: images per second of each epoch, and how much of its time the training waited for data."""

import time
from collections.abc import Iterable, Iterator

from compression.batch import Batch


class ThroughputMeter:
    """Measures one epoch at a time: `begin_epoch`, then iterate over `timed(batches)`, then `epoch_metrics`."""

    def __init__(self, batch_size: int) -> None:
        """batch_size: global, over all workers."""
        self._batch_size = batch_size
        self._start = self._seconds_waited = 0.0
        self._steps = 0

    def begin_epoch(self) -> None:
        self._start, self._seconds_waited, self._steps = time.perf_counter(), 0.0, 0

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; counts them, and the time for which the caller waits for each."""
        iterator = iter(batches)
        while True:
            before = time.perf_counter()
            batch = next(iterator, None)
            self._seconds_waited += time.perf_counter() - before
            if batch is None:
                return
            self._steps += 1
            yield batch

    def epoch_metrics(self) -> dict[str, float]:
        """images_per_second: global; data_wait: share of the epoch's time, in [0, 1], spent waiting for batches."""
        seconds = time.perf_counter() - self._start
        return {
            "images_per_second": self._steps * self._batch_size / seconds,
            "data_wait": self._seconds_waited / seconds,
        }
