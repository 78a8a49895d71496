"""Image and label pairs as training and as test samples."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch.utils.data import Dataset

from ..config.errors import DataError
from ..util.images import read_image
from .augmentation import Augmentation, paste
from .labels import LabelEncoding
from .lists import Pair
from .packed.reader import PackedPairs


@dataclass
class Sample:
    """`image` (H, W, C) uint8, usually RGB; `label` (H, W) uint8 train ids, or None for none."""

    image: np.ndarray
    label: np.ndarray | None
    name: str
    index: int
    problem: str | None = None  # why it is blank


def read_pair(
    pair: Pair, encoding: LabelEncoding | None, index: int, *, channels: int = 3
) -> Sample:
    """Read and check one pair.

    Raises:
        DataError: a file is damaged, or the two differ in size.
    """
    image = read_image(pair.image, channels)
    if pair.label is None or encoding is None:
        return Sample(image, None, pair.name, index)
    label = encoding.read(pair.label)
    if label.shape != image.shape[:2]:
        raise DataError(
            f"{pair.image} is {image.shape[1]}x{image.shape[0]} and its label {pair.label} "
            f"{label.shape[1]}x{label.shape[0]} pixels (width x height); they must agree"
        )
    return Sample(image, label, pair.name, index)


def read_packed(packed: PackedPairs, pair: Pair, index: int) -> Sample:
    """The sample that `read_pair` gives, from the packed copy; its arrays are read-only.

    Raises:
        DataError: the pair could not be packed.
    """
    image, label = packed.read(index)
    return Sample(image, label, pair.name, index)


class EvaluationSet(Dataset):
    """Whole images, as stored. Errors come back as values, for the main process to raise."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        encoding: LabelEncoding | None,
        *,
        channels: int = 3,
        packed: PackedPairs | None = None,
    ) -> None:
        self.pairs = pairs
        self.encoding = encoding
        self.channels = channels
        self.packed = packed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample | DataError:
        try:
            if self.packed is None:
                return read_pair(self.pairs[index], self.encoding, index, channels=self.channels)
            sample = read_packed(self.packed, self.pairs[index], index)
        except DataError as error:
            return error
        return replace(sample, image=sample.image.copy(), label=sample.label.copy())


class TrainingSet(Dataset):
    """Augmented crops; every random choice is a function of (seed, epoch, index) alone.

    A pair that cannot be used is an error, or with `skip_bad` a crop that is ignored as a whole and
    carries its `problem`: the others of the batch are what they would have been. With a `packed`
    copy of the pairs the crops are the same, read from there. Into the share `copy_paste` of them
    classes of another pair's crop are pasted, unless that pair cannot be used.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        encoding: LabelEncoding,
        augmentation: Augmentation,
        *,
        seed: int,
        channels: int = 3,
        skip_bad: bool = False,
        copy_paste: float = 0.0,
        packed: PackedPairs | None = None,
    ) -> None:
        self.pairs = pairs
        self.encoding = encoding
        self.copy_paste = copy_paste
        self.skip_bad = skip_bad
        self.augmentation = augmentation
        self.packed = packed
        self.seed = seed
        self.channels = channels

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> Sample | DataError:
        """The sample of (epoch, index)."""
        epoch, index = key
        generator = np.random.Generator(np.random.PCG64([self.seed, epoch, index]))
        try:
            crop = self._crop(index, generator)
        except DataError as error:
            return self.blank(index, str(error)) if self.skip_bad else error
        if self.copy_paste and generator.random() < self.copy_paste:
            try:
                other = self._crop(int(generator.integers(len(self.pairs))), generator)
            except DataError as error:
                if not self.skip_bad:
                    return error
            else:
                ignored = self.augmentation.ignore_label
                crop = paste(crop, other, generator, ignore_label=ignored)
        return Sample(*crop, self.pairs[index].name, index)

    def _crop(self, index: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """An augmented crop, image and label.

        Raises:
            DataError: the pair cannot be used.
        """
        pair = self.pairs[index]
        if self.packed is None:
            sample = read_pair(pair, self.encoding, index, channels=self.channels)
        else:
            sample = read_packed(self.packed, pair, index)
        return self.augmentation(sample.image, sample.label, generator)

    def blank(self, index: int, problem: str) -> Sample:
        """The colour of padding, ignored everywhere."""
        size = self.augmentation.crop
        fill = np.array(self.augmentation.fill[: self.channels]).round().astype(np.uint8)
        image = np.broadcast_to(fill, (*size, self.channels)).copy()
        label = np.full(size, self.augmentation.ignore_label, np.uint8)
        return Sample(image, label, self.pairs[index].name, index, problem)
