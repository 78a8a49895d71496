"""What a GPU would refuse, what the host would wait for and how much is launched, without one."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import lru_cache
from pathlib import Path

import batch_norm_kernels  # noqa: F401 (registers them)
import numpy as np
import pytest
import torch
import torch.distributed as dist
from fake_gpu import CUDA, Misplaced, Waited, Watch, fake_gpu, step_of
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmark.steps import config_of
from stripseg.config.load import find_config, load_config
from stripseg.config.schema import Config
from stripseg.dataset.segmentation import Sample
from stripseg.model.build import build_network
from stripseg.model.segmenter import SegmenterOutput
from stripseg.util.checkpoint import arrived, snapshot
from stripseg.util.distributed.sync_batch_norm import SyncBatchNorm
from stripseg.util.images import upload
from stripseg.util.inference.classification import ClassificationEvaluator
from stripseg.util.inference.evaluator import Evaluator
from stripseg.util.inference.sliding_window import InferenceSettings, SlidingWindow
from stripseg.util.memory import HostCopy
from stripseg.util.metrics import ConfusionMatrix
from stripseg.util.precision import PRECISIONS
from stripseg.util.training import parallelize

pytestmark = pytest.mark.usefixtures("one_block_per_stage")  # each launch takes its time here
HEADS = ["spnet", "psp", "psa", "pyconvsegnet", "fcn"]
TOGETHER = ["TRAIN.loss", "ohem", "TRAIN.ohem_min_kept", "500", "TRAIN.average_decay", "0.99"]
OPTIONS = {
    "plain": [],
    "class weights and accumulation": [
        *("TRAIN.class_weights", str([1.0] * 150)),
        *("TRAIN.accumulation_steps", "2"),
    ],
    "checkpointing, adamw and group norm": [
        *("TRAIN.activation_checkpointing", "True"),
        *("TRAIN.optimizer", "adamw"),
        *("TRAIN.norm", "group"),
    ],
}
# what is launched, at most (torch 2.14.1: 1325, 511, 5 and 36); a change that raises a number
# needs a reason
STEP_OF_SPNET50 = 1330
WINDOW_PASS_OF_SPNET50 = 515  # 119 conversions included, which the passes of a group share
POST_PROCESSING_OF_A_WINDOW = 5
SCORES_OF_AN_IMAGE = 36  # of two scales, their tables included
LAYER_OF_SEVERAL_PROCESSES = 10  # batch norm, forward and backward, beside two collectives


@pytest.fixture(autouse=True)
def gpu() -> Iterator[None]:
    with fake_gpu():
        yield


def small(*words: str) -> Config:
    return config_of(*words, size=65, layers=18, width=0.125)


@lru_cache
def built(arch: str, norm: str, checkpointing: bool) -> nn.Module:
    """A small network on the host, for tests that copy it."""
    words = ["TRAIN.arch", arch, "TRAIN.norm", norm]
    return build_network(small(*words, "TRAIN.activation_checkpointing", str(checkpointing)))


def network_of(config: Config) -> nn.Module:
    train = config.TRAIN
    return deepcopy(built(train.arch, train.norm, train.activation_checkpointing))


@pytest.mark.parametrize(
    ("head", "precision"),
    [*((head, "bf16") for head in HEADS), *((HEADS[0], p) for p in PRECISIONS if p != "bf16")],
)
def test_a_training_step_waits_for_nothing(tmp_path: Path, head: str, precision: str) -> None:
    """With OHEM and a moving average of the weights."""
    config = small("TRAIN.arch", head, "TRAIN.precision", precision, *TOGETHER)
    watch = step_of(config, network_of(config), tmp_path)
    assert not watch.blocking
    assert sum(watch.launches.values()) > 300


@pytest.mark.parametrize("option", OPTIONS)
def test_no_option_makes_a_step_wait(tmp_path: Path, option: str) -> None:
    """In any step but the first, which moves the class weights."""
    config = small("TRAIN.precision", "bf16", *OPTIONS[option])
    watch = step_of(config, network_of(config), tmp_path, earlier="class weights" in option)
    assert not watch.blocking


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_a_step_of_a_classifier_waits_for_nothing(tmp_path: Path, mixing: str) -> None:
    words = ["TRAIN.precision", "bf16", f"TRAIN.{mixing}", "0.2", "TRAIN.width", "0.125"]
    config = load_config(find_config("cifar10", "resnet18"), words)
    watch = step_of(config, build_network(config), tmp_path)
    assert not watch.blocking


class Wrapped(nn.Module):
    """In the place of DistributedDataParallel, which asks for a driver."""

    def __init__(self, module: nn.Module, **_: object) -> None:
        super().__init__()
        self.module = module

    def forward(self, image: Tensor) -> SegmenterOutput:
        return self.module(image)


@pytest.fixture
def one_of_two(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """As if there were another process; the devices of the tensors given to collectives."""
    devices: list[torch.device] = []

    def collective(tensor: Tensor, *_: object, **__: object) -> None:
        devices.append(tensor.device)

    for name, value in {"is_initialized": True, "get_world_size": 2, "get_rank": 0}.items():
        monkeypatch.setattr(dist, name, lambda value=value: value)
    for name in ("all_reduce", "all_gather_single", "all_gather_into_tensor"):
        monkeypatch.setattr(dist, name, collective, raising=False)
    monkeypatch.setattr(parallelize, "DistributedDataParallel", Wrapped)
    return devices


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_of_one_of_two_processes_waits_for_nothing(
    tmp_path: Path, one_of_two: list[torch.device], precision: str
) -> None:
    config = small("TRAIN.precision", precision, *TOGETHER)
    network = network_of(config)
    watch = step_of(config, network, tmp_path)
    assert not watch.blocking
    layers = sum(isinstance(module, SyncBatchNorm) for module in network.modules())
    assert layers > 20
    for name in ("batch_norm_stats", "batch_norm_elemt", "batch_norm_backward_elemt"):
        assert watch.launches[name] == layers
    # beside one collective forward and one backward per layer, only those of the loss and of the
    # verdict on the step
    of_layers = 2 * layers
    assert of_layers < one_of_two.count(CUDA) < of_layers + 10


def test_a_layer_of_two_processes_launches_no_more_than_it_did(one_of_two) -> None:
    with FakeTensorMode():
        layer = SyncBatchNorm(8).to(CUDA)
        x, gradient = (torch.zeros(2, 8, 5, 5, device=CUDA) for _ in range(2))
        with Watch() as watch:
            y = layer(x.requires_grad_())
            y.grad_fn.apply(gradient)
    assert sum(watch.launches.values()) <= LAYER_OF_SEVERAL_PROCESSES, watch.launches
    assert len(one_of_two) == 2


def samples(*sizes: tuple[int, int]) -> list[Sample]:
    return [
        Sample(np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8), f"{i}.png", i)
        for i, size in enumerate(sizes)
    ]


def engine_of(network: nn.Module, crop: int = 65, **options) -> SlidingWindow:
    settings = InferenceSettings(
        150, window=(crop, crop), base_size=96, scales=(1.0, 1.5), score_bytes=2**30, **options
    )
    return SlidingWindow(network.eval(), settings, device=CUDA, dtype=torch.bfloat16)


@pytest.mark.parametrize("head", HEADS)
def test_testing_and_validation_wait_for_nothing(head: str) -> None:
    """Images of new sizes, two of them together, with labels."""
    found = samples((72, 96), (60, 70))
    network = deepcopy(built(head, "batch", False))
    with FakeTensorMode(allow_non_fake_inputs=True):
        engine = engine_of(network.to(CUDA))
        confusion = ConfusionMatrix(150, device=CUDA, check=False)
        with Watch() as watch:
            Evaluator(engine, confusion, group_size=2).run(found)
    assert not watch.blocking
    assert watch.launches["convolution"] + watch.launches["conv2d"] > 20


def test_results_come_to_the_host_behind_the_next_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes, confidences and counts, by copies for which nothing waits."""
    monkeypatch.setattr(HostCopy, "array", lambda copy: tuple(copy.copy.shape))
    delivered = []
    with FakeTensorMode(allow_non_fake_inputs=True):
        engine = engine_of(nn.Conv2d(3, 150, 3, padding=1).to(CUDA))
        confusion = ConfusionMatrix(150, device=CUDA, check=False)
        with Watch() as watch:
            Evaluator(engine, confusion, on_results=delivered.extend).run(samples((40, 50)))
    assert not watch.blocking
    (result,) = delivered
    assert (result.prediction, result.confidence, result.counts) == ((40, 50), (40, 50), (150, 150))


def test_forward_passes_of_a_group_share_the_converted_weights() -> None:
    """As many conversions with many passes as with one, but for the pixels'."""
    network, counts = deepcopy(built("fcn", "batch", False)), []
    with FakeTensorMode(allow_non_fake_inputs=True):
        network.to(CUDA)
        for batch_size in (64, 2):
            engine = engine_of(network, batch_size=batch_size)
            with Watch() as watch:
                engine.predict_group([np.zeros((72, 96, 3), np.uint8)])
            counts.append(watch.launches["_to_copy"])
    assert counts[0] > 20
    assert counts[1] - counts[0] < 20


def test_a_checkpoint_copies_from_the_gpu_without_waiting() -> None:
    with FakeTensorMode():
        content = {"step": 3, "optimizer": [{"momentum": torch.zeros(4, 4, device=CUDA)}]}
        with Watch() as watch:
            copied = snapshot(content)
    assert not watch.blocking
    assert watch.launches["copy_"] == 1
    (moment,) = arrived(copied)["optimizer"]
    assert moment["momentum"].device.type == "cpu"


def test_without_memory_to_pin_copies_are_made_all_the_same(monkeypatch) -> None:
    """Both ways, and the host waits for them."""

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(Tensor, "pin_memory", full)
    with FakeTensorMode(allow_non_fake_inputs=True), Watch() as watch:
        x = upload(np.zeros((4, 4), np.uint8), CUDA)
        monkeypatch.setattr(torch, "empty_like", full)
        copy = HostCopy(x).tensor()
    assert (x.device.type, copy.device.type) == ("cuda", "cpu")
    assert sum(watch.blocking.values()) == 2


def test_the_evaluation_of_a_classifier_waits_for_nothing() -> None:
    class Classifier(nn.Conv2d):
        def forward(self, image: Tensor) -> SegmenterOutput:
            return SegmenterOutput(super().forward(image).mean((2, 3)), None)

    images = [Sample(np.zeros((8, 8, 3), np.uint8), 3, f"{i}.png", i) for i in range(4)]
    with FakeTensorMode(allow_non_fake_inputs=True):
        evaluator = ClassificationEvaluator(
            Classifier(3, 10, 3).to(CUDA),
            classes=10,
            prepare=Tensor.float,
            device=CUDA,
            dtype=torch.bfloat16,
            images_per_batch=2,
        )
        with Watch() as watch:
            evaluator.run(images)
    assert not watch.blocking
    assert watch.launches


# ---- how much is launched


def test_a_step_of_spnet_50_launches_no_more_than_it_did(tmp_path: Path) -> None:
    """Backward pass, optimizer and the figures for the log included; width changes no number."""
    config = config_of("TRAIN.precision", "bf16", size=65, layers=50, width=0.125)
    watch = step_of(config, build_network(config), tmp_path, earlier=1)
    assert sum(watch.launches.values()) <= STEP_OF_SPNET50, watch.launches


def test_a_moving_average_launches_a_few_operations(tmp_path: Path) -> None:
    """However many layers count their batches."""
    counts = []
    for words in ([], ["TRAIN.average_decay", "0.99"]):
        config = small("TRAIN.precision", "bf16", *words)
        counts.append(sum(step_of(config, network_of(config), tmp_path).launches.values()))
    assert 0 < counts[1] - counts[0] < 10


@torch.no_grad()
def test_a_window_of_spnet_50_launches_no_more_than_it_did() -> None:
    network = build_network(config_of(size=65, layers=50, width=0.125))
    with FakeTensorMode(allow_non_fake_inputs=True):
        engine = engine_of(network.to(CUDA), batch_size=8)
        pixels = torch.zeros(4, 3, 65, 65, device=CUDA)
        engine._logits(pixels)  # the first pass makes what is kept
        with Watch() as in_pass:
            logits = engine._logits(pixels)
        scores = engine._score_map(np.zeros((72, 96, 3), np.uint8))
        window = scores.windows(0, 72)[0]
        with Watch() as after:
            engine._add(scores, window, logits[0::4])
        with Watch() as reading:
            engine._read(scores, lambda rows: rows.argmax(dim=2))
    launched = [sum(watch.launches.values()) for watch in (in_pass, after, reading)]
    budget = [WINDOW_PASS_OF_SPNET50, POST_PROCESSING_OF_A_WINDOW, SCORES_OF_AN_IMAGE]
    found = [watch.launches for watch in (in_pass, after, reading)]
    assert all(count <= most for count, most in zip(launched, budget, strict=True)), found


# ---- what is wrong is found


def watched(work: Callable[[Tensor], object]) -> Watch:
    """Seen while `work` has a tensor on the GPU."""
    with FakeTensorMode(), Watch() as watch:
        work(torch.zeros(4, 4, device=CUDA))
    return watch


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.tolist(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.masked_select(x > 0),
        lambda x: x.long().flatten().bincount(),
        lambda x: x.index_put_((x > 0,), x.new_zeros(())),
    ],
    ids=["item", "bool", "tolist", "mask", "nonzero", "masked_select", "bincount", "index_put"],
)
def test_a_wait_is_found(work: Callable[[Tensor], object]) -> None:
    with pytest.raises(Waited, match="test_fake_gpu.py:"):
        watched(work)


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x + torch.zeros(4),
        lambda x: torch.cat([x, torch.zeros(1, 4)]),
        lambda x: x[torch.zeros(2, dtype=torch.int64)],
    ],
    ids=["addition", "cat", "index"],
)
def test_a_misplaced_tensor_is_found(work: Callable[[Tensor], object]) -> None:
    with pytest.raises(Misplaced, match="on the host"):
        watched(work)


@pytest.mark.parametrize(
    ("work", "copies"),
    [
        (lambda x: x.cpu(), 1),
        (lambda x: x.to("cpu", non_blocking=True), 1),  # into memory that is not pinned
        (lambda x: torch.zeros(3).to(CUDA), 1),
        (lambda x: torch.zeros(3).to(CUDA, non_blocking=True), 1),
        (lambda x: torch.zeros(3).pin_memory().to(CUDA), 1),
        (lambda x: torch.zeros(3).pin_memory().to(CUDA, non_blocking=True), 0),
        (lambda x: HostCopy(x), 0),
        (lambda x: x * 2.0, 0),
    ],
)
def test_copies_that_the_host_waits_for_are_counted(
    work: Callable[[Tensor], object], copies: int
) -> None:
    assert sum(watched(work).blocking.values()) == copies


def test_more_launches_are_found() -> None:
    def step(x: Tensor, more: int) -> None:
        for _ in range(more):
            x = x.view(2, 8) * 2
        x.flatten().sum()

    # the zeros and the sum are launches, and views are none
    counts = [sum(watched(lambda x, n=n: step(x, n)).launches.values()) for n in (0, 1, 5)]
    assert counts == [2, 3, 7]


def test_the_backward_pass_on_paper_is_pytorchs() -> None:
    """On tensors with values: the gradients are those of PyTorch's engine."""
    torch.manual_seed(0)
    layer, x = nn.Linear(3, 4), torch.randn(5, 3)

    def loss() -> Tensor:
        y = layer(x)
        return (y.relu() * y.sum(1, keepdim=True) + y[:, :1]).square().mean()

    expected = torch.autograd.grad(loss(), list(layer.parameters()))
    loss().backward()
    for parameter, gradient in zip(layer.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
