"""Prefetching: order, errors, and the end of the thread."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from pipelines.data.loading.prefetch import prefetch


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    gc.collect()
    _wait_until(lambda: threading.active_count() == before)


def _wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def _numbers(made: list[int], last: int | None = None) -> Generator[int, None, None]:
    """0, 1, 2...; appends each number to `made`, and -1 when closed."""
    try:
        number = 0
        while last is None or number <= last:
            made.append(number)
            yield number
            number += 1
    finally:
        made.append(-1)


def test_items_come_in_order_and_end() -> None:
    made: list[int] = []
    ahead = prefetch(_numbers(made, 9), 2)
    assert list(ahead) == list(range(10))
    assert list(ahead) == []  # does not wait for the thread, which has ended
    assert made == [*range(10), -1]
    assert list(prefetch(_numbers([], -1), 2)) == []


def test_at_most_depth_items_are_computed_in_advance() -> None:
    made: list[int] = []
    ahead = prefetch(_numbers(made), 3)
    assert next(ahead) == 0
    _wait_until(lambda: len(made) == 4)
    time.sleep(0.05)
    ahead.close()
    assert made == [0, 1, 2, 3, -1]
    with pytest.raises(StopIteration):
        next(ahead)
    ahead.close()


def test_an_error_is_raised_in_place_of_its_item() -> None:
    def failing() -> Generator[int, None, None]:
        yield 0
        yield 1
        raise ValueError("the third")

    ahead = prefetch(failing(), 5)
    assert [next(ahead), next(ahead)] == [0, 1]
    with pytest.raises(ValueError, match="the third"):
        next(ahead)
    assert list(ahead) == []


def test_deleting_the_iterator_ends_the_thread() -> None:
    made: list[int] = []
    before = threading.active_count()
    ahead = prefetch(_numbers(made), 1)
    assert next(ahead) == 0
    del ahead
    assert threading.active_count() == before
    assert made[-1] == -1


def test_garbage_collection_in_another_thread_does_not_deadlock() -> None:
    ready = threading.Event()

    def waiting() -> Generator[int, None, None]:
        yield 0
        ready.wait(10)
        collecting = threading.Thread(target=gc.collect, daemon=True)  # finds the generator below
        collecting.start()
        collecting.join()
        yield 1

    gc.disable()
    try:
        ahead = prefetch(waiting(), 2)
        assert next(ahead) == 0
        cycle: list[object] = [ahead]
        cycle.append(cycle)
        del ahead, cycle
        ready.set()
        _wait_until(lambda: not any(thread.name.startswith("prefetch") for thread in threading.enumerate()))
    finally:
        gc.enable()


ENDING = """
import time
from pipelines.data.loading.prefetch import prefetch

def slow():
    while True:
        time.sleep(0.01)
        yield 0

kept = prefetch(slow(), 2)
next(kept)
"""


def test_a_process_ends_with_an_open_iterator() -> None:
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", ENDING], cwd=root, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
