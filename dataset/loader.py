"""Batches in an order that depends on the seed alone, for any number of processes and workers."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..config.errors import DataError
from ..config.schema import Config
from ..util.distributed import process_group
from ..util.signals import leave_to_parent
from .labels import LabelEncoding
from .lists import Pair
from .segmentation import EvaluationSet, Sample, TrainingSet

SHARED_MEMORY = Path("/dev/shm")


@dataclass
class Batch:
    """`image` (N, C, H, W) uint8 in channels-last memory, `label` (N, H, W) uint8."""

    image: Tensor
    label: Tensor
    names: list[str]
    problems: list[str] = field(default_factory=list)  # of images that were left out

    def pin_memory(self) -> "Batch":
        return replace(self, image=self.image.pin_memory(), label=self.label.pin_memory())


class TrainingLoader:
    """This process's share of every global batch, from any step on.

    The images of an epoch are permuted by (seed, epoch); global batch b takes the next
    `batch_size` of them and process r every `world_size`-th of those from the r-th on. Images that
    do not fill a batch are left out of this epoch.

    Raises:
        DataError: fewer images than the batch, or a batch smaller than the number of processes.
    """

    def __init__(
        self,
        dataset: TrainingSet,
        *,
        batch_size: int,
        seed: int,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> None:
        if len(dataset) < batch_size:
            raise DataError(
                f"the training list has {len(dataset)} images, fewer than one batch of "
                f"{batch_size}; lower TRAIN.batch_size"
            )
        if batch_size < world_size:
            raise DataError(
                f"TRAIN.batch_size {batch_size} is smaller than the {world_size} processes that "
                "share it; raise it, or use fewer GPUs (TRAIN.train_gpu, Distributed.processes)"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.workers = workers
        self.rank = rank
        self.world_size = world_size
        self.pin_memory = pin_memory
        self.steps_per_epoch = len(dataset) // batch_size

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """The batches of global steps first_step .. last_step - 1.

        Raises:
            DataError: a file cannot be used.
        """
        loader = DataLoader(
            self.dataset,
            batch_sampler=_Steps(self, first_step, last_step),
            num_workers=self.workers,
            collate_fn=collate,
            pin_memory=self.pin_memory,
            worker_init_fn=start_worker,
        )
        for batch in loader:
            if isinstance(batch, DataError):
                raise batch
            yield batch

    def keys(self, step: int, order: np.ndarray | None = None) -> list[tuple[int, int]]:
        """(epoch, index) of this process's samples of one step."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = self.order(epoch) if order is None else order
        start = position * self.batch_size
        share = order[start : start + self.batch_size][self.rank :: self.world_size]
        return [(epoch, int(index)) for index in share]

    def order(self, epoch: int) -> np.ndarray:
        """The permutation of an epoch."""
        return np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(
            len(self.dataset)
        )


def build_training_loader(
    config: Config, dataset: TrainingSet, *, pin_memory: bool = False
) -> TrainingLoader:
    """The training batches of this process.

    Raises:
        DataError: too few images, or too little shared memory for the workers' batches.
    """
    train, world_size = config.TRAIN, process_group.world_size()
    workers = process_group.share_of_workers(train.workers)
    pixels = train.train_h * train.train_w * (config.DATA.in_channels + 1)
    check_shared_memory(workers * -(-train.batch_size // world_size) * pixels)
    return TrainingLoader(
        dataset,
        batch_size=train.batch_size,
        seed=train.manual_seed or 0,
        workers=workers,
        rank=process_group.rank(),
        world_size=world_size,
        pin_memory=pin_memory,
    )


def check_shared_memory(needed: int) -> None:
    """Check that the batches of the loader's workers, one each, fit into shared memory.

    A worker that finds no room there is killed, and the run would wait for it.

    Args:
        needed: bytes.
    Raises:
        DataError: they do not.
    """
    if not SHARED_MEMORY.is_dir() or needed == 0:
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < needed:
        raise DataError(
            f"{SHARED_MEMORY} has {free >> 20} MiB free and the loader's batches need "
            f"{needed >> 20} MiB: enlarge it (docker run --shm-size 8g, or --ipc host), lower "
            "TRAIN.workers, or set TRAIN.workers 0"
        )


class _Steps:
    """The keys of a range of steps, one list a step; each epoch's permutation is drawn once."""

    def __init__(self, loader: TrainingLoader, first: int, last: int) -> None:
        self.loader, self.first, self.last = loader, first, last

    def __len__(self) -> int:
        return max(self.last - self.first, 0)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, None
        for step in range(self.first, self.last):
            if step // self.loader.steps_per_epoch != epoch:
                epoch = step // self.loader.steps_per_epoch
                order = self.loader.order(epoch)
            yield self.loader.keys(step, order)


def collate(samples: Sequence[Sample | DataError]) -> Batch | DataError:
    """Stack samples of one size; the first error among them replaces the batch."""
    for sample in samples:
        if isinstance(sample, DataError):
            return sample
    image = torch.from_numpy(np.stack([sample.image for sample in samples])).permute(0, 3, 1, 2)
    label = torch.from_numpy(np.stack([sample.label for sample in samples]))
    problems = [sample.problem for sample in samples if sample.problem is not None]
    return Batch(image, label, [sample.name for sample in samples], problems)


def start_worker(index: int) -> None:
    """Prepare a loader's worker process; there is at most one per CPU."""
    leave_to_parent(index)
    cv2.setNumThreads(0)


def untouched(item: object) -> object:
    """Collation that passes single items as they are."""
    return item


def shares(count: int, together: int = 1) -> list[range]:
    """The images 0 .. count - 1 in groups of `together`, in list order.

    Process r of n takes every n-th group from the r-th on. What shares a forward pass thus does
    not depend on the number of processes, and neither do the figures.
    """
    return [range(i, min(i + together, count)) for i in range(0, count, together)]


def evaluation_samples(
    dataset: EvaluationSet, indices: Sequence[int], workers: int = 0
) -> Iterator[Sample]:
    """The images of these indices, in this order.

    Raises:
        DataError: a file cannot be used.
    """
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=indices,
        num_workers=workers,
        collate_fn=untouched,
        worker_init_fn=start_worker,
    )
    for sample in loader:
        if isinstance(sample, DataError):
            raise sample
        yield sample


class _LabelPixels(Dataset):
    """Pixels of each class in one label file."""

    def __init__(self, files: Sequence, encoding: LabelEncoding) -> None:
        self.files, self.encoding = files, encoding

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> np.ndarray | DataError:
        try:
            label = self.encoding.read(self.files[index])
        except DataError as error:
            return error
        return np.bincount(label.ravel(), minlength=256)[: self.encoding.classes]


def class_pixels(
    pairs: Sequence[Pair], encoding: LabelEncoding, *, workers: int = 0, most: int = 2000
) -> Tensor:
    """(K,) pixels of each class over at most `most` label files, evenly spaced in the list."""
    chosen = np.unique(np.linspace(0, len(pairs) - 1, min(most, len(pairs))).round().astype(int))
    counter = _LabelPixels([pairs[index].label for index in chosen], encoding)
    total = torch.zeros(encoding.classes, dtype=torch.int64)
    loader = DataLoader(
        counter,
        batch_size=None,
        num_workers=workers,
        collate_fn=untouched,
        worker_init_fn=start_worker,
    )
    for counts in loader:
        if isinstance(counts, DataError):
            raise counts
        total += torch.as_tensor(counts)
    return total
