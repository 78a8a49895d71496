"""Times the steps of the first epoch and names what the run is bound by."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from ..distributed import process_group
from ..distributed.sync_batch_norm import SyncBatchNorm
from ..precision import has_native_bfloat16

WARM_UP = 2  # steps that start workers, choose kernels and fill caches do not count
SAMPLE_EVERY, SAMPLES = 4, 25  # on CUDA: steps whose kernels are timed
REPEATS = 3  # of a timed collective
SMALL = 1024  # elements of a collective of batch norm, where only the delay counts


class Shares(NamedTuple):
    """Shares of the time of a step; they add up to 1."""

    input: float
    computing: float
    communication: float
    rest: float


class StepTimer:
    """Times the steps of the first epoch, without waiting for a GPU.

    Args:
        device: on CUDA the passes of every few steps are timed by events, elsewhere by the clock.
        dtype: of the network's arithmetic, for the advice.
        passes: forward and backward passes of a step.
        clock: seconds.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        dtype: torch.dtype = torch.float32,
        passes: int = 1,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.device = device
        self.dtype = dtype
        self.passes = passes
        self.clock = clock
        self.active = True
        self.begun = 0  # steps
        self.since = 0.0  # when the first step that counts began
        self.waited = 0.0
        self.computed = 0.0
        self.samples = 0
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def batch_came(self, asked: float) -> None:
        """Record the arrival of a batch requested at time `asked`: a step begins."""
        self.begun += 1
        if self.begun == WARM_UP + 1:
            self.since = asked
        if self.begun > WARM_UP and self.active:
            self.waited += self.clock() - asked

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Time forward pass, backward pass and optimizer of a step."""
        counted = self.active and self.begun > WARM_UP
        if counted and self.device.type == "cuda":
            counted = self.begun % SAMPLE_EVERY == 0 and len(self.events) < SAMPLES
        if not counted:
            yield
        elif self.device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            stream = torch.cuda.current_stream(self.device)  # of this GPU, not of the current one
            begin.record(stream)
            yield
            end.record(stream)
            self.events.append((begin, end))
        else:
            began = self.clock()
            yield
            self.computed += self.clock() - began
            self.samples += 1

    def conclude(self, network: nn.Module) -> str | None:
        """Return the line for the log about the steps so far, or None after too few of them.

        Every process must call it after the same step. It ends the measurement.
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
        talk = communication_seconds(network, self.device, passes=self.passes, clock=self.clock)
        seconds = torch.tensor(
            [whole / steps, self.waited / steps, -self.computed / self.samples, talk],
            dtype=torch.float32,
            device=next(network.parameters()).device,
        )
        # a process that waits for another one seems to compute for longer: the least is true
        step, waiting, computing, talk = process_group.all_reduce_max(seconds).tolist()
        shares = step_shares(step, waiting=waiting, computing=-computing, communication=talk)
        processes = process_group.world_size()
        return bottleneck(shares, self.device, self.dtype, processes=processes)


def step_shares(step: float, *, waiting: float, computing: float, communication: float) -> Shares:
    """Seconds of a step -> shares.

    `waiting` for images counts as far as nothing was computed meanwhile (GPUs work on);
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
    """Seconds per step for gradients and synchronized batch norm; 0 with one process.

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

    layers = sum(isinstance(module, SyncBatchNorm) for module in network.modules())
    gradients = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return seconds(gradients) + 2 * layers * passes * (seconds(SMALL) if layers else 0.0)


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bottleneck(shares: Shares, device: torch.device, dtype: torch.dtype, *, processes: int) -> str:
    """Return the line of the log: where the time goes, and what would help."""
    figures = [
        f"{shares.input:.0%} waiting for images",
        f"{shares.computing:.0%} forward and backward",
        f"{shares.rest:.0%} the rest (log, checkpoints)",
    ]
    if processes > 1:
        figures.insert(2, f"{shares.communication:.0%} communication (an estimate)")
    largest = max(Shares._fields, key=lambda name: getattr(shares, name))
    return f"where the time goes: {', '.join(figures)}. {advice(largest, device, dtype)}"


def advice(largest: str, device: torch.device, dtype: torch.dtype) -> str:
    """Return what would help a run that spends the largest share of its time so."""
    if largest == "input":
        return (
            "Bound by input: more TRAIN.workers would help, as long as there are CPUs for them, or "
            "a packed copy of the dataset (DATA.packed)"
        )
    if largest == "computing":
        may_halve = dtype == torch.float32 and has_native_bfloat16(device)
        more = (
            "a larger TRAIN.batch_size or more processes would help, where there are GPUs for them"
        )
        if device.type != "cuda":  # processes of one machine only share its CPUs
            more = "a smaller crop or network, or a GPU would help"
        return (
            f"Bound by the {'GPU' if device.type == 'cuda' else 'CPU'}: "
            f"{'TRAIN.precision bf16, ' * may_halve}TRAIN.compile, {more}"
        )
    if largest == "communication":
        return (
            "Bound by communication: a larger TRAIN.batch_size, fewer processes, a faster network "
            "between them, or TRAIN.norm group in place of synchronized batch norm would help"
        )
    return (
        "Bound by neither images nor computing: a larger TRAIN.print_freq and fewer checkpoints "
        "(TRAIN.save_steps, TRAIN.save_minutes) would help"
    )
