"""Images with one label each, as training and as test samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from ...config.errors import DataError
from ...config.schema import IGNORED_IMAGE
from ...util.images import IMAGE_SUFFIXES, read_image
from ..segmentation import Sample

Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]


class LabelledImages(Protocol):
    """One split: `labels` (N,) int64, the names of the `classes`, images by index."""

    labels: np.ndarray
    classes: Sequence[str]

    def __len__(self) -> int: ...

    def read(self, index: int) -> np.ndarray:
        """(H, W, C) uint8."""

    def name(self, index: int) -> str: ...


@dataclass(frozen=True)
class FolderImages:
    """`root/CLASS/*.jpg`, the layout of ImageNet; classes are in alphabetical order."""

    files: Sequence[Path]
    labels: np.ndarray
    classes: Sequence[str]
    channels: int = 3

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> np.ndarray:
        """(H, W, C) uint8; DataError for a file that is not an image."""
        return read_image(self.files[index], self.channels)

    def name(self, index: int) -> str:
        return str(self.files[index])


def read_folders(root: Path, *, channels: int = 3) -> FolderImages:
    """All images of the class folders of `root`.

    Raises:
        DataError: there are none, or a class without any.
    """
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    files: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise DataError(f"{folder}: a class without images ({', '.join(IMAGE_SUFFIXES)})")
        files += found
        labels += [label] * len(found)
    if not files:
        raise DataError(f"{root}: holds no folders of images, one for each class")
    names = [folder.name for folder in folders]
    return FolderImages(files, np.array(labels, np.int64), names, channels)


@dataclass(frozen=True)
class PadAndCrop:
    """CIFAR's augmentation (He et al., CVPR 2016, Sec. 4.2): pad, crop anywhere, mirror.

    Args:
        crop: output (height, width).
        padding: black pixels added at each side.
        flip_probability: of mirroring left and right.
    """

    crop: tuple[int, int]
    padding: int = 4
    flip_probability: float = 0.5

    def __call__(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """(H, W, C) uint8 -> (h, w, C), a function of the generator's state alone."""
        edges = (self.padding, self.padding)
        padded = np.pad(image, (edges, edges, (0, 0)))
        limits = [side - crop + 1 for side, crop in zip(padded.shape[:2], self.crop, strict=True)]
        top, left = generator.integers(0, limits)
        cropped = padded[top : top + self.crop[0], left : left + self.crop[1]]
        mirrored = generator.random() < self.flip_probability
        return np.ascontiguousarray(cropped[:, ::-1] if mirrored else cropped)


class ResizedCrop:
    """ImageNet's augmentation (Szegedy et al., "Going Deeper with Convolutions", Sec. 6), by
    torchvision: a rectangle of `area` (least and largest share) and of a ratio from 3:4 to 4:3,
    resized to `crop` (height, width), and mirrored.
    """

    def __init__(
        self,
        crop: tuple[int, int],
        area: tuple[float, float] = (0.08, 1.0),
        flip_probability: float = 0.5,
    ) -> None:
        from torchvision.transforms import v2  # takes a second, which segmentation need not wait

        self.transforms = v2.Compose(
            [
                v2.RandomResizedCrop(crop, scale=area, antialias=True),
                v2.RandomHorizontalFlip(flip_probability),
            ]
        )

    def __call__(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """(H, W, C) uint8 -> (h, w, C), a function of the generator's state alone.

        torchvision draws from torch's generator: it is seeded from ours, and put back after.
        """
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(generator.integers(2**63)))
            pixels = self.transforms(pixels)
        return pixels.permute(1, 2, 0).contiguous().numpy()


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, C) uint8 -> (h, w, C); averaged where it shrinks, bilinear where it grows."""
    shrinks = image.shape[0] * image.shape[1] > size[0] * size[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, size[::-1], interpolation=method).reshape(*size, -1)


@dataclass(frozen=True)
class MiddleCrop:
    """The usual test of ImageNet: the short side to 8/7 of the crop, then the middle."""

    crop: tuple[int, int]

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(H, W, C) uint8 -> (h, w, C)."""
        factor = max(8 / 7 * c / s for c, s in zip(self.crop, image.shape[:2], strict=True))
        size = [max(round(s * factor), c) for c, s in zip(self.crop, image.shape[:2], strict=True)]
        image = resize(image, (size[0], size[1]))
        top, left = ((s - c) // 2 for s, c in zip(size, self.crop, strict=True))
        return np.ascontiguousarray(image[top : top + self.crop[0], left : left + self.crop[1]])


class TrainingImages(Dataset):
    """Augmented images; every random choice is a function of (seed, epoch, index) alone.

    An image that cannot be used is an error, or with `skip_bad` a black one whose label is ignored
    and that carries its `problem`.
    """

    def __init__(
        self,
        images: LabelledImages,
        augment: Augment,
        *,
        seed: int,
        crop: tuple[int, int],
        channels: int = 3,
        skip_bad: bool = False,
    ) -> None:
        self.images = images
        self.augment = augment
        self.seed = seed
        self.blank = np.zeros((*crop, channels), np.uint8)
        self.skip_bad = skip_bad

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> Sample | DataError:
        """The sample of (epoch, index); its label is a single number, (), int64."""
        epoch, index = key
        name = self.images.name(index)
        try:
            image = self.images.read(index)
        except DataError as error:
            ignored = np.array(IGNORED_IMAGE, np.int64)
            return Sample(self.blank, ignored, name, index, str(error)) if self.skip_bad else error
        generator = np.random.Generator(np.random.PCG64([self.seed, epoch, index]))
        return Sample(self.augment(image, generator), self.images.labels[index, ...], name, index)


class EvaluationImages(Dataset):
    """Images as they are tested. Errors come back as values, for the main process to raise."""

    def __init__(
        self, images: LabelledImages, prepare: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> None:
        self.images = images
        self.prepare = prepare

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample | DataError:
        try:
            image = self.images.read(index)
        except DataError as error:
            return error
        image = image if self.prepare is None else self.prepare(image)
        return Sample(image, self.images.labels[index, ...], self.images.name(index), index)
