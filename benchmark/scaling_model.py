"""What a GPU and several of them would take for a step and for a picture: a model, its assumptions.

    python -m benchmark.scaling_model [DATASET EXPERIMENT]

Nothing here is measured. What is launched on a GPU, the bytes and the multiply-adds of each launch
are counted on tensors without values (tests/fake_gpu.py); what the hardware does is assumed, below.
"""

import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from stripseg.config.load import find_config, load_config
from stripseg.config.schema import Config
from stripseg.model.build import build_network
from stripseg.util.inference.sliding_window import InferenceSettings, SlidingWindow
from tests.fake_gpu import CUDA, Watch, fake_gpu, forget_tables, step_of

from .testing import SIX_SCALES, SIZE


@dataclass(frozen=True)
class Card:
    """Assumptions about a GPU. Rates are what a program gets, not what a data sheet says."""

    name: str
    bandwidth: float  # bytes a second to and from its memory
    operations: float = 350e12  # a second, of convolutions in bf16 (half of what products reach)
    operations_fp32: float = 45e12  # a second
    launch: float = 1.5e-6  # seconds of a kernel that has nothing to do
    host: float = 7e-6  # seconds of the host to launch one


H100, H200 = Card("H100", 2.7e12), Card("H200", 3.9e12)


@dataclass(frozen=True)
class Network:
    """Assumptions about what connects the GPUs, and about the hosts."""

    gpus_in_machine: int = 8
    bandwidth_inside: float = 300e9  # bytes a second and GPU between the GPUs of a machine
    bandwidth_between: float = 40e9  # bytes a second and GPU between machines, one adapter each
    latency_inside: float = 15e-6  # seconds of a small all-reduce in a machine
    latency_between: float = 12e-6  # more for every doubling of the number of machines
    overlap: float = 0.8  # share of the gradients' all-reduce that the backward pass hides
    images_of_a_core: float = 300.0  # a second, from JPEG files (benchmark input_pipeline)
    cores_of_a_gpu: int = 8


class Roofline(Watch):
    """Counts the bytes and operations of every launch.

    Attributes:
        counts: (bytes, operations, whether in half precision) of each launch. Every operand counts
            once, as if no cache kept it; convolutions and products have operations, others none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[tuple[int, float, bool]] = []

    def note_launch(self, name: str, args: tuple, tensors: list[Tensor]) -> None:
        super().note_launch(name, args, tensors)
        bytes_ = sum(t.numel() * t.element_size() for t in tensors if t.device.type == "cuda")
        half = any(t.element_size() == 2 for t in tensors)
        self.counts.append((bytes_, operations_of(name, args, tensors), half))

    def seconds(self, card: Card) -> float:
        """Of the GPU, if each launch is bound by memory or by arithmetic."""
        return sum(
            card.launch
            + max(
                bytes_ / card.bandwidth,
                operations / (card.operations if half else card.operations_fp32),
            )
            for bytes_, operations, half in self.counts
        )

    def gigabytes(self) -> float:
        return sum(bytes_ for bytes_, *_ in self.counts) / 1e9

    def teraoperations(self) -> float:
        return sum(operations for _, operations, _ in self.counts) / 1e12


def operations_of(name: str, args: tuple, tensors: list[Tensor]) -> float:
    """Multiplications and additions of a convolution or product; 0 of anything else."""
    if name in ("convolution", "conv2d"):
        return 2 * tensors[-1].numel() * math.prod(args[1].shape[1:])
    if name == "convolution_backward":
        gradient, _, weight = args[:3]
        return 2 * gradient.numel() * math.prod(weight.shape[1:]) * sum(args[-1][:2])
    if name in ("mm", "bmm", "addmm"):
        return 2 * tensors[-1].numel() * args[-2].shape[-1]
    return 0


def training_step(config: Config, images: int) -> Roofline:
    """A step of the trainer after the first one, on one GPU."""
    with fake_gpu(), tempfile.TemporaryDirectory() as folder:
        network = build_network(config)
        return step_of(config, network, Path(folder), images=images, earlier=1, watch=Roofline)


def test_of_pictures(config: Config, scales: tuple[float, ...]) -> tuple[Roofline, Roofline]:
    """Four pictures of one size, predicted together: everything, and the forward passes alone."""
    settings = InferenceSettings(
        config.DATA.classes,
        window=(config.TEST.test_h, config.TEST.test_w),
        base_size=config.TEST.base_size,
        scales=scales,
        score_bytes=2**40,
    )
    with fake_gpu(), FakeTensorMode(allow_non_fake_inputs=True):
        forget_tables()
        network = build_network(config).eval().to(CUDA, memory_format=torch.channels_last)
        engine = SlidingWindow(network, settings, device=CUDA, dtype=torch.bfloat16)
        inside = Roofline()
        logits = engine.logits

        def noted(pixels: Tensor) -> Tensor:
            with Roofline() as passed:
                out = logits(pixels)
            inside.counts += passed.counts
            inside.launches += passed.launches
            return out

        images = [np.zeros((*SIZE, 3), np.uint8)] * 4
        engine.predict_group(images)  # makes what is kept
        engine.logits = noted
        with Roofline() as whole:
            engine.predict_group(images)
    return whole, inside


def row(what: str, found: Roofline, share: float = 1) -> str:
    """A line of the table: `share` of what was found, such as a quarter."""
    cells = [
        f"{share * sum(found.launches.values()):,.0f}",
        f"{share * found.gigabytes():.1f}",
        f"{share * found.teraoperations():.1f}",
        *(f"{1e3 * share * found.seconds(card):.1f}" for card in (H100, H200)),
    ]
    return f"| {what} | {' | '.join(cells)} |"


@dataclass(frozen=True)
class Load:
    """What one step asks of a GPU and its host."""

    step: Roofline
    gradient_bytes: float
    batch_norms: int
    images: int


def load_of(config: Config, images: int = 2) -> Load:
    with torch.device("meta"):
        network = build_network(config)
    return Load(
        step=training_step(config, images),
        gradient_bytes=4 * sum(p.numel() for p in network.parameters()),
        batch_norms=sum(isinstance(m, nn.BatchNorm2d) for m in network.modules()),
        images=images,
    )


def parts_of_a_step(load: Load, gpus: int, card: Card, network: Network) -> dict[str, float]:
    """Seconds of each part of a step on `gpus` GPUs, each with the same number of images."""
    machines = math.ceil(gpus / network.gpus_in_machine)
    ring = 2 * (gpus - 1) / gpus * load.gradient_bytes  # bytes through every GPU
    bandwidth = network.bandwidth_between if machines > 1 else network.bandwidth_inside
    latency = network.latency_inside + network.latency_between * math.log2(machines)
    launches = sum(load.step.launches.values())
    return {
        "one GPU alone": max(load.step.seconds(card), launches * card.host),
        "gradients, not hidden": (1 - network.overlap) * ring / bandwidth if gpus > 1 else 0.0,
        "Sync-BN": 2 * load.batch_norms * latency if gpus > 1 else 0.0,
        "input": load.images / (network.images_of_a_core * network.cores_of_a_gpu),
    }


def main() -> None:
    dataset, experiment = sys.argv[1:3] or ("ade20k", "spnet50")
    config = load_config(find_config(dataset, experiment), ["TRAIN.precision", "bf16"])
    images = config.TRAIN.batch_size
    print(f"{dataset} {experiment}, torch {torch.__version__}")
    print("| | launches | GB | T operations | ms on an H100 | on an H200 |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(row(f"training step, batch {images}", training_step(config, images)))
    for scales in (SIX_SCALES, (1.0,)):
        name = f"{len(scales)} scale{'s' * (len(scales) > 1)} + flip"
        whole, inside = test_of_pictures(config, scales)
        print(row(f"a picture of {SIZE[0]}x{SIZE[1]}, {name}", whole, 1 / 4))
        print(row("its forward passes alone", inside, 1 / 4))
    load, network = load_of(config), Network()
    launches = sum(load.step.launches.values())
    print(
        f"\n{load.images} images a GPU: {1e3 * load.step.seconds(H100):.1f} ms of an H100, "
        f"{1e3 * launches * H100.host:.1f} ms of the host for {launches} launches; "
        f"{load.gradient_bytes / 1e6:.0f} MB of gradients, {load.batch_norms} batch norms"
    )
    print(
        "| GPUs | one GPU alone | gradients, not hidden | Sync-BN | input (beside) | efficiency | "
        "largest cost |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for gpus in (1, 8, 64, 512):
        parts = parts_of_a_step(load, gpus, H100, network)
        beside = parts.pop("input")
        total = max(sum(parts.values()), beside)
        costs = {k: v for k, v in parts.items() if k != "one GPU alone"}
        worst = max(costs, key=costs.get) if gpus > 1 else ""
        cells = [f"{1e3 * value:.2f} ms" for value in (*parts.values(), beside)]
        share = parts["one GPU alone"] / total
        print(f"| {gpus} | {' | '.join(cells)} | {100 * share:.0f} % | {worst} |")


if __name__ == "__main__":
    main()
