"""A baseline in a process of its own."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import torch

from stripseg.util.precision import set_numerics


class Apart:
    """A job made in another process, where every call does it and waits for its end.

    Both sides read the same environment, the allocator's settings included, and neither finds
    memory that the other has left behind.

    Args:
        make: returns (job, result): what to time, and what to tell of it afterwards. It is called
            in the other process, and must be a function of a module.
    """

    def __init__(self, make: Callable[..., tuple[Callable, Callable]], *args):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        arguments = (theirs, torch.get_num_threads(), make, args)
        self.process = context.Process(target=serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()

    def __call__(self, *args: object) -> Any:
        """Do the job once, and return what it does."""
        return self.ask("job", args)

    def result(self) -> Any:
        return self.ask("result", ())

    def ask(self, request: str, args: tuple) -> Any:
        self.pipe.send((request, args))
        answer = self.pipe.recv()
        if isinstance(answer, Exception):
            raise RuntimeError("the baseline failed") from answer
        return answer

    def __enter__(self) -> "Apart":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.terminate()
        self.process.join()


def serve(pipe: Connection, threads: int, make: Callable, args: tuple) -> None:
    """Answer requests until the other side goes away."""
    torch.set_num_threads(threads)
    set_numerics()  # single precision is that on GPUs as well
    try:
        job, result = make(*args)
        while True:
            request, args = pipe.recv()
            pipe.send(result() if request == "result" else job(*args))
    except EOFError:
        return
    except Exception as error:
        pipe.send(error)
