"""Run a function in several gloo processes and get what each of them returned."""

import multiprocessing
import queue
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SECONDS = 120


def run_processes(count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """[function(*arguments) of rank 0, of rank 1, ...]; `function` stands at the top of a module.

    Raises:
        RuntimeError: one of them failed, or they did not finish in time.
    """
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "rendezvous").as_uri()
        workers = [
            context.Process(target=work, args=(rank, count, place, results, function, arguments))
            for rank in range(count)
        ]
        for worker in workers:
            worker.start()
        try:
            answers = dict(answer for answer in (results.get(timeout=SECONDS) for _ in workers))
        except queue.Empty:
            raise RuntimeError(f"{function.__name__}: not done in {SECONDS} s") from None
        finally:
            for worker in workers:
                worker.join(timeout=5)
                worker.kill()
    errors = [value for failed, value in answers.values() if failed]
    if errors:
        raise RuntimeError("\n".join(errors))
    return [answers[rank][1] for rank in range(count)]


def work(rank: int, count: int, place: str, results, function, arguments) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=place, rank=rank, world_size=count)
        answer = (False, function(*arguments))
        dist.barrier()
        dist.destroy_process_group()
    except Exception:
        answer = (True, traceback.format_exc())
    results.put((rank, plain(answer)))


def plain(value: Any) -> Any:
    """Tensors as arrays, which travel without shared memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().numpy()
    if isinstance(value, (list, tuple)):
        return type(value)(plain(v) for v in value)
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    return value
