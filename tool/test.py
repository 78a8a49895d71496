"""Test a network: `python tool/test.py DATASET EXPERIMENT [KEY VALUE ...]`."""

import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from stripseg import command_line
from stripseg.build import load_engine, load_network
from stripseg.config.errors import DataError
from stripseg.config.load import check_files
from stripseg.config.schema import Config
from stripseg.dataset.build import (
    Classes,
    build_classes,
    build_evaluation_set,
    description_of,
    official_splits,
)
from stripseg.dataset.classification.build import build_evaluation_images, class_names
from stripseg.dataset.loader import evaluation_samples, shares
from stripseg.dataset.results import PredictionFiles, SubmissionWriter
from stripseg.dataset.segmentation import EvaluationSet, Sample
from stripseg.util.distributed import process_group
from stripseg.util.files import atomic_write
from stripseg.util.inference.classification import classification_table
from stripseg.util.inference.evaluator import Evaluator
from stripseg.util.inference.progress_journal import TestJournal
from stripseg.util.inference.sliding_window import SlidingWindow
from stripseg.util.inference.thread_pool import Background
from stripseg.util.logger import progress, run_logger
from stripseg.util.metrics import ConfusionMatrix, Scores, check_prediction, class_table
from stripseg.util.precision import choose_precision
from stripseg.validation import classification_scores

BATCH_SIZE = 8  # a classifier's images in a forward pass, where TEST.batch_size is empty


def main(argv: Sequence[str]) -> int | None:
    """Predict, save, count, report."""
    parser = command_line.argument_parser("test.py", __doc__)
    _, config = command_line.parse_config(parser, argv, classifiers=True)
    check_files(config, "test", official_splits=official_splits(config))
    devices = process_group.choose_devices(config.TEST.test_gpu, key="TEST.test_gpu")
    processes = command_line.process_count(config, devices)
    if command_line.must_launch(config, processes) and not config.TEST.has_prediction:
        return command_line.launch("stripseg.tool.test", argv, config, processes)
    device = command_line.own_device(devices)
    process_group.start(device, timeout_minutes=config.Distributed.timeout_minutes)
    folder = Path(config.TEST.save_folder)
    log = run_logger(folder / "test.log")
    for notice in config.notices:
        log.info(f"note: {notice}")
    if config.classifies:
        return classify(config, device, log, folder)
    classes = build_classes(config)
    dataset = chosen_images(config)
    names = [pair.name for pair in dataset.pairs]
    files = PredictionFiles(folder, names, classes.colors, submission_of(config, folder))
    log.info(f"{len(dataset)} images of {config.TEST.test_list} ({config.TEST.split})")
    if config.TEST.has_prediction:
        scores = score_saved(config, dataset, files)
    else:
        engine = load_engine(config, device)
        log.info(f"weights: {config.TEST.model_path}")
        scores = predict(config, engine, dataset, files)
        log.info(f"predictions: {files.gray} and {files.color}")
    process_group.barrier()
    if files.submission is not None and process_group.is_main():
        archive = files.submission.pack(names)
        log.info(f"for {config.dataset}'s server: {archive}")
    if config.TEST.split != "test" and process_group.is_main():
        log.info("\n" + class_table(scores, classes.names))
        write_metrics(config, scores, classes, len(dataset), folder / "metrics.json")
        log.info(f"figures: {folder / 'metrics.json'}")
    return None


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
    dataset.pairs = pairs
    return dataset


def classify(config: Config, device: torch.device, log: logging.Logger, folder: Path) -> None:
    """Test a classifier on every image of a split once, and report."""
    test = config.TEST
    batch_size = test.batch_size or BATCH_SIZE
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
        together=batch_size,
        workers=test.workers,
        channels_last=test.channels_last,
    )
    if process_group.is_main():
        log.info("\n" + classification_table(scores, names))
        facts = {"data_root": config.DATA.data_root, "batch_size": batch_size}
        figures = scores.as_dict(names)
        write_figures(config, figures, len(dataset), facts, folder / "metrics.json")
        log.info(f"figures: {folder / 'metrics.json'}")


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
    """Predict this process's share, save it, and gather the figures of all.

    Predictions that a stopped test of the same settings has saved are counted from their files.
    """
    test = config.TEST
    together = images_together(config, engine.device)
    confusion = ConfusionMatrix(
        config.DATA.classes, ignore_label=config.TRAIN.ignore_label, device=engine.device
    )
    evaluator = Evaluator(engine, confusion, together=together)
    share = shares(len(dataset), together)[process_group.rank() :: process_group.world_size()]
    workers = process_group.share_of_workers(test.workers)
    if not test.save_predictions:
        samples = evaluation_samples(dataset, [i for group in share for i in group], workers)
        evaluator.run(progress(samples, total=len(dataset), unit="image", what="testing"))
        return evaluator.scores()
    journal = TestJournal(files.gray.parent, what_decides(config, dataset, together))
    done = {i for i, pair in enumerate(dataset.pairs) if pair.name in journal.done}
    missing = [i for group in share if not done.issuperset(group) for i in group]
    finished = [i for group in share if done.issuperset(group) for i in group]
    if finished:
        print(
            f"rank {process_group.rank()}: {len(finished)} images are done, {len(missing)} missing"
        )
    count_saved(evaluation_samples(dataset, finished, workers), files, confusion)

    def keep(group: Sequence[Sample], predictions: Sequence[np.ndarray]) -> None:
        for sample, prediction in zip(group, predictions, strict=True):
            files.save(sample.name, prediction)
        journal.add(sample.name for sample in group)

    samples = evaluation_samples(dataset, missing, workers)
    with Background() as background:
        evaluator.on_predictions = lambda *group: background.submit(keep, *group)
        evaluator.run(progress(samples, total=len(missing), unit="image", what="testing"))
    journal.finish()
    return evaluator.scores()


def images_together(config: Config, device: torch.device) -> int:
    """How many images share forward passes: on GPUs small ones do not fill a batch alone."""
    if config.TEST.images_together is not None:
        return config.TEST.images_together
    return 4 if device.type == "cuda" else 1


def what_decides(config: Config, dataset: EvaluationSet, together: int) -> dict:
    """Everything that a prediction depends on: a test that differs in it is another test."""
    state = os.stat(config.TEST.model_path)
    return {
        "config": config.model_dump(
            mode="json", exclude={"TRAIN": {"workers"}, "Distributed": True}
        ),
        "checkpoint": [state.st_size, state.st_mtime_ns],
        "images": [[pair.name, str(pair.image), str(pair.label)] for pair in dataset.pairs],
        "together": together,
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


def write_metrics(
    config: Config, scores: Scores, classes: Classes, images: int, path: Path
) -> None:
    """`metrics.json`: the figures, and what they were measured on."""
    test = config.TEST
    facts = {
        "list": test.test_list,
        "scales": list(test.scales),
        "flip": test.flip,
        "base_size": test.base_size,
        "crop": [test.test_h, test.test_w],
    }
    write_figures(config, scores.as_dict(classes.names), images, facts, path)


def write_figures(config: Config, figures: dict, images: int, facts: dict, path: Path) -> None:
    """The figures, what was tested and how, as JSON."""
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
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")


if __name__ == "__main__":
    command_line.run_command(main)
