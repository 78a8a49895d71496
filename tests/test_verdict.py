"""What a run is bound by, told once. Times are of a clock of the tests' own, not real ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from processes import run_processes
from reference import fcn

from stripseg.config.load import load_config
from stripseg.dataset.loader import Batch
from stripseg.training_run import build_trainer
from stripseg.util.distributed import process_group, sync_batch_norm
from stripseg.util.training.prefetch import to_device
from stripseg.util.training.settings import TrainerSettings
from stripseg.util.training.step_timer import (
    Shares,
    StepClock,
    communication_seconds,
    step_shares,
    verdict,
)

CPU = torch.device("cpu")
SETTINGS = TrainerSettings(classes=3, epochs=1, base_rate=0.1)


class Time:
    """Stands still but for what is added."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


def run(time: Time, *, loading: float, computing: float, rest: float = 0.0) -> StepClock:
    clock = StepClock(CPU, clock=time)

    def batches() -> Iterator[int]:
        for index in range(6):
            time.passes(loading if index > 1 else 100)  # starting workers does not count
            yield index

    for _ in clock.waits(batches()):
        with clock.computing():
            time.passes(computing)
        time.passes(rest)
    return clock


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ({"loading": 3, "computing": 1}, "75% waiting for images, 25% forward and backward"),
        ({"loading": 3, "computing": 1}, "Bound by input: more TRAIN.workers"),
        (
            {"loading": 1, "computing": 4},
            "Bound by the CPU: TRAIN.precision bf16, TRAIN.compile, a larger",
        ),
        ({"loading": 1, "computing": 1, "rest": 8}, "80% the rest"),
    ],
)
def test_the_largest_share_is_named(times: dict, words: str, monkeypatch) -> None:
    monkeypatch.setattr(
        "stripseg.util.training.step_timer.has_native_bfloat16", lambda device: True
    )
    assert words in run(Time(), **times).conclude(fcn(18), SETTINGS)


def test_too_few_steps_give_no_verdict() -> None:
    clock = StepClock(CPU, clock=Time())
    list(clock.waits(iter(range(2))))
    assert clock.conclude(fcn(18), SETTINGS) is None


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

    def record(self) -> None: ...

    def elapsed_time(self, end: "Event") -> float:
        return 2000.0


def test_a_gpu_is_timed_by_events_of_some_steps(monkeypatch) -> None:
    """The host needs one second a step for queueing; the GPU, when all is done, two."""
    time, waits = Time(), []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    clock = StepClock(torch.device("cuda", 0), clock=time)
    for _ in clock.waits(iter(range(2 + 40))):
        with clock.computing():
            time.passes(1)
    assert not waits  # no step was waited for
    assert len(clock.events) == 10
    time.passes(40)  # the GPU catches up
    line = clock.conclude(fcn(18), SETTINGS)
    assert waits == [torch.device("cuda", 0)]
    assert "100% forward and backward" in line


def test_advice_knows_the_precision(monkeypatch) -> None:
    monkeypatch.setattr(
        "stripseg.util.training.step_timer.has_native_bfloat16", lambda device: True
    )
    half = TrainerSettings(classes=3, epochs=1, base_rate=0.1, dtype=torch.bfloat16)
    line = verdict(Shares(0.1, 0.8, 0.0, 0.1), half, processes=1)
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
    clock = run(time, loading=images * late, computing=60 + images * (not late))
    return seconds, clock.conclude(network, SETTINGS)


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


def test_a_slow_loader_is_named_in_the_log(small_config: Path, tmp_path: Path) -> None:
    trainer = build_trainer(load_config(small_config, ["TRAIN.evaluate", "False"]), CPU)
    time = trainer.clock.clock = Time()
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


def test_batches_pass_through_on_the_cpu() -> None:
    batches = [object(), object()]
    assert list(to_device(iter(batches), CPU)) == batches


class Recorded:
    """In the place of a tensor and of streams: writes down what is asked of it."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def to(self, device: torch.device, *, non_blocking: bool) -> "Recorded":
        self.calls.append(f"copy {device} {non_blocking}")
        return Recorded(self.calls)

    def record_stream(self, stream: "Recorded") -> None:
        self.calls.append("record")

    def wait_stream(self, stream: "Recorded") -> None:
        self.calls.append("wait")


def test_copies_go_over_a_stream_of_their_own(monkeypatch) -> None:
    calls: list[str] = []

    @contextmanager
    def on_stream(stream: Recorded) -> Iterator[None]:
        calls.append("side")
        yield
        calls.append("main")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Recorded(calls))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Recorded(calls))
    monkeypatch.setattr(torch.cuda, "stream", on_stream)
    given = Batch(Recorded(calls), Recorded(calls), ["a"])
    image = given.image
    (moved,) = to_device(iter([given]), torch.device("cuda", 0))
    assert calls == ["side", *["copy cuda:0 True"] * 2, "main", "wait", "record", "record"]
    assert given.image is image is not moved.image
    assert moved.names == ["a"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_come_to_the_gpu_unchanged() -> None:
    device = torch.device("cuda")
    batches = [
        Batch(torch.full((2, 3, 64, 64), i, dtype=torch.uint8), torch.full((2, 64, 64), i), ["a"])
        for i in range(20)
    ]
    for index, batch in enumerate(to_device((b.pin_memory() for b in batches), device)):
        assert batch.image.device.type == batch.label.device.type == "cuda"
        assert (batch.image == index).all()
        assert (batch.label == index).all()
        assert batches[index].image.device.type == "cpu"
