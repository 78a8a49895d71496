"""Validation during training, of segmenters and of classifiers."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .config.schema import Config
from .dataset.build import Classes, build_classes, build_validation_set
from .dataset.classification.build import build_evaluation_images
from .dataset.classification.images import EvaluationImages
from .dataset.loader import evaluation_samples, shares
from .dataset.preparation.check import refuse_bad_data
from .dataset.segmentation import EvaluationSet, Sample
from .engine import build_engine, compile_engine
from .util.distributed import process_group
from .util.images import Normalization, as_rgb, colorize, overlay, shrunk
from .util.inference.classification import ClassificationEvaluator, ClassificationScores
from .util.inference.evaluator import Evaluator
from .util.inference.sliding_window import SlidingWindow
from .util.logger import progress
from .util.metrics import ConfusionMatrix, Scores
from .util.training.run_log import RunLog
from .util.training.trainer import Validate

SAMPLE_SIDE = 480  # pixels: of the pictures that trackers get


def validation_data(config: Config) -> EvaluationSet | EvaluationImages | None:
    """The images that `TRAIN` validates on; None where it does not validate.

    A few are read: a label that cannot be used would end the run after its first epoch.

    Raises:
        DataError: they do not exist or cannot be used.
    """
    if not config.TRAIN.evaluate:
        return None
    if config.classifies:
        return build_evaluation_images(config, "val")
    dataset = build_validation_set(config)
    refuse_bad_data(dataset, config, "validation")
    return dataset


def validator(
    config: Config,
    data: EvaluationSet | EvaluationImages | None,
    network: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    *,
    run_log: RunLog,
) -> Validate | None:
    """The validation on `data`, done as the test does it; None without data.

    Args:
        run_log: whose trackers get the IoU of every class and sample predictions.
    """
    if data is None:
        return None
    if isinstance(data, EvaluationImages):
        return ClassificationValidator(config, data, network, device, dtype)
    return SegmentationValidator(config, data, network, device, dtype, run_log=run_log)


def validation_protocol(config: Config) -> dict[str, Any]:
    """How the figures of a validation during training are measured."""
    test = config.TEST
    if config.classifies:
        return {"window": [test.test_h, test.test_w]}
    return {
        "scales": list(test.scales),
        "flip": test.flip,
        "base_size": test.base_size,
        "window": [test.test_h, test.test_w],
    }


class SegmentationValidator:
    """The engine and the metric of the test on the whole images of `DATA.val_list`."""

    def __init__(
        self,
        config: Config,
        dataset: EvaluationSet,
        network: nn.Module,
        device: torch.device,
        dtype: torch.dtype,
        *,
        run_log: RunLog,
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.network = network
        self.device = device
        self.dtype = dtype
        self.run_log = run_log

    @cached_property
    def classes(self) -> Classes:
        """Names and colours, for the trackers."""
        return build_classes(self.config)

    @cached_property
    def engine(self) -> SlidingWindow:
        """Built for the first validation, when it shows how much memory training leaves."""
        engine = build_engine(
            self.config,
            self.network,
            device=self.device,
            dtype=self.dtype,
            batch_size=self.config.TRAIN.batch_size_val,
        )
        compile_engine(self.config, engine, len(self.dataset))
        return engine

    def __call__(self, step: int, note: Callable[[str], None]) -> Scores:
        """Validate after step `step`; `note` is given the name of each image."""
        train = self.config.TRAIN
        workers = process_group.share_of_workers(train.workers)
        share = range(process_group.rank(), len(self.dataset), process_group.world_size())
        samples = evaluation_samples(self.dataset, share, workers)
        samples = progress(samples, total=len(share), unit="image", what="validating")
        confusion = ConfusionMatrix(
            self.config.DATA.classes,
            ignore_label=train.ignore_label,
            device=self.device,
            check=False,
        )
        evaluator = Evaluator(
            self.engine, confusion, on_predictions=partial(self._draw, step), wanted=self._drawn
        )
        evaluator.run(noted(samples, note))
        scores = evaluator.scores()
        if self.run_log.is_watched:
            iou = dict(zip(self.classes.names, scores.iou, strict=True))
            self.run_log.draw("val_iou", iou, step)
        return scores

    def _drawn(self, sample: Sample) -> bool:
        return self.run_log.is_watched and sample.index < self.config.TRAIN.sample_predictions

    def _draw(self, step: int, group: Sequence[Sample], predictions: Sequence[np.ndarray]) -> None:
        """Image, truth and prediction side by side, of the first images of the list."""
        for sample, prediction in zip(group, predictions, strict=True):
            truth = colorize(sample.label, self.classes.colors)
            shown = overlay(sample.image, prediction, self.classes.colors)
            pictures = (as_rgb(sample.image), truth, shown)
            parts = [shrunk(picture, SAMPLE_SIDE) for picture in pictures]
            self.run_log.show({f"val/{sample.index}": np.concatenate(parts, axis=1)}, step)


class ClassificationValidator:
    """Every image of the validation split once."""

    def __init__(
        self,
        config: Config,
        dataset: EvaluationImages,
        network: nn.Module,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.network = network
        self.device = device
        self.dtype = dtype

    def __call__(self, step: int, note: Callable[[str], None]) -> ClassificationScores:
        """Validate after step `step`; `note` is given the name of each image."""
        train = self.config.TRAIN
        return classification_scores(
            self.config,
            self.network,
            self.dataset,
            device=self.device,
            dtype=self.dtype,
            images_per_batch=train.batch_size_val,
            workers=train.workers,
            channels_last=train.channels_last,
            note=note,
        )


def noted(samples: Iterable[Sample], note: Callable[[str], None] | None) -> Iterator[Sample]:
    """The samples; `note` is given the name of each."""
    for sample in samples:
        if note is not None:
            note(sample.name)
        yield sample


def classification_scores(
    config: Config,
    network: nn.Module,
    dataset: EvaluationImages,
    *,
    device: torch.device,
    dtype: torch.dtype,
    images_per_batch: int,
    workers: int,
    channels_last: bool,
    note: Callable[[str], None] | None = None,
) -> ClassificationScores:
    """The figures of a classifier over all processes; every process must call it.

    `images_per_batch` images share a forward pass, the same ones on any number of processes. `note`
    is given the name of each image.
    """
    normalize = Normalization(config.DATA.mean, config.DATA.std, device)
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def prepare(pixels: Tensor) -> Tensor:
        return normalize(pixels).contiguous(memory_format=layout)

    evaluator = ClassificationEvaluator(
        network,
        classes=config.DATA.classes,
        prepare=prepare,
        device=device,
        dtype=dtype,
        images_per_batch=images_per_batch,
    )
    groups = shares(len(dataset), images_per_batch)
    groups = groups[process_group.rank() :: process_group.world_size()]
    share = [index for group in groups for index in group]
    samples = evaluation_samples(dataset, share, process_group.share_of_workers(workers))
    samples = progress(samples, total=len(share), unit="image", what="evaluating")
    evaluator.run(noted(samples, note))
    return evaluator.scores()
