"""Input pipeline: ours against a plain textbook one, pictures a second on one core, as ratios.

    python -m benchmark input_pipeline

The textbook is semseg's published training pipeline, step by step: read, RGB, float32, random scale
of the whole picture, rotation of all of it, blur of all of it, flip, pad and crop, a (C, H, W)
float32 tensor, mean and deviation. Ours yields the uint8 crop; mean and deviation are taken where
the network runs. All are timed in turn, sample by sample, on pictures made here: smooth with some
noise, so that their files are as large as photographs' (52.7 kB, as ADE_val_00000001.jpg).
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from stripseg.dataset.augmentation import Augmentation
from stripseg.dataset.labels import choose_encoding
from stripseg.dataset.lists import Pair
from stripseg.dataset.packed.reader import PackedPairs
from stripseg.dataset.packed.writer import pack
from stripseg.dataset.segmentation import TrainingSet, read_pair
from stripseg.util.images import write_png

from .apart import Apart
from .rows import Row, rate_row

MEAN = [123.675, 116.28, 103.53]
DEVIATION = [58.395, 57.12, 57.375]
IGNORED = 255
CLASSES = 19
PICTURES = 6  # of each kind
SAMPLES = 12  # of a round


@dataclass(frozen=True)
class Kind:
    """Pictures like a dataset's: (height, width), file type, noise in grey values, crop."""

    name: str
    size: tuple[int, int]
    suffix: str
    noise: float
    crop: int
    wanted_files: float
    wanted_packed: float | None = None


KINDS = [
    Kind("ADE20K-sized JPEG", (512, 683), "jpg", 2.0, 480, 4.5),
    Kind("2048x1024 PNG", (1024, 2048), "png", 0.45, 768, 2.0, 12.0),
]


def textbook(image_path: str, label_path: str, crop: int, random: np.random.Generator):
    """(3, crop, crop) float32 and (crop, crop) int64, as semseg's dataset and transforms do it."""
    image = cv2.cvtColor(cv2.imread(image_path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    image = np.float32(image)
    label = cv2.imread(label_path, cv2.IMREAD_GRAYSCALE)
    scale = random.uniform(0.5, 2.0)
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    label = cv2.resize(label, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    if random.random() < 0.5:
        size = label.shape[::-1]
        angle = random.uniform(-10.0, 10.0)
        matrix = cv2.getRotationMatrix2D((size[0] / 2, size[1] / 2), angle, 1)
        border = {"borderMode": cv2.BORDER_CONSTANT}
        image = cv2.warpAffine(
            image, matrix, size, flags=cv2.INTER_LINEAR, borderValue=MEAN, **border
        )
        label = cv2.warpAffine(
            label, matrix, size, flags=cv2.INTER_NEAREST, borderValue=IGNORED, **border
        )
    if random.random() < 0.5:
        image = cv2.GaussianBlur(image, (5, 5), 0)
    if random.random() < 0.5:
        image, label = cv2.flip(image, 1), cv2.flip(label, 1)
    image, label = textbook_crop(image, label, crop, random)
    tensor = torch.from_numpy(image.transpose((2, 0, 1)))
    if not isinstance(tensor, torch.FloatTensor):
        tensor = tensor.float()
    for channel, mean, deviation in zip(tensor, MEAN, DEVIATION, strict=True):
        channel.sub_(mean).div_(deviation)
    return tensor, torch.from_numpy(label).long()


def textbook_crop(
    image: np.ndarray, label: np.ndarray, crop: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    height, width = label.shape
    down, right = max(crop - height, 0), max(crop - width, 0)
    if down > 0 or right > 0:
        edges = (down // 2, down - down // 2, right // 2, right - right // 2)
        image = cv2.copyMakeBorder(image, *edges, cv2.BORDER_CONSTANT, value=MEAN)
        label = cv2.copyMakeBorder(label, *edges, cv2.BORDER_CONSTANT, value=IGNORED)
    height, width = label.shape
    top = int(random.integers(0, height - crop + 1))
    left = int(random.integers(0, width - crop + 1))
    return image[top : top + crop, left : left + crop], label[top : top + crop, left : left + crop]


def write_pictures(kind: Kind, folder: Path) -> list[Pair]:
    """Pairs that compress like photographs and their labels."""
    random = np.random.Generator(np.random.PCG64(0))
    height, width = kind.size
    pairs = []
    for number in range(PICTURES):
        image, label = folder / f"{kind.name} {number}.{kind.suffix}", folder / f"{number}.png"
        coarse = random.integers(0, 256, (height // 40, width // 40, 3), np.uint8)
        picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        noisy = picture + random.normal(0, kind.noise, picture.shape)
        quality = [cv2.IMWRITE_JPEG_QUALITY, 90] if kind.suffix == "jpg" else []
        cv2.imwrite(str(image), noisy.round().clip(0, 255).astype(np.uint8), quality)
        fields = random.normal(size=(height // 64, width // 64, CLASSES)).astype(np.float32)
        fields = [cv2.resize(fields[..., k], (width, height)) for k in range(CLASSES)]
        write_png(label, np.argmax(fields, axis=0).astype(np.uint8))
        pairs.append(Pair(image.name, image, label))
    return pairs


def cpu_seconds(work: Callable[[], object]) -> float:
    """A core's own time, since others may share this machine."""
    began = time.process_time()
    work()
    return time.process_time() - began


def plain_pipeline(
    paths: Sequence[tuple[str, str]], crop: int
) -> tuple[Callable[[int], float], Callable]:
    """The textbook's CPU seconds for a sample, and nothing else to tell."""
    single_threaded()

    def seconds(index: int) -> float:
        random = np.random.Generator(np.random.PCG64(index))
        return cpu_seconds(lambda: textbook(*paths[index % PICTURES], crop, random))

    return seconds, lambda: None


def compare(pipelines: Sequence[Callable[[int], float]], seconds: float) -> list[float]:
    """Pictures of each in a second of CPU time: medians over rounds that take every one in turn."""
    rounds: list[list[float]] = []
    index, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end or len(rounds) < 3:
        spent = [0.0] * len(pipelines)
        for _ in range(SAMPLES):
            for which, pipeline in enumerate(pipelines):
                spent[which] += pipeline(index)
            index += 1
        rounds.append(spent)
    return [SAMPLES / statistics.median(times) for times in zip(*rounds, strict=True)]


def measure_kind(kind: Kind, folder: Path, seconds: float) -> Iterator[Row]:
    """Rows for one kind of pictures: from the files, and from the packed copy."""
    pairs = write_pictures(kind, folder)
    encoding = choose_encoding(pairs, None, classes=CLASSES)
    for _ in pack(pairs, encoding, folder / "packed", "train"):
        pass
    packed = PackedPairs(folder / "packed", "train", pairs, encoding, channels=3, command="")
    augmentation = Augmentation((kind.crop, kind.crop))
    files, copy = (
        TrainingSet(pairs, encoding, augmentation, seed=0, packed=source)
        for source in (None, packed)
    )
    paths = [(str(pair.image), str(pair.label)) for pair in pairs]

    ours = [
        lambda index, data=data: cpu_seconds(lambda: data[index, index % PICTURES])
        for data in (files, copy)
    ]
    ours.append(lambda index: cpu_seconds(lambda: read_pair(pairs[index % PICTURES], encoding, 0)))
    with Apart(plain_pipeline, paths, kind.crop) as theirs:
        for pipeline in (theirs, *ours):
            pipeline(0)
        baseline, *rates, reading = compare([theirs, *ours], seconds)
    yield rate_row(
        f"reading {kind.name} and label alone",
        (1 / reading, 1 / baseline),
        unit="image/s",
        wanted=None,
        agreement="what a pipeline from files cannot exceed",
    )
    wanted = (kind.wanted_files, kind.wanted_packed)
    for source, rate, target in zip(("from files", "packed"), rates, wanted, strict=True):
        yield rate_row(
            f"input pipeline, {kind.name}, crop {kind.crop}, {source}",
            (1 / rate, 1 / baseline),
            unit="image/s",
            wanted=target,
            agreement="the same distribution; packed and files to the bit (tests)",
        )


def measure(device: str = "cpu", *, seconds: float = 15.0) -> Iterator[Row]:
    """One row for each kind of pictures and source, on one core of the host.

    Args:
        seconds: to spend on each kind of pictures.
    """
    threads = torch.get_num_threads(), cv2.getNumThreads()
    single_threaded()
    try:
        for kind in KINDS:
            with tempfile.TemporaryDirectory() as folder:
                yield from measure_kind(kind, Path(folder), seconds)
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])


def single_threaded() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
