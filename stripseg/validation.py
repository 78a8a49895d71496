"""Validation during training, of segmenters and of classifiers."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .build import build_engine
from .config.schema import Config
from .dataset.build import build_classes, build_validation_set
from .dataset.classification.build import build_evaluation_images
from .dataset.classification.images import EvaluationImages
from .dataset.loader import evaluation_samples, shares
from .dataset.segmentation import Sample
from .util.distributed import process_group
from .util.images import as_rgb, colorize, overlay
from .util.inference.classification import ClassificationEvaluator, ClassificationScores
from .util.inference.evaluator import Evaluator
from .util.logger import progress
from .util.metrics import ConfusionMatrix, Scores
from .util.normalization import Normalization
from .util.training.trainer import Validate


def validator(
    config: Config, network: nn.Module, device: torch.device, dtype: torch.dtype, *, board: Any
) -> Validate | None:
    """The validation that `TRAIN` asks for, done as the test does it.

    Args:
        board: a TensorBoard writer for sample predictions, or None.
    """
    if not config.TRAIN.evaluate:
        return None
    if config.classifies:
        return classification_validator(config, network, device, dtype)
    return segmentation_validator(config, network, device, dtype, board=board)


def classification_validator(
    config: Config, network: nn.Module, device: torch.device, dtype: torch.dtype
) -> Validate:
    """Every image of the validation split once."""
    dataset = build_evaluation_images(config, "val")

    def validate(_: int, note: Callable[[str], None]) -> ClassificationScores:
        return classification_scores(
            config,
            network,
            dataset,
            device=device,
            dtype=dtype,
            together=config.TRAIN.batch_size_val,
            workers=config.TRAIN.workers,
            channels_last=config.TRAIN.channels_last,
            note=note,
        )

    return validate


def noted(samples: Iterable[Sample], note: Callable[[str], None] | None) -> Iterator[Sample]:
    """The samples; `note` is given the name of each."""
    for sample in samples:
        if note is not None:
            note(sample.name)
        yield sample


def segmentation_validator(
    config: Config, segmenter: nn.Module, device: torch.device, dtype: torch.dtype, *, board: Any
) -> Validate:
    """The engine and the metric of the test on whole images."""
    train = config.TRAIN
    dataset = build_validation_set(config)
    engine = build_engine(
        config, segmenter, device=device, dtype=dtype, batch_size=train.batch_size_val
    )
    colors = build_classes(config).colors

    def draw(step: int, group: Sequence[Sample], predictions: Sequence[np.ndarray]) -> None:
        for sample, prediction in zip(group, predictions, strict=True):
            if board is None or sample.index >= train.sample_predictions:
                return
            truth = colorize(sample.label, colors)
            picture = np.concatenate(
                [as_rgb(sample.image), truth, overlay(sample.image, prediction, colors)], axis=1
            )
            board.add_image(f"val/{sample.index}", picture, step, dataformats="HWC")

    def validate(step: int, note: Callable[[str], None]) -> Scores:
        workers = process_group.share_of_workers(train.workers)
        share = range(process_group.rank(), len(dataset), process_group.world_size())
        samples = evaluation_samples(dataset, share, workers)
        samples = progress(samples, total=len(share), unit="image", what="validating")
        confusion = ConfusionMatrix(
            config.DATA.classes, ignore_label=train.ignore_label, device=device
        )
        evaluator = Evaluator(engine, confusion, on_predictions=partial(draw, step))
        evaluator.run(noted(samples, note))
        return evaluator.scores()

    return validate


def classification_scores(
    config: Config,
    network: nn.Module,
    dataset: EvaluationImages,
    *,
    device: torch.device,
    dtype: torch.dtype,
    together: int,
    workers: int,
    channels_last: bool,
    note: Callable[[str], None] | None = None,
) -> ClassificationScores:
    """The figures of a classifier over all processes; every process must call it.

    `together` images share a forward pass, the same ones on any number of processes. `note` is
    given the name of each image.
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
        together=together,
    )
    groups = shares(len(dataset), together)[process_group.rank() :: process_group.world_size()]
    share = [index for group in groups for index in group]
    samples = evaluation_samples(dataset, share, process_group.share_of_workers(workers))
    samples = progress(samples, total=len(share), unit="image", what="evaluating")
    evaluator.run(noted(samples, note))
    return evaluator.scores()
