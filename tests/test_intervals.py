"""Intervals and comparisons of tests, against simulation and simple cases done by hand."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from stripseg.config.errors import ConfigError, DataError
from stripseg.report.compare import FigureDraws, compare, difference, seed_error, significant
from stripseg.report.intervals import Bootstrap, Tallies, drawn_weights, tallies, units_of
from stripseg.report.records import ImageRecord, TestRecords

CLASSES = 4
SHARES = np.array([0.5, 0.3, 0.15, 0.05])
SCALE = 20  # how uneven the images are: smaller is more so


def hits_of(rng: np.random.Generator, labelled: np.ndarray, gain: float = 0.0) -> np.ndarray:
    """(U, K): pixels found in each image, whose difficulty is its own."""
    ease = rng.beta(8, 2, (len(labelled), 1))
    return np.floor(labelled * np.clip(ease + gain, 0, 1))


def images(rng: np.random.Generator, count: int) -> np.ndarray:
    """(U, K) labelled pixels; rare classes are not in every image."""
    return np.floor(rng.dirichlet(SCALE * SHARES, count) * 10_000 * (rng.random((count, 1)) + 0.5))


def tallied(labelled: np.ndarray, hits: np.ndarray) -> Tallies:
    """What was missed of a class is predicted as the next one."""
    missed = labelled - hits
    predicted = hits + np.roll(missed, 1, axis=1)
    return Tallies(hits, labelled, predicted, [str(i) for i in range(len(hits))], len(hits))


def true_mean(rng: np.random.Generator) -> float:
    labelled = images(rng, 200_000)
    missed = labelled - (hits := hits_of(rng, labelled))
    hits, labelled, wrong = hits.sum(0), labelled.sum(0), np.roll(missed.sum(0), 1)
    return float((hits / (labelled + wrong)).mean())


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    truth = true_mean(rng)
    covered = 0
    rounds = 600
    for seed in range(rounds):
        labelled = images(rng, 100)
        counted = tallied(labelled, hits_of(rng, labelled))
        interval = Bootstrap(counted, draws=600, seed=seed).mean_interval()
        covered += interval.low <= truth <= interval.high
    assert 0.93 <= covered / rounds <= 0.97


def records_of(labelled: np.ndarray, hits: np.ndarray, prefix: str = "image") -> TestRecords:
    """A test whose images have these pixels; what was missed is predicted as the next class."""
    found = []
    for index, (pixels, right) in enumerate(zip(labelled, hits, strict=True)):
        rows = [[k, k, int(n)] for k, n in enumerate(right) if n]
        missed = (pixels - right).astype(int)
        rows += [[k, (k + 1) % CLASSES, int(n)] for k, n in enumerate(missed) if n]
        found.append(ImageRecord(f"{prefix}{index}.png", (100, 100), rows))
    return TestRecords({"classes": [f"class {k}" for k in range(CLASSES)]}, found)


def two_runs(rng: np.random.Generator, count: int, gain: float) -> tuple[TestRecords, TestRecords]:
    """Two networks on the same images: both find hard what is hard; B finds `gain` more."""
    labelled = images(rng, count)
    ease = rng.beta(8, 2, (count, 1))
    own = [np.clip(ease + rng.normal(0, 0.017, (count, 1)) + extra, 0, 1) for extra in (0, gain)]
    return tuple(records_of(labelled, np.floor(labelled * part)) for part in own)


def test_equal_runs_give_uniform_p_values() -> None:
    rng = np.random.default_rng(1)
    found = [
        compare(*([run] for run in two_runs(rng, 60, 0)), draws=300).mean.p for _ in range(200)
    ]
    below = [np.mean(np.array(found) <= level) for level in (0.05, 0.25, 0.5, 0.75)]
    # two standard errors and a half of 200 rounds
    assert np.allclose(below, [0.05, 0.25, 0.5, 0.75], atol=[0.04, 0.08, 0.09, 0.08])


def test_the_interval_of_a_difference_of_a_rare_class_is_wide_enough() -> None:
    """Most of its pixels are in few of the images: equal networks differ by 0 all the same."""
    rng = np.random.default_rng(3)
    held, rounds = 0, 400
    for seed in range(rounds):
        labelled = np.floor(rng.gamma(0.5, 1000, (30, 1))) + 1
        ease = np.clip(0.6 + rng.normal(0, 0.1, (2, 30, 1)), 0, 1)
        weights = drawn_weights(30, 300, seed)
        sides = [FigureDraws([tallied(labelled, np.floor(labelled * e))], weights) for e in ease]
        columns = (side.column(1) for side in sides)
        interval = difference(*columns, rng, np.zeros(1), units=30).interval
        held += interval.low <= 0 <= interval.high
    assert 0.92 <= held / rounds <= 0.97


def test_a_gain_of_one_point_is_found_in_200_images() -> None:
    rng = np.random.default_rng(2)
    gain = 0.0071  # of every image's ease: one point of mIoU
    found, sizes = 0, []
    for _ in range(20):
        runs = two_runs(rng, 200, gain)
        result = compare([runs[0]], [runs[1]], draws=400)
        sizes.append(result.mean.interval.value)
        found += result.mean.p < 0.05 and result.mean.interval.low > 0
    assert np.mean(sizes) == pytest.approx(0.01, abs=0.001)
    assert found >= 19


def test_a_run_compared_with_itself_differs_by_nothing() -> None:
    run = two_runs(np.random.default_rng(0), 60, 0)[0]
    result = compare([run], [run])
    assert result.notes[0].startswith("each image counts as independent")
    assert (result.mean.interval.low, result.mean.interval.value) == (0, 0)
    assert result.mean.p == 1
    assert "cannot be told apart" in result.sentence("A", "B")
    assert all(change == 0 for _, change in result.changed)


def test_seeds_that_scatter_more_than_they_differ_prove_nothing() -> None:
    rng = np.random.default_rng(3)
    labelled = images(rng, 100)
    ease = rng.beta(8, 2, (100, 1))

    def seeds(mean: float) -> list[TestRecords]:
        shifts = mean + np.array([-0.03, 0.0, 0.03])
        return [records_of(labelled, np.floor(labelled * np.clip(ease + s, 0, 1))) for s in shifts]

    one = compare([seeds(0)[1]], [seeds(0.01)[1]])
    several = compare(seeds(0), seeds(0.01))
    assert one.mean.p < 0.01
    assert several.mean.p > 0.2
    assert several.mean.interval.low < 0 < several.mean.interval.high
    assert len(several.a) == len(several.b) == 3
    clear = compare(seeds(0)[:1], seeds(-0.2))
    assert clear.mean.p < 0.05
    assert "worse" in clear.sentence("A", "B")


def test_tests_that_cannot_be_compared_are_refused() -> None:
    rng = np.random.default_rng(0)
    run = two_runs(rng, 5, 0)[0]
    fewer = TestRecords(run.facts, run.images[:-1])
    with pytest.raises(DataError, match=r"1 are in one alone, such as image4\.png"):
        compare([run], [fewer])
    renamed = TestRecords({"classes": ["a", "b", "c", "d"]}, run.images)
    with pytest.raises(DataError, match="different classes"):
        compare([run], [renamed])
    with pytest.raises(DataError, match="labels of 1 images differ"):
        compare([run], [TestRecords(run.facts, [replace(run.images[0], label=7), *run.images[1:]])])


@pytest.mark.parametrize(
    ("names", "groups", "expected"),
    [
        (["0001TP_01.png", "0001TP_02.png", "Seq_03.png", "Seq_04.png"], "sequence", [0, 0, 1, 1]),
        (["0001TP_1.png", "0001TP_2.png", "Seq_3.png", "Seq_4.png"], "auto", [0, 1, 2, 3]),
        (["a1.png", "a2.png", "b3.png", "b4.png"], "auto", [0, 1, 2, 3]),
        (["a1.png", "a2.png", "b3.png", "b4.png"], "^([a-z])", [0, 0, 1, 1]),
        (["x/a_1.png", "y/a_2.png"], "prefix", [0, 0]),
        (["x/a_1.png", "y/a_2.png"], "folder", [0, 1]),
        (["0001TP_1.png", "0001TP_2.png"], "none", [0, 1]),
    ],
)
def test_images_of_one_sequence_are_one_unit(
    names: Sequence[str], groups: str, expected: list[int]
) -> None:
    units = units_of(names, groups)
    assert [list(dict.fromkeys(units)).index(unit) for unit in units] == expected


def test_a_wrong_expression_is_named() -> None:
    with pytest.raises(ConfigError, match=r"--groups \(: expected auto, none"):
        units_of(["a"], "(")
    with pytest.raises(ConfigError, match="--groups x: matches nothing in the name a"):
        units_of(["a"], "x")
    with pytest.raises(ConfigError, match="matches nothing in the name b"):
        units_of(["a", "b"], "(a)|b")


@pytest.mark.parametrize(
    ("scene", "units"),
    [
        ("city{0}/city{0}_{1:06}.png", 30),  # folders
        ("clip{0}_{1:05}.png", 30),  # prefixes
        ("leftImg8bit/ulm_{0:06}_{1:06}_leftImg8bit.png", 30),  # the name without its last number
        ("2007_{0:03}{1:03}.png", 90),  # a year is no sequence
        ("ADE_val_{0:04}{1:04}.png", 90),
    ],
)
def test_sequences_are_recognised_where_there_are_enough(scene: str, units: int) -> None:
    names = [scene.format(clip, frame) for clip in range(30) for frame in range(3)]
    assert len(set(units_of(names))) == units
    few = [scene.format(clip, frame) for clip in range(3) for frame in range(30)]
    assert len(set(units_of(few))) == 90  # three units would tell nothing


def test_units_sum_the_images_in_them() -> None:
    labelled = np.array([[4, 0, 0, 0], [6, 2, 0, 0], [0, 5, 0, 0]])
    run = records_of(labelled, labelled - 1 * (labelled > 0), "s_")
    one = tallies(run.images, CLASSES, "prefix")
    assert one.hits.tolist() == [[8, 5, 0, 0]]
    assert one.predicted.tolist() == [[8, 7, 2, 0]]
    assert tallies(run.images, CLASSES, "none").labelled.tolist() == labelled.tolist()


def test_a_class_that_never_occurs_counts_as_in_the_figures() -> None:
    """0 in the mean, as in semseg, and nothing of it is drawn."""
    labelled = np.array([[40, 20, 0, 0]] * 60)
    run = records_of(labelled, labelled)
    boot = Bootstrap(tallies(run.images, CLASSES))
    assert boot.mean_interval().value == 0.5
    assert boot.class_intervals()[2:] == [None, None]


def test_one_stray_pixel_of_a_class_that_nobody_labelled_changes_nothing() -> None:
    """It counts 0 in every draw, and on both sides of every exchange."""
    rng = np.random.default_rng(4)
    labelled = np.zeros((100, CLASSES), int)
    labelled[:, :2] = rng.integers(2000, 4000, (100, 2))
    a, b = (records_of(labelled, np.floor(labelled * share)) for share in (0.80, 0.84))
    stray = replace(b.images[3], counts=[*b.images[3].counts, [0, 3, 1]])
    strayed = TestRecords(b.facts, [*b.images[:3], stray, *b.images[4:]])
    clean, dirty = compare([a], [b]).mean, compare([a], [strayed]).mean
    assert dirty.p == clean.p < 0.01
    assert dirty.interval.low == pytest.approx(clean.interval.low, abs=1e-4)
    assert dirty.interval.high == pytest.approx(clean.interval.high, abs=1e-4)
    alone = Bootstrap(tallies(strayed.images, CLASSES)).mean_interval()
    assert alone.high - alone.low < 0.01


def test_a_class_of_one_image_has_no_interval() -> None:
    labelled = np.array([[50, 0, 0, 0]] * 30 + [[50, 20, 0, 0]])
    boot = Bootstrap(tallies(records_of(labelled, labelled - labelled // 5).images, CLASSES))
    first, second, *_ = boot.class_intervals()
    assert first.known
    assert not second.known
    assert second.value > 0
    one = records_of(labelled[:1], labelled[:1])
    assert not Bootstrap(tallies(one.images, CLASSES)).mean_interval().known
    assert "unknown" in str(Bootstrap(tallies(one.images, CLASSES)).mean_interval())


def test_degrees_of_freedom_are_those_of_the_seeds_there_are() -> None:
    error, freedom = seed_error(np.array([0.70, 0.71, 0.72]), np.array([0.73]))
    assert freedom == 2
    assert error == pytest.approx(0.01 * (1 / 3 + 1) ** 0.5)
    error, freedom = seed_error(np.array([0.70, 0.71, 0.72]), np.array([0.70, 0.71, 0.72]))
    assert freedom == pytest.approx(4)
    assert error == pytest.approx(0.01 * (2 / 3) ** 0.5)


def test_three_seeds_against_one_are_no_more_than_chance() -> None:
    rng = np.random.default_rng(6)
    labelled = images(rng, 60)
    ease = rng.beta(8, 2, (60, 1))

    def run() -> TestRecords:
        own = np.clip(ease + rng.normal(0, 0.01), 0, 1)
        return records_of(labelled, np.floor(labelled * own))

    found = [compare([run() for _ in range(3)], [run()], draws=300).mean.p for _ in range(120)]
    assert np.mean(np.array(found) < 0.05) <= 0.09


def test_of_many_classes_few_are_called_different_by_chance() -> None:
    assert significant([0.001, 0.2, 0.04, 0.9]) == [True, False, False, False]
    assert significant([0.01, 0.02, 0.03, 0.04]) == [True] * 4
    assert significant([]) == []
    rng = np.random.default_rng(0)
    assert np.mean([any(significant(rng.random(150).tolist())) for _ in range(200)]) < 0.1


def test_tests_of_other_protocols_and_few_units_are_told() -> None:
    run = two_runs(np.random.default_rng(0), 4, 0)[0]
    facts = {**run.facts, "scales": [1.0], "flip": False, "checkpoint": "a"}
    one, other = TestRecords(facts, run.images), TestRecords({**facts, "flip": True}, run.images)
    result = compare([one], [other])
    assert "the tests differ in flip: False and True" in result.notes
    assert any(note.startswith("4 units are few") for note in result.notes)
    assert result.headline("A", "B").startswith("too few units to decide")
    assert "two of the seeds are tests of one checkpoint" in compare([one, one], [other]).notes
