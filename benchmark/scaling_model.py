"""What limits a training step on 8, 64 and 512 GPUs: a model, its assumptions, and its table.

    python -m benchmark.scaling_model [DATASET EXPERIMENT]

Nothing here is measured. The network's size, its batch norm layers and its multiply-adds are
counted; what the hardware does is assumed, below.
"""

import math
import sys
from dataclasses import dataclass

import torch
from torch import nn

from stripseg.config.load import find_config, load_config
from stripseg.model.build import build_segmenter
from stripseg.tool.summary import summarise_config


@dataclass(frozen=True)
class Hardware:
    """Assumptions. Rates are what a program gets, not what a data sheet says."""

    operations: float = 250e12  # a second and GPU, bf16, convolutions of this size
    gpus_in_machine: int = 8
    bandwidth_inside: float = 300e9  # bytes a second and GPU between the GPUs of a machine
    bandwidth_between: float = 40e9  # bytes a second and GPU between machines, one adapter each
    latency_inside: float = 15e-6  # seconds of a small all-reduce in a machine
    latency_between: float = 12e-6  # more for every doubling of the number of machines
    overlap: float = 0.8  # share of the gradients' all-reduce that the backward pass hides
    images_of_a_core: float = 300.0  # a second, from JPEG files (benchmark input_pipeline)
    cores_of_a_gpu: int = 8


@dataclass(frozen=True)
class Load:
    """What one step asks of a GPU."""

    operations: float
    gradient_bytes: float
    batch_norms: int
    images: int


def load_of(dataset: str, experiment: str, images: int = 2) -> Load:
    """Count a config's network at its crop; forward and backward are three forward passes."""
    config = load_config(find_config(dataset, experiment))
    with torch.device("meta"):
        network = build_segmenter(config)
    multiply_adds = sum(part.multiply_adds for part in summarise_config(config))
    return Load(
        operations=3 * 2 * multiply_adds * images,
        gradient_bytes=4 * sum(p.numel() for p in network.parameters()),
        batch_norms=sum(isinstance(m, nn.BatchNorm2d) for m in network.modules()),
        images=images,
    )


def step(load: Load, gpus: int, hardware: Hardware) -> dict[str, float]:
    """Seconds of each part of a step on `gpus` GPUs, each with the same number of images."""
    machines = math.ceil(gpus / hardware.gpus_in_machine)
    ring = 2 * (gpus - 1) / gpus * load.gradient_bytes  # bytes through every GPU
    bandwidth = hardware.bandwidth_between if machines > 1 else hardware.bandwidth_inside
    latency = hardware.latency_inside + hardware.latency_between * math.log2(machines)
    return {
        "forward and backward": load.operations / hardware.operations,
        "gradients, not hidden": (1 - hardware.overlap) * ring / bandwidth if gpus > 1 else 0.0,
        "Sync-BN": 2 * load.batch_norms * latency if gpus > 1 else 0.0,
        "input": load.images / (hardware.images_of_a_core * hardware.cores_of_a_gpu),
    }


def main() -> None:
    dataset, experiment = sys.argv[1:3] or ("ade20k", "spnet50")
    load, hardware = load_of(dataset, experiment), Hardware()
    print(
        f"{dataset} {experiment}: {load.operations / 1e12:.2f} T operations and "
        f"{load.gradient_bytes / 1e6:.0f} MB of gradients a GPU and step of {load.images} images, "
        f"{load.batch_norms} batch norms; torch {torch.__version__}"
    )
    print(
        "| GPUs | forward and backward | gradients, not hidden | Sync-BN | input (beside) | "
        "efficiency | largest cost |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for gpus in (1, 8, 64, 512):
        parts = step(load, gpus, hardware)
        beside = parts.pop("input")
        total = max(sum(parts.values()), beside)
        costs = {k: v for k, v in parts.items() if k != "forward and backward"}
        worst = max(costs, key=costs.get) if gpus > 1 else ""
        cells = [f"{1e3 * value:.2f} ms" for value in (*parts.values(), beside)]
        share = parts["forward and backward"] / total
        print(f"| {gpus} | {' | '.join(cells)} | {100 * share:.0f} % | {worst} |")


if __name__ == "__main__":
    main()
