"""What a run is bound by: waiting for images, computing, or talking between processes.

Measured in the first epoch and told once. What is an estimate is said where it is made.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from ...config.schema import DataSection
from ..distributed import process_group
from ..distributed.sync_batch_norm import SyncBatchNorm
from .optimizer import has_native_bfloat16
from .settings import TrainerSettings

Item = TypeVar("Item")
WARM_UP = 2  # steps that start workers, choose kernels and fill caches do not count
SAMPLE_EVERY, SAMPLES = 4, 25  # on CUDA: steps whose kernels are timed
REPEATS = 3  # of a timed collective
SMALL = 1024  # elements of a collective of batch norm, where only the delay counts


class Shares(NamedTuple):
    """Shares of a step's time, which add up to 1."""

    input: float
    computing: float
    communication: float
    rest: float


class StepClock:
    """Times the steps of the first epoch, without waiting for a GPU.

    Args:
        device: on CUDA the passes of every few steps are timed by events, elsewhere by the clock.
        clock: seconds.
    """

    def __init__(
        self, device: torch.device, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.device = device
        self.clock = clock
        self.active = True
        self.begun = 0  # steps
        self.since = 0.0  # when the first step that counts began
        self.waited = 0.0
        self.computed = 0.0
        self.samples = 0
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def waits(self, items: Iterator[Item]) -> Iterator[Item]:
        """The items; the time that each one takes to come is noted."""
        items, nothing = iter(items), object()
        while True:
            asked = self.clock()
            item = next(items, nothing)
            if item is nothing:
                return
            self.begun += 1
            if self.begun == WARM_UP + 1:
                self.since = asked
            if self.begun > WARM_UP and self.active:
                self.waited += self.clock() - asked
            yield item

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Around forward pass, backward pass and optimizer of a step."""
        counted = self.active and self.begun > WARM_UP
        if counted and self.device.type == "cuda":
            counted = self.begun % SAMPLE_EVERY == 0 and len(self.events) < SAMPLES
        if not counted:
            yield
        elif self.device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self.events.append((begin, end))
        else:
            began = self.clock()
            yield
            self.computed += self.clock() - began
            self.samples += 1

    def conclude(self, network: nn.Module, settings: TrainerSettings) -> str | None:
        """The verdict over the steps so far, for the log; None where there were too few.

        Every process must call it after the same step. Nothing is timed any more afterwards.
        """
        self.active = False
        steps = self.begun - WARM_UP
        if steps < 1:
            return None
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        whole = self.clock() - self.since
        if self.device.type == "cuda":
            self.computed = sum(begin.elapsed_time(end) for begin, end in self.events) / 1000
            self.samples = len(self.events)
        if not self.samples:
            return None
        talk = communication_seconds(
            network, self.device, passes=settings.accumulation_steps, clock=self.clock
        )
        seconds = torch.tensor(
            [whole / steps, self.waited / steps, -self.computed / self.samples, talk],
            dtype=torch.float32,
            device=next(network.parameters()).device,
        )
        # who is kept waiting by another process seems to compute for longer: the least is true
        step, waiting, computing, talk = process_group.all_reduce_max(seconds).tolist()
        shares = step_shares(step, waiting=waiting, computing=-computing, communication=talk)
        return verdict(shares, settings, processes=process_group.world_size())


def step_shares(step: float, *, waiting: float, computing: float, communication: float) -> Shares:
    """Seconds of a step -> shares.

    `waiting` for images counts as far as nothing was computed meanwhile (a GPU goes on by itself);
    `communication` happens during the passes, so it is taken off their time.
    """
    computing = min(computing, step)
    communication = min(communication, computing)
    waiting = min(waiting, step - computing)
    step = max(step, 1e-12)
    return Shares(
        waiting / step,
        (computing - communication) / step,
        communication / step,
        (step - computing - waiting) / step,
    )


def communication_seconds(
    network: nn.Module,
    device: torch.device,
    *,
    passes: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds a step for gradients and synchronized batch norm; 0 with one process.

    An estimate: one sum over all gradients at once and two short ones for each synchronized layer
    and pass, timed on an idle network. In training the gradients travel beside the backward pass,
    so this is the most that communication may cost.
    """
    if process_group.world_size() == 1:
        return 0.0

    def seconds(elements: int) -> float:
        tensor = torch.zeros(elements, device=device)
        times = []
        for _ in range(1 + REPEATS):
            wait_for(device)
            began = clock()
            process_group.all_reduce_sum(tensor)
            wait_for(device)
            times.append(clock() - began)
        return min(times[1:])

    kinds = (SyncBatchNorm, nn.SyncBatchNorm)
    layers = sum(isinstance(module, kinds) for module in network.modules())
    gradients = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return seconds(gradients) + 2 * layers * passes * (seconds(SMALL) if layers else 0.0)


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def verdict(shares: Shares, settings: TrainerSettings, *, processes: int) -> str:
    """Shares -> the line of the log."""
    figures = [
        f"{shares.input:.0%} waiting for images",
        f"{shares.computing:.0%} forward and backward",
        f"{shares.rest:.0%} the rest (log, checkpoints)",
    ]
    if processes > 1:
        figures.insert(2, f"{shares.communication:.0%} communication (an estimate)")
    largest = max(Shares._fields, key=lambda name: getattr(shares, name))
    return f"where the time goes: {', '.join(figures)}. {ADVICE[largest](settings)}"


def _input(settings: TrainerSettings) -> str:
    packed = ", or a packed copy of the dataset (DATA.packed)"
    return (
        "Bound by input: more TRAIN.workers would help, as long as there are CPUs for them"
        + packed * ("packed" in DataSection.model_fields)
    )


def _computing(settings: TrainerSettings) -> str:
    may_halve = settings.dtype == torch.float32 and has_native_bfloat16(settings.device)
    helps = "TRAIN.precision bf16, " if may_halve else ""
    place = "GPU" if settings.device.type == "cuda" else "CPU"
    return (
        f"Bound by the {place}: {helps}TRAIN.compile, a larger TRAIN.batch_size or more processes "
        "would help, where the hardware has room for them"
    )


def _communication(settings: TrainerSettings) -> str:
    return (
        "Bound by communication: a larger TRAIN.batch_size, fewer processes, a faster network "
        "between them, or TRAIN.norm group in place of synchronized batch norm would help"
    )


def _rest(settings: TrainerSettings) -> str:
    return (
        "Bound by neither images nor computing: a larger TRAIN.print_freq and fewer checkpoints "
        "(TRAIN.save_steps, TRAIN.save_minutes) would help"
    )


ADVICE = {
    "input": _input,
    "computing": _computing,
    "communication": _communication,
    "rest": _rest,
}
