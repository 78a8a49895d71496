"""The test of a network: predict, save, count, report."""

import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from .build import load_engine, load_network
from .config.errors import DataError
from .config.schema import Config, NetworkOptions
from .dataset.build import build_classes, build_evaluation_set, description_of
from .dataset.classification.build import build_evaluation_images, class_names
from .dataset.loader import evaluation_samples, shares
from .dataset.results import (
    BoundedThreadPool,
    PredictionFiles,
    ProgressJournal,
    SubmissionWriter,
)
from .dataset.segmentation import EvaluationSet, Sample
from .util.distributed import process_group
from .util.files import atomic_write
from .util.inference.classification import classification_table
from .util.inference.evaluator import Evaluator
from .util.inference.sliding_window import SlidingWindow
from .util.logger import progress
from .util.metrics import ConfusionMatrix, Scores, check_prediction, score_table, scores_of
from .util.precision import choose_precision
from .validation import classification_scores

CLASSIFIED_PER_BATCH = 8  # a classifier's images in a forward pass, if TEST.batch_size is empty


class TestResult:
    """Figures of a test; also one by one for each image.

    Attributes:
        mean_iou, mean_accuracy, pixel_accuracy: fractions.
        classes: {name: {"iou": ..., "accuracy": ..., "pixels": ...}}.
        per_image: [{"name": ..., "mean_iou": of the classes in it, "pixel_accuracy": ...}].
    """

    __test__ = False  # pytest would take the name for a test

    def __init__(self, scores: Scores, names: Sequence[str], per_image: Sequence[dict]) -> None:
        self.scores = scores
        self.names = list(names)
        self.mean_iou = scores.mean_iou
        self.mean_accuracy = scores.mean_accuracy
        self.pixel_accuracy = scores.pixel_accuracy
        self.classes = {
            entry["name"]: {key: entry[key] for key in ("iou", "accuracy", "pixels")}
            for entry in scores.as_dict(names)["classes"]
        }
        self.per_image = list(per_image)

    def __repr__(self) -> str:
        return (
            f"TestResult(mean_iou={self.mean_iou:.4f}, mean_accuracy={self.mean_accuracy:.4f}, "
            f"pixel_accuracy={self.pixel_accuracy:.4f}, {len(self.per_image)} images)"
        )


def run_test(config: Config, device: torch.device, log: logging.Logger) -> None:
    """Run the test that `TEST` describes, in every process; the main one reports."""
    if config.classifies:
        test_classifier(config, device, log)
    else:
        test_segmenter(config, device, log)


def test_segmenter(config: Config, device: torch.device, log: logging.Logger) -> None:
    """Predict the images of a list or read saved predictions, then count and report."""
    folder = Path(config.TEST.save_folder)
    classes = build_classes(config)
    dataset = chosen_images(config)
    names = [pair.name for pair in dataset.pairs]
    submission = submission_of(config, folder)
    files = PredictionFiles(folder, names, classes.colors, submission)
    log.info(f"{len(dataset)} images of {config.TEST.test_list} ({config.TEST.split})")
    if config.TEST.has_prediction:
        scores = score_saved(config, dataset, files)
    else:
        engine = load_engine(config, device)
        log.info(f"weights: {config.TEST.model_path}")
        scores = predict(config, engine, dataset, files)
        log.info(f"predictions: {files.gray} and {files.color}")
    process_group.barrier()
    if not process_group.is_main():
        return
    if submission is not None:
        log.info(f"for {config.dataset}'s server: {submission.pack(names)}")
    if config.TEST.split != "test":
        log.info("\n" + score_table(scores, classes.names))
        write_metrics(config, scores, classes.names, len(dataset))
        log.info(f"figures: {folder / 'metrics.json'}")


def chosen_images(config: Config) -> EvaluationSet:
    """The images from `index_start` on, `index_step` of them (0: to the end), as in semseg."""
    test = config.TEST
    dataset = build_evaluation_set(config, test.test_list, split=test.split)
    end = test.index_start + test.index_step if test.index_step else len(dataset)
    pairs = dataset.pairs[test.index_start : end]
    if not pairs:
        raise DataError(
            f"TEST.index_start {test.index_start}: {test.test_list} has only {len(dataset)} images"
        )
    return EvaluationSet(pairs, dataset.encoding, channels=dataset.channels)


def test_classifier(config: Config, device: torch.device, log: logging.Logger) -> None:
    """Test a classifier on every image of a split once, and report."""
    test = config.TEST
    batch_size = test.batch_size or CLASSIFIED_PER_BATCH
    dataset = build_evaluation_images(config, test.split)
    names = class_names(config, dataset.images)
    log.info(f"{len(dataset)} images of {config.DATA.data_root} ({test.split})")
    network = load_network(config, device)
    log.info(f"weights: {test.model_path}")
    scores = classification_scores(
        config,
        network,
        dataset,
        device=device,
        dtype=choose_precision(test.precision, device, key="TEST.precision"),
        images_per_batch=batch_size,
        workers=test.workers,
        channels_last=test.channels_last,
    )
    if process_group.is_main():
        log.info("\n" + classification_table(scores, names))
        facts = {"data_root": config.DATA.data_root, "batch_size": batch_size}
        figures = scores.as_dict(names)
        path = write_figures(config, figures, len(dataset), facts)
        log.info(f"figures: {path}")


def submission_of(config: Config, folder: Path) -> SubmissionWriter | None:
    """What writes the server's files: for the test split of a dataset that has a server."""
    description, test = description_of(config), config.TEST
    if test.split != "test" or test.has_prediction or not test.save_predictions:
        return None
    if description is None or description.submission is None:
        return None
    return SubmissionWriter(description, folder / "submission")


def predict(
    config: Config, engine: SlidingWindow, dataset: EvaluationSet, files: PredictionFiles
) -> Scores:
    """Predict this process's share, save it, and gather the figures of all processes.

    Predictions that a stopped test of the same settings has saved are counted from their files.
    """
    group_size = images_per_group(config, engine.device)
    groups = shares(len(dataset), group_size)[process_group.rank() :: process_group.world_size()]
    confusion = ConfusionMatrix(
        config.DATA.classes, ignore_label=config.TRAIN.ignore_label, device=engine.device
    )
    evaluator = Evaluator(engine, confusion, group_size)
    if config.TEST.save_predictions:
        predict_and_save(config, evaluator, dataset, groups, files)
    else:
        evaluator.run(samples_of(config, dataset, groups, show=True))
    return evaluator.scores()


def predict_and_save(
    config: Config,
    evaluator: Evaluator,
    dataset: EvaluationSet,
    groups: Sequence[range],
    files: PredictionFiles,
) -> None:
    """Predict the groups that the journal does not know; count the others from their files."""
    deciding = what_decides(config, evaluator.engine.device, dataset, evaluator.group_size)
    journal = ProgressJournal(files.gray.parent, deciding)
    done = {i for i, pair in enumerate(dataset.pairs) if pair.name in journal.done}
    finished = [group for group in groups if done.issuperset(group)]
    missing = [group for group in groups if not done.issuperset(group)]
    if finished:
        counts = [sum(len(group) for group in part) for part in (finished, missing)]
        print(f"rank {process_group.rank()}: {counts[0]} images are done, {counts[1]} missing")
        count_saved(samples_of(config, dataset, finished), files, evaluator.confusion)

    def save(group: Sequence[Sample], predictions: Sequence[np.ndarray]) -> None:
        for sample, prediction in zip(group, predictions, strict=True):
            files.save(sample.name, prediction)
        journal.add(sample.name for sample in group)

    with BoundedThreadPool() as pool:
        saving = replace(evaluator, on_predictions=partial(pool.submit, save))
        saving.run(samples_of(config, dataset, missing, show=True))
    journal.finish()


def evaluate(
    config: Config, engine: SlidingWindow, dataset: EvaluationSet, names: Sequence[str]
) -> TestResult:
    """Test on a dataset in this process, and write nothing."""
    confusion = ConfusionMatrix(
        config.DATA.classes, ignore_label=config.TRAIN.ignore_label, device=engine.device
    )
    per_image: list[dict] = []

    def record(sample: Sample, counts: np.ndarray) -> None:
        own = scores_of(torch.from_numpy(counts))
        per_image.append(
            {
                "name": sample.name,
                "mean_iou": own.mean_iou_present,
                "pixel_accuracy": own.pixel_accuracy,
            }
        )

    size = images_per_group(config, engine.device)
    evaluator = Evaluator(engine, confusion, size, on_counts=record)
    evaluator.run(samples_of(config, dataset, shares(len(dataset), size), show=True))
    return TestResult(evaluator.scores(), names, per_image)


def samples_of(
    config: Config, dataset: EvaluationSet, groups: Sequence[range], *, show: bool = False
) -> Iterable[Sample]:
    """The images of this process's groups; with `show` a bar counts them."""
    indices = [index for group in groups for index in group]
    workers = process_group.share_of_workers(config.TEST.workers)
    samples = evaluation_samples(dataset, indices, workers)
    return progress(samples, total=len(indices), unit="image", what="testing") if show else samples


def images_per_group(config: Config, device: torch.device) -> int:
    """Images that share forward passes: on GPUs small ones do not fill a batch alone."""
    if config.TEST.images_together is not None:
        return config.TEST.images_together
    return 4 if device.type == "cuda" else 1


def what_decides(
    config: Config, device: torch.device, dataset: EvaluationSet, group_size: int
) -> dict:
    """Everything that a prediction or its figures depend on.

    A test that differs in it is another test. The number of processes, of loader workers and of
    GPUs is not part of it, nor is what only training reads.
    """
    state = os.stat(config.TEST.model_path)
    train = {*NetworkOptions.model_fields, "ignore_label"}
    options = config.model_dump(
        mode="json",
        include={"DATA": True, "TRAIN": train, "TEST": True},
        exclude={"TEST": {"workers", "test_gpu"}},
    )
    return {
        "config": options,
        "checkpoint": [state.st_size, state.st_mtime_ns],
        "images": [[pair.name, str(pair.image), str(pair.label)] for pair in dataset.pairs],
        "group_size": group_size,
        "device": device.type,
        "torch": torch.__version__,
    }


def score_saved(config: Config, dataset: EvaluationSet, files: PredictionFiles) -> Scores:
    """The figures of predictions that an earlier test saved (`TEST.has_prediction`)."""
    confusion = ConfusionMatrix(config.DATA.classes, ignore_label=config.TRAIN.ignore_label)
    samples = evaluation_samples(dataset, range(len(dataset)), config.TEST.workers)
    count_saved(samples, files, confusion)
    return confusion.scores()


def count_saved(
    samples: Iterable[Sample], files: PredictionFiles, confusion: ConfusionMatrix
) -> None:
    """Add saved predictions to the confusion matrix.

    Raises:
        DataError: a prediction is missing, of another size than its image, or of other classes.
    """
    device = confusion.counts.device
    for sample in samples:
        prediction = files.read(sample.name)
        origin = str(files.gray / files.relative[sample.name])
        if prediction.shape != sample.image.shape[:2]:
            raise DataError(f"{origin}: size differs from its image's {sample.image.shape[:2]}")
        check_prediction(torch.from_numpy(prediction), confusion.classes, origin=origin)
        if sample.label is not None:
            pair = (torch.from_numpy(part).to(device) for part in (prediction, sample.label))
            confusion.update(*pair)


def write_metrics(config: Config, scores: Scores, names: Sequence[str], images: int) -> None:
    """`metrics.json`: the figures, and what they were measured on."""
    test = config.TEST
    facts = {
        "list": test.test_list,
        "scales": list(test.scales),
        "flip": test.flip,
        "base_size": test.base_size,
        "crop": [test.test_h, test.test_w],
    }
    write_figures(config, scores.as_dict(names), images, facts)


def write_figures(config: Config, figures: dict, images: int, facts: dict) -> Path:
    """Write the figures, what was tested and how, to `metrics.json`; return its path."""
    test = config.TEST
    content = {
        **figures,
        "images": images,
        "dataset": config.dataset,
        "experiment": config.experiment,
        "split": test.split,
        "checkpoint": test.model_path,
        **facts,
        "precision": test.precision,
        "torch": torch.__version__,
    }
    path = Path(test.save_folder) / "metrics.json"
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")
    return path
