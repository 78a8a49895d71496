"""A thread pool with a bounded queue."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class BoundedThreadPool:
    """Runs calls in `threads` threads until it is left; at most `waiting` of them are unfinished.

    An error of a call is raised by a later `submit` or at the end.
    """

    def __init__(self, threads: int = 2, waiting: int = 8) -> None:
        self._pool = ThreadPoolExecutor(threads)
        self._waiting = waiting
        self._calls: deque[Future] = deque()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> None:
        while len(self._calls) >= self._waiting:
            self._calls.popleft().result()
        self._calls.append(self._pool.submit(function, *arguments))

    def __enter__(self) -> "BoundedThreadPool":
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for everything, also where the main thread has failed."""
        try:
            while self._calls:
                self._calls.popleft().result()
        finally:
            self._pool.shutdown()
