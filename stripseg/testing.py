"""The test of a network: predict, save, count, report."""

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from .config.errors import DataError
from .config.schema import Config, NetworkOptions
from .dataset.build import Classes, build_classes, build_evaluation_set, description_of
from .dataset.classification.build import build_evaluation_images, class_names
from .dataset.loader import evaluation_samples, shares
from .dataset.preparation.check import refuse_bad_data
from .dataset.results import (
    BoundedThreadPool,
    PredictionFiles,
    ProgressJournal,
    SubmissionWriter,
)
from .dataset.segmentation import EvaluationSet, Sample
from .engine import compile_engine, evaluation_dtype, load_engine, load_network
from .network_file import local_path
from .report.intervals import Bootstrap, Interval, tallies, units_of
from .report.page import NAME as REPORT
from .report.page import write_report
from .report.records import (
    ImageRecord,
    TestRecords,
    examine,
    read_records,
    record_from,
    sum_of,
    write_records,
)
from .util.distributed import process_group
from .util.files import atomic_write
from .util.inference.classification import classification_table
from .util.inference.evaluator import Evaluator, ImageResult
from .util.inference.sliding_window import SlidingWindow
from .util.logger import counted, progress
from .util.memory import explained_out_of_memory, testing_remedies
from .util.metrics import ConfusionMatrix, Scores, check_prediction, score_table
from .util.precision import name_of
from .validation import classification_scores

CLASSIFIED_PER_BATCH = 8  # a classifier's images in a forward pass, if TEST.batch_size is empty


class TestResult:
    """Figures of a test; also one by one for each image.

    Attributes:
        mean_iou, mean_accuracy, pixel_accuracy: fractions.
        classes: {name: {"iou": ..., "accuracy": ..., "pixels": ...}}.
        per_image: [{"name": ..., "mean_iou": of the classes in it, "pixel_accuracy": ...}].
        records: everything that is known of each image.
        report: the page that was written, or None.
    """

    __test__ = False  # pytest would take the name for a test

    def __init__(
        self,
        scores: Scores,
        names: Sequence[str],
        records: Sequence[ImageRecord],
        report: Path | None = None,
    ) -> None:
        self.scores = scores
        self.names = list(names)
        self.mean_iou = scores.mean_iou
        self.mean_accuracy = scores.mean_accuracy
        self.pixel_accuracy = scores.pixel_accuracy
        self.classes = {
            entry["name"]: {key: entry[key] for key in ("iou", "accuracy", "pixels")}
            for entry in scores.as_dict(names)["classes"]
        }
        self.records = list(records)
        self.report = report
        self.per_image = [
            {
                "name": record.name,
                "mean_iou": record.mean_iou,
                "pixel_accuracy": record.pixel_accuracy,
            }
            for record in self.records
        ]

    def interval(self, groups: str = "auto") -> Interval:
        """The mean IoU with its interval of 95 %, by resampling the images.

        Args:
            groups: which images are drawn together, as in `stripseg.report.intervals.units_of`.
        """
        return Bootstrap(tallies(self.records, len(self.names), groups)).mean_interval()

    def __repr__(self) -> str:
        return (
            f"TestResult(mean_iou={self.mean_iou:.4f}, mean_accuracy={self.mean_accuracy:.4f}, "
            f"pixel_accuracy={self.pixel_accuracy:.4f}, {len(self.per_image)} images)"
        )


def run_test(
    config: Config,
    device: torch.device,
    log: logging.Logger,
    *,
    against: Path | None = None,
    groups: str = "auto",
) -> None:
    """Run the test that `TEST` describes, in every process; the main one reports.

    Args:
        against: the folder of an earlier test, whose figures the report shows beside these.
        groups: which images the report's intervals draw together.
    Raises:
        OutOfMemoryError: not even one window at a time fits the device, or a classifier's batch.
    """
    images = (config.TEST.batch_size or CLASSIFIED_PER_BATCH) if config.classifies else None
    remedies = testing_remedies(config.TEST, batch_size=images)
    with explained_out_of_memory(remedies, phase="testing"):
        if config.classifies:
            run_classification_test(config, device, log)
        else:
            earlier = None if against is None else read_records(against)
            run_segmentation_test(config, device, log, earlier=earlier, groups=groups)


def run_segmentation_test(
    config: Config,
    device: torch.device,
    log: logging.Logger,
    *,
    engine: SlidingWindow | None = None,
    earlier: TestRecords | None = None,
    groups: str = "auto",
) -> TestResult | None:
    """Predict the images of a list or read saved predictions, then count and report.

    Args:
        engine: what predicts; that of the config's checkpoint if None.
        earlier, groups: for the report, as in `run_test`.
    Returns:
        The figures, in the main process, where the images have labels.
    """
    folder = Path(config.TEST.save_folder)
    classes = build_classes(config)
    dataset = chosen_images(config)
    names = [pair.name for pair in dataset.pairs]
    units_of(names, groups)  # a wrong expression is told before the test, not after it
    submission = submission_of(config, folder)
    files = PredictionFiles(folder, names, classes.colors, submission)
    log.info(f"{counted(len(dataset), 'image')} of {config.TEST.test_list} ({config.TEST.split})")
    if config.TEST.has_prediction:
        facts = facts_of(config, classes)
        outcome = score_saved(config, dataset, files)
    else:
        engine = engine or load_engine(config, device)
        compile_engine(config, engine, len(dataset))
        log.info(f"weights: {config.TEST.model_path}")
        facts = {**facts_of(config, classes), "precision": name_of(engine.dtype)}
        outcome = predict(config, engine, dataset, files, facts["checkpoint"])
        if config.TEST.save_predictions:
            log.info(f"predictions: {files.gray} and {files.color}")
    process_group.barrier()
    if not process_group.is_main():
        return None
    in_parts = config.TEST.index_start or config.TEST.index_step
    whole = config.TEST.save_predictions and not config.TEST.has_prediction and not in_parts
    if whole and (gone := files.replace_earlier()):
        log.warning(f"{gone} prediction(s) of the last test here, of other images, are removed")
    if (left := files.left_over()) and not in_parts:
        log.warning(
            f"{files.gray} has {len(left)} prediction(s) that this test did not write, such as "
            f"{left[0].name}, of images that are not in this list; they are kept"
        )
    if submission is not None:
        log.info(f"for {config.DATA.dataset}'s server: {submission.pack(names)}")
    result = None
    if config.TEST.split != "test":
        result = report_test(config, outcome, facts, dataset, files, log, earlier, groups)
    if outcome.journal is not None:
        outcome.journal.remove()  # what it knew is written
    return result


@dataclass(frozen=True)
class Outcome:
    """What a test has found.

    Args:
        scores: over all processes.
        records: of each image, in list order, in the main process.
        predicted: images predicted in this run, not in a former one that was stopped.
        seconds: that they took.
        journal: what a stopped test is continued from, until everything is written.
    """

    scores: Scores
    records: Sequence[ImageRecord]
    predicted: int = 0
    seconds: float = 0.0
    journal: ProgressJournal | None = None


def report_test(
    config: Config,
    outcome: Outcome,
    facts: dict,
    dataset: EvaluationSet,
    files: PredictionFiles,
    log: logging.Logger,
    earlier: TestRecords | None,
    groups: str,
) -> TestResult:
    """Print the figures and write them: metrics.json, the record of each image, the page."""
    folder, names = Path(config.TEST.save_folder), facts["classes"]
    log.info("\n" + score_table(outcome.scores, names))
    write_metrics(config, outcome.scores, names, len(dataset), facts.get("precision"))
    log.info(f"figures: {folder / 'metrics.json'}")
    kept = TestRecords(facts, outcome.records)
    write_records(folder, kept)
    page = None
    if config.TEST.report:
        speed = (outcome.predicted, outcome.seconds)
        page = write_report(
            config, kept, dataset, files, speed=speed, earlier=earlier, groups=groups
        )
        log.info(f"report: {page}")
    else:
        (folder / REPORT).unlink(missing_ok=True)  # of another test
    return TestResult(outcome.scores, names, outcome.records, page)


def facts_of(config: Config, classes: Classes) -> dict:
    """What the per-image record says of the test."""
    return {
        "dataset": config.DATA.dataset,
        "experiment": config.experiment,
        "classes": list(classes.names),
        "colors": np.asarray(classes.colors).tolist(),
        "split": config.TEST.split,
        "list": config.TEST.test_list,
        "data_root": config.DATA.data_root,
        "checkpoint": None if config.TEST.has_prediction else digest_of(config.TEST.model_path),
        "predictions": config.TEST.has_prediction or config.TEST.save_predictions,
        **protocol_of(config),
    }


def digest_of(path: str) -> str:
    """SHA-256 of a network's file, or of the files of its folder, in hexadecimal digits."""
    digest = hashlib.sha256()
    place = Path(local_path(path)).expanduser()
    parts = (
        [part for part in sorted(place.iterdir()) if part.is_file()] if place.is_dir() else [place]
    )
    for part in parts:
        with open(part, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def chosen_images(config: Config) -> EvaluationSet:
    """The images from `index_start` on, `index_step` of them (0: to the end), as in semseg.

    Raises:
        DataError: there are none, or some of a few that are looked at cannot be used: labels of 0
            and 255 would be scored as one class and ignored pixels.
    """
    test = config.TEST
    dataset = build_evaluation_set(config, test.test_list, split=test.split)
    end = test.index_start + test.index_step if test.index_step else len(dataset)
    pairs = dataset.pairs[test.index_start : end]
    if not pairs:
        raise DataError(
            f"TEST.index_start {test.index_start}: {test.test_list} has only {len(dataset)} images"
        )
    chosen = EvaluationSet(pairs, dataset.encoding, channels=dataset.channels)
    if test.split != "test" and len(chosen) > 1:  # one image may well have one class
        refuse_bad_data(chosen, config, "testing")
    return chosen


def run_classification_test(config: Config, device: torch.device, log: logging.Logger) -> None:
    """Test a classifier on every image of a split once, and report."""
    test = config.TEST
    batch_size = test.batch_size or CLASSIFIED_PER_BATCH
    dataset = build_evaluation_images(config, test.split)
    names = class_names(config, dataset.images)
    log.info(f"{counted(len(dataset), 'image')} of {config.DATA.data_root} ({test.split})")
    network = load_network(config, device)
    log.info(f"weights: {test.model_path}")
    dtype = evaluation_dtype(config, device)
    scores = classification_scores(
        config,
        network,
        dataset,
        device=device,
        dtype=dtype,
        images_per_batch=batch_size,
        workers=test.workers,
        channels_last=test.channels_last,
    )
    if process_group.is_main():
        log.info("\n" + classification_table(scores, names))
        facts = {
            "data_root": config.DATA.data_root,
            "batch_size": batch_size,
            "precision": name_of(dtype),
        }
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
    config: Config,
    engine: SlidingWindow,
    dataset: EvaluationSet,
    files: PredictionFiles,
    checkpoint: str,
) -> Outcome:
    """Predict this process's share and save it.

    What a stopped test of the same settings has finished is not done again.

    Args:
        checkpoint: the digest of the network's file.
    Raises:
        DataError: the journal of another process is missing or damaged.
    """
    started = time.perf_counter()
    group_size = images_per_group(config, engine.device)
    groups = shares(len(dataset), group_size)[process_group.rank() :: process_group.world_size()]
    confusion = ConfusionMatrix(
        config.DATA.classes,
        ignore_label=config.TRAIN.ignore_label,
        device=engine.device,
        check=False,
    )
    deciding = what_decides(config, engine.device, dataset, group_size, checkpoint)
    journal = ProgressJournal(files.gray.parent, deciding)
    known = known_records(journal.done, config.DATA.classes)
    done = {i for i, pair in enumerate(dataset.pairs) if pair.name in known}
    finished = [index for group in groups if done.issuperset(group) for index in group]
    missing = [group for group in groups if not done.issuperset(group)]
    if finished:
        left = sum(map(len, missing))
        print(f"rank {process_group.rank()}: {len(finished)} images are done, {left} missing")
        former = (known[dataset.pairs[index].name] for index in finished)
        confusion.counts += torch.from_numpy(sum_of(former, confusion.classes)).to(engine.device)

    def keep(results: Sequence[ImageResult]) -> None:
        if config.TEST.save_predictions:
            for result in results:
                files.save(result.sample.name, result.prediction)
        journal.add(asdict(image_record(config, result)) for result in results)

    with BoundedThreadPool(threads=max(2, min(8, process_group.cpus() // 2))) as pool:
        evaluator = Evaluator(engine, confusion, group_size, on_results=partial(pool.submit, keep))
        evaluator.run(samples_of(config, dataset, missing, show=True))
    scores = evaluator.scores()
    known = known_records(journal.finish(), config.DATA.classes)
    records = []
    if process_group.is_main():
        lost = [pair.name for pair in dataset.pairs if pair.name not in known]
        if lost:
            raise DataError(
                f"{journal.folder}: has no record of {len(lost)} images, such as {lost[0]}; all "
                "processes must write to one folder: run the same command again to test these"
            )
        records = [known[pair.name] for pair in dataset.pairs]
    seconds = time.perf_counter() - started
    return Outcome(scores, records, len(dataset) - len(done), seconds, journal)


def known_records(entries: Mapping[str, dict], classes: int) -> dict[str, ImageRecord]:
    """{name: record} of a journal's entries; damaged ones are left out, and tested again."""
    known = {}
    for name, entry in entries.items():
        with suppress(DataError):
            known[name] = record_from(entry, classes, "journal")
    return known


def image_record(config: Config, result: ImageResult) -> ImageRecord:
    sample = result.sample
    return examine(
        sample.name,
        sample.label,
        result.prediction,
        result.confidence,
        result.counts,
        ignore_label=config.TRAIN.ignore_label,
        thorough=config.TEST.report,
    )


def evaluate(
    config: Config, engine: SlidingWindow, dataset: EvaluationSet, names: Sequence[str]
) -> TestResult:
    """Test on a dataset in this process, and write nothing."""
    confusion = ConfusionMatrix(
        config.DATA.classes,
        ignore_label=config.TRAIN.ignore_label,
        device=engine.device,
        check=False,
    )
    records: list[ImageRecord] = []
    size = images_per_group(config, engine.device)
    evaluator = Evaluator(
        engine,
        confusion,
        size,
        on_results=lambda results: records.extend(
            image_record(config, result) for result in results
        ),
    )
    evaluator.run(samples_of(config, dataset, shares(len(dataset), size), show=True))
    return TestResult(evaluator.scores(), names, records)


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
    config: Config,
    device: torch.device,
    dataset: EvaluationSet,
    group_size: int,
    checkpoint: str,
) -> dict:
    """Everything that a prediction or its figures depend on.

    A test that differs in it is another test. The number of processes, of loader workers and of
    GPUs is not part of it, nor is what only training reads.
    """
    train = {*NetworkOptions.model_fields, "ignore_label"}
    options = config.model_dump(
        mode="json",
        include={"DATA": True, "TRAIN": train, "TEST": True},
        exclude={"TEST": {"workers", "test_gpu", "model_path"}},
    )
    return {
        "config": options,
        "checkpoint": checkpoint,
        "images": [[pair.name, str(pair.image), str(pair.label)] for pair in dataset.pairs],
        "group_size": group_size,
        "device": device.type,
        "torch": torch.__version__,
    }


def score_saved(config: Config, dataset: EvaluationSet, files: PredictionFiles) -> Outcome:
    """The figures of predictions that an earlier test saved (`TEST.has_prediction`).

    Raises:
        DataError: a prediction is missing, of another size than its image, or of other classes.
    """
    ignore_label = config.TRAIN.ignore_label
    confusion = ConfusionMatrix(config.DATA.classes, ignore_label=ignore_label, check=False)
    records = []
    for sample in evaluation_samples(dataset, range(len(dataset)), config.TEST.workers):
        prediction = files.read(sample.name)
        origin = str(files.gray / files.relative[sample.name])
        if prediction.shape != sample.image.shape[:2]:
            raise DataError(f"{origin}: size differs from its image's {sample.image.shape[:2]}")
        check_prediction(torch.from_numpy(prediction), confusion.classes, origin=origin)
        if sample.label is not None:
            pair = (torch.from_numpy(part) for part in (prediction, sample.label))
            counts = confusion.update(*pair).numpy()
            label = sample.label
            records.append(
                examine(
                    sample.name,
                    label,
                    prediction,
                    None,
                    counts,
                    ignore_label=ignore_label,
                    thorough=config.TEST.report,
                )
            )
    return Outcome(confusion.scores(), records)


def write_metrics(
    config: Config, scores: Scores, names: Sequence[str], images: int, precision: str | None
) -> None:
    """`metrics.json`: the figures, and what they were measured on."""
    facts = {"list": config.TEST.test_list, **protocol_of(config), "precision": precision}
    write_figures(config, scores.as_dict(names), images, facts)


def protocol_of(config: Config) -> dict:
    """How images are tested."""
    test = config.TEST
    return {
        "scales": list(test.scales),
        "flip": test.flip,
        "base_size": test.base_size,
        "crop": [test.test_h, test.test_w],  # the name of former versions' records
    }


def write_figures(config: Config, figures: dict, images: int, facts: dict) -> Path:
    """Write the figures, what was tested and how, to `metrics.json`; return its path."""
    test = config.TEST
    content = {
        **figures,
        "images": images,
        "dataset": config.DATA.dataset,
        "experiment": config.experiment,
        "split": test.split,
        "checkpoint": test.model_path,
        **facts,
        "torch": torch.__version__,
    }
    path = Path(test.save_folder) / "metrics.json"
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")
    return path
