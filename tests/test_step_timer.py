"""What a run is bound by, told once, and batches on their way to the device; a fake clock."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from processes import run_processes
from reference import fcn

from stripseg.config.load import load_config
from stripseg.dataset.loader import Batch
from stripseg.training_run import build_trainer
from stripseg.util.distributed import process_group, sync_batch_norm
from stripseg.util.distributed.watchdog import COMPUTING, READING
from stripseg.util.training import prefetch
from stripseg.util.training.prefetch import Prefetcher
from stripseg.util.training.step_timer import (
    Shares,
    StepTimer,
    bottleneck,
    communication_seconds,
    step_shares,
)

CPU = torch.device("cpu")


class Time:
    """Stands still but for what is added."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


def run(time: Time, *, loading: float, computing: float, rest: float = 0.0) -> StepTimer:
    timer = StepTimer(CPU, clock=time)

    for index in range(6):
        asked = time()
        time.passes(loading if index > 1 else 100)  # starting workers does not count
        timer.batch_came(asked)
        with timer.computing():
            time.passes(computing)
        time.passes(rest)
    return timer


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ({"loading": 3, "computing": 1}, "75% waiting for images, 25% forward and backward"),
        ({"loading": 3, "computing": 1}, "Bound by input: more TRAIN.workers"),
        (
            {"loading": 1, "computing": 4},
            "Bound by the CPU: TRAIN.precision bf16, TRAIN.compile, a smaller crop",
        ),
        ({"loading": 1, "computing": 1, "rest": 8}, "80% the rest"),
    ],
)
def test_the_largest_share_is_named(times: dict, words: str, monkeypatch) -> None:
    monkeypatch.setattr(
        "stripseg.util.training.step_timer.has_native_bfloat16", lambda device: True
    )
    assert words in run(Time(), **times).conclude(fcn(18))


def test_too_few_steps_give_no_verdict() -> None:
    timer = StepTimer(CPU, clock=Time())
    for _ in range(2):
        timer.batch_came(0.0)
    assert timer.conclude(fcn(18)) is None


def test_a_gpu_that_computes_meanwhile_is_not_kept_waiting() -> None:
    """The host waits 3 of 4 seconds, while the GPU computes for 3.8."""
    shares = step_shares(4.0, waiting=3.0, computing=3.8, communication=0.0)
    assert shares == pytest.approx((0.05, 0.95, 0.0, 0.0))


def test_communication_is_a_part_of_the_passes() -> None:
    shares = step_shares(10.0, waiting=1.0, computing=8.0, communication=6.0)
    assert shares == pytest.approx((0.1, 0.2, 0.6, 0.1))
    assert sum(step_shares(0.0, waiting=0.0, computing=0.0, communication=0.0)) == 1


class Event:
    """In the place of a CUDA event: the passes took two seconds on the GPU."""

    def __init__(self, **_: bool) -> None: ...

    def record(self, stream: torch.device) -> None: ...

    def elapsed_time(self, end: "Event") -> float:
        return 2000.0


def test_a_gpu_is_timed_by_events_of_some_steps(monkeypatch) -> None:
    """The host needs one second a step for queueing; the GPU, when all is done, two."""
    time, waits = Time(), []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: device)
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    timer = StepTimer(torch.device("cuda", 0), clock=time)
    for _ in range(2 + 40):
        timer.batch_came(time())
        with timer.computing():
            time.passes(1)
    assert not waits  # no step was waited for
    assert len(timer.events) == 10
    time.passes(40)  # the GPU catches up
    line = timer.conclude(fcn(18))
    assert waits == [torch.device("cuda", 0)]
    assert "100% forward and backward" in line


def test_advice_knows_the_precision(monkeypatch) -> None:
    monkeypatch.setattr(
        "stripseg.util.training.step_timer.has_native_bfloat16", lambda device: True
    )
    line = bottleneck(Shares(0.1, 0.8, 0.0, 0.1), CPU, torch.bfloat16, processes=1)
    assert "precision" not in line
    assert "communication" not in line  # there is nobody to talk to


def slow_network(images: float) -> tuple[float, str]:
    """Every collective takes a second; process 1 waits for its images, process 0 for process 1."""
    time, network = Time(), sync_batch_norm.convert(fcn(18), device=CPU)
    reduce = process_group.all_reduce_sum

    def slow(tensor):
        time.passes(1)
        return reduce(tensor)

    process_group.all_reduce_sum = slow
    seconds = communication_seconds(network, CPU, clock=time)
    late = process_group.rank() == 1
    timer = run(time, loading=images * late, computing=60 + images * (not late))
    return seconds, timer.conclude(network)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "word"), [(0.0, "Bound by communication"), (400.0, "Bound by input")]
)
def test_processes_agree(images: float, word: str) -> None:
    (seconds, first), (_, second) = run_processes(2, slow_network, images)
    layers = sum(isinstance(m, torch.nn.BatchNorm2d) for m in fcn(18).modules())
    assert seconds == 1 + 2 * layers
    assert first == second
    assert word in first


def test_a_run_tells_it_after_its_first_epoch_alone(small_config: Path, tmp_path: Path) -> None:
    trainer = build_trainer(load_config(small_config, ["TRAIN.evaluate", "False"]), CPU)
    trainer.fit()
    log = next((tmp_path / "run/model").glob("*.log")).read_text()
    assert log.count("where the time goes: ") == 1
    assert log.index("where the time goes: ") < log.index("epoch 2/2")


def test_a_slow_loader_is_named_in_the_log(
    small_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build_trainer(load_config(small_config, ["TRAIN.evaluate", "False"]), CPU)
    time = Time()
    monkeypatch.setattr("stripseg.util.training.trainer.StepTimer", partial(StepTimer, clock=time))
    batches = trainer.loader.batches

    def slow(first: int, last: int) -> Iterator:
        for batch in batches(first, last):
            time.passes(1)
            yield batch

    trainer.loader.batches = slow
    trainer.fit(until=3)
    log = next((tmp_path / "run/model").glob("*.log")).read_text()
    assert "100% waiting for images" in log
    assert "Bound by input" in log


def prefetcher(path: Path, device: torch.device, *words: str) -> tuple[Prefetcher, list]:
    """A prefetcher, and the list of what it tells the watchdog."""
    notes: list = []
    timer = StepTimer(device, clock=Time())
    config = load_config(path, words)
    return Prefetcher(config, device, timer=timer, note=lambda *note: notes.append(note)), notes


def test_batches_are_normalised_timed_and_noted(small_config: Path) -> None:
    pixels = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    loaded = [Batch(pixels, torch.zeros(2, 8, 8), [name]) for name in "abcd"]
    prepare, notes = prefetcher(small_config, CPU, "DATA.mean", "[1,2,3]", "DATA.std", "[2,4,8]")

    def slow() -> Iterator[Batch]:
        for batch in loaded:
            prepare.timer.clock.passes(5)
            yield batch

    seen = []
    for batch in prepare.prepared(slow(), first_step=7):
        notes.append("step")
        seen.append(batch)
    assert [batch.step for batch in seen] == [7, 8, 9, 10]
    assert [batch.names for batch in seen] == [["a"], ["b"], ["c"], ["d"]]
    assert notes[:4] == [(8, READING), (8, COMPUTING), "step", (9, READING)]
    assert notes[-3:] == [(11, COMPUTING), "step", (12, READING)]
    assert prepare.timer.waited == 10  # of the two after those that do not count
    mean, std = torch.tensor([[1.0, 2, 3], [2, 4, 8]]).view(2, 1, 3, 1, 1)
    torch.testing.assert_close(seen[0].image, (pixels.float() - mean) / std)
    assert seen[0].image.is_contiguous(memory_format=torch.channels_last)
    assert seen[0].label is loaded[0].label
    assert seen[0].partner is None


class Recorded:
    """In the place of tensors and streams: writes down what is asked of it."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def to(self, device: torch.device, *, non_blocking: bool) -> "Recorded":
        self.calls.append(f"copy {device} {non_blocking}")
        return Recorded(self.calls)

    def record_stream(self, stream: "Recorded") -> None:
        self.calls.append("record")

    def wait_stream(self, stream: "Recorded") -> None:
        self.calls.append("wait")


def test_copies_go_over_a_stream_of_their_own(small_config: Path, monkeypatch) -> None:
    calls: list[str] = []

    @contextmanager
    def on_stream(stream: Recorded) -> Iterator[None]:
        calls.append("side")
        yield
        calls.append("main")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Recorded(calls))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Recorded(calls))
    monkeypatch.setattr(torch.cuda, "stream", on_stream)
    monkeypatch.setattr(prefetch, "Normalization", lambda *_: lambda image: image)
    words = ["TRAIN.channels_last", "False"]
    prepare, _ = prefetcher(small_config, torch.device("cuda", 0), *words)
    given = Batch(Recorded(calls), Recorded(calls), ["a"])
    image = given.image
    (moved,) = prepare.prepared(iter([given]), first_step=0)
    assert calls == ["side", *["copy cuda:0 True"] * 2, "main", "wait", "record", "record"]
    assert given.image is image is not moved.image
    assert moved.names == ["a"]


@pytest.mark.gpu
def test_batches_come_to_the_gpu_unchanged(small_config: Path) -> None:
    words = ["DATA.mean", "[0,0,0]", "DATA.std", "[1,1,1]"]
    prepare, _ = prefetcher(small_config, torch.device("cuda", 0), *words)
    batches = [
        Batch(torch.full((2, 3, 64, 64), i, dtype=torch.uint8), torch.full((2, 64, 64), i), ["a"])
        for i in range(20)
    ]
    pinned = (batch.pin_memory() for batch in batches)
    for index, batch in enumerate(prepare.prepared(pinned, first_step=0)):
        assert batch.image.device.type == batch.label.device.type == "cuda"
        assert (batch.image == index).all()
        assert (batch.label == index).all()
        assert batches[index].image.device.type == "cpu"
