"""Batches depend on seed, epoch and index: not on workers, processes or where a run stopped."""

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from stripseg.config.errors import DataError
from stripseg.config.load import load_config
from stripseg.dataset import loader as loading
from stripseg.dataset.augmentation import Augmentation
from stripseg.dataset.labels import choose_encoding
from stripseg.dataset.lists import Pair, read_list
from stripseg.dataset.loader import Batch, TrainingLoader, class_pixels, evaluation_samples, shares
from stripseg.dataset.segmentation import EvaluationSet, TrainingSet


@pytest.fixture(scope="module")
def pairs(small_shapes: Path) -> list[Pair]:
    return read_list(small_shapes / "train.txt", small_shapes, split="train")


def encoding(pairs: list[Pair]):
    return choose_encoding(pairs, None, classes=9)


RARE = Augmentation(crop=(32, 40), rare_class_probability=0.5, color_jitter=(0.4, 0.4, 0.4))


def loader(pairs: list[Pair], *, rare: bool = False, **options) -> TrainingLoader:
    augmentation = RARE if rare else Augmentation(crop=(32, 40))
    paste = 0.5 if rare else 0.0
    dataset = TrainingSet(pairs, encoding(pairs), augmentation, seed=3, copy_paste=paste)
    return TrainingLoader(dataset, **{"batch_size": 4, "seed": 3, **options})


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for one, two in zip(first, second, strict=True):
        assert one.names == two.names
        assert torch.equal(one.image, two.image)
        assert torch.equal(one.label, two.label)


def test_a_batch_has_images_as_stored_and_labels_beside_them(pairs) -> None:
    batch = next(loader(pairs).batches(0, 1))
    assert batch.image.shape == (4, 3, 32, 40)
    assert batch.label.shape == (4, 32, 40)
    assert batch.image.dtype == batch.label.dtype == torch.uint8
    assert batch.image.is_contiguous(memory_format=torch.channels_last)


def test_a_batch_of_each_worker_must_fit_into_shared_memory(
    pairs, small_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of images and labels of a process's share, here all of it."""
    needed: list[int] = []
    monkeypatch.setattr(loading, "check_shared_memory", needed.append)
    config = load_config(small_config, ["TRAIN.workers", "2", "TRAIN.batch_size", "3"])
    loading.build_training_loader(config, loader(pairs).dataset)
    assert needed == [2 * 3 * 48 * 40 * (3 + 1)]


def test_every_image_comes_at_most_once_in_an_epoch_in_another_order_each_time(pairs) -> None:
    wanted = loader(pairs, batch_size=2)
    assert wanted.steps_per_epoch == 3
    orders = []
    for epoch in range(4):
        keys = [key for step in range(3) for key in wanted.keys(3 * epoch + step)]
        assert {e for e, _ in keys} == {epoch}
        assert sorted(index for _, index in keys) == list(range(6))
        orders.append(tuple(index for _, index in keys))
    assert len(set(orders)) > 1


@pytest.mark.parametrize("rare", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(pairs, workers: int, rare: bool) -> None:
    alone, several = loader(pairs, rare=rare), loader(pairs, rare=rare, workers=workers)
    assert_same(list(alone.batches(0, 3)), list(several.batches(0, 3)))


@pytest.mark.slow
def test_a_worker_may_start_as_on_windows_and_macos(pairs) -> None:
    """Spawned: all that it needs is pickled. tests/test_reliability.py forks them from a server."""
    before = multiprocessing.get_start_method()
    alone, spawned = loader(pairs), loader(pairs, workers=1)
    multiprocessing.set_start_method("spawn", force=True)
    try:
        assert_same(list(alone.batches(0, 2)), list(spawned.batches(0, 2)))
    finally:
        multiprocessing.set_start_method(before, force=True)


@pytest.mark.parametrize("rare", [False, True])
@pytest.mark.parametrize("processes", [2, 3])
def test_the_shares_of_the_processes_are_the_global_batch(pairs, processes, rare: bool) -> None:
    """With four images on three processes, one of them has two."""
    whole = list(loader(pairs, rare=rare).batches(0, 3))
    shares = [
        list(loader(pairs, rare=rare, rank=rank, world_size=processes).batches(0, 3))
        for rank in range(processes)
    ]
    for step, batch in enumerate(whole):
        for rank, own in enumerate(shares):
            assert own[step].names == batch.names[rank::processes]
            assert torch.equal(own[step].image, batch.image[rank::processes])


def test_starting_at_a_step_gives_the_remaining_batches(pairs) -> None:
    everything = list(loader(pairs, batch_size=2).batches(0, 7))
    assert_same(everything[4:], list(loader(pairs, batch_size=2).batches(4, 7)))


def test_another_seed_gives_other_crops(pairs) -> None:
    dataset = TrainingSet(pairs, encoding(pairs), Augmentation(crop=(32, 40)), seed=4)
    first = dataset[0, 0]
    assert np.array_equal(first.image, dataset[0, 0].image)
    assert not np.array_equal(first.image, dataset[1, 0].image)
    other = TrainingSet(pairs, encoding(pairs), Augmentation(crop=(32, 40)), seed=5)
    assert not np.array_equal(first.image, other[0, 0].image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 7}, "has 6 images, fewer than one batch of 7"),
        ({"batch_size": 2, "world_size": 3}, "TRAIN.batch_size 2 is smaller than the 3 processes"),
    ],
)
def test_impossible_batches_are_refused(pairs, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        loader(pairs, **options)


@pytest.mark.parametrize(
    ("processes", "workers", "sizes"),
    [*((processes, 0, (1, 2, 4)) for processes in (1, 2, 4)), (2, 2, (2,))],
)
def test_every_image_is_evaluated_once(
    pairs, processes: int, workers: int, sizes: tuple[int, ...]
) -> None:
    """Six images on four processes: PyTorch's distributed sampler would repeat two."""
    dataset = EvaluationSet(pairs, encoding(pairs))
    for together in sizes:
        groups = shares(len(dataset), together)
        by_process = [
            [i for group in groups[rank::processes] for i in group] for rank in range(processes)
        ]
        seen = [[s.index for s in evaluation_samples(dataset, s_, workers)] for s_ in by_process]
        assert sorted(index for share in seen for index in share) == list(range(6))
        assert seen == by_process


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_a_worker_arrives_as_it_is(pairs, tmp_path: Path, workers: int) -> None:
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(pairs[0].image.read_bytes()[:500])
    broken = [Pair(p.name, damaged if i == 4 else p.image, p.label) for i, p in enumerate(pairs)]
    with pytest.raises(DataError, match=r"damaged\.jpg: image file is truncated"):
        list(loader(broken, batch_size=6, workers=workers).batches(0, 1))
    dataset = EvaluationSet(broken, encoding(pairs))
    with pytest.raises(DataError, match=r"damaged\.jpg"):
        list(evaluation_samples(dataset, range(6), workers))


def test_an_image_and_a_label_of_different_size_are_named(pairs, tmp_path: Path) -> None:
    from stripseg.util.images import write_png

    write_png(tmp_path / "small.png", np.zeros((5, 7), np.uint8))
    item = EvaluationSet([Pair("a", pairs[0].image, tmp_path / "small.png")], encoding(pairs))[0]
    assert isinstance(item, DataError)
    assert "is 88x72 and its label" in str(item)
    assert "small.png 7x5 pixels" in str(item)


@pytest.mark.parametrize("workers", [0, 2])
def test_pixels_of_classes_are_counted(pairs, workers: int) -> None:
    table = encoding(pairs)
    expected = sum(np.bincount(table.read(p.label).ravel(), minlength=256)[:9] for p in pairs)
    assert class_pixels(pairs, table, workers=workers).tolist() == expected.tolist()


def test_workers_that_validate_leave_a_signal_to_their_parent(pairs: list[Pair]) -> None:
    """Schedulers send it to the whole group; the validation goes on to its end."""
    dataset = EvaluationSet(pairs, encoding(pairs))
    samples = evaluation_samples(dataset, range(len(dataset)), workers=2)
    names = [next(samples).name, next(samples).name]  # both workers are at work
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGTERM)
    names += [sample.name for sample in samples]
    assert names == [pair.name for pair in dataset.pairs]


def test_a_pair_that_cannot_be_pasted_stops_the_run_or_is_left_out(pairs, tmp_path: Path) -> None:
    """Every crop of the good pair is then what it would be without pasting."""
    (tmp_path / "bad.png").write_bytes(b"no picture")
    both = [pairs[0], Pair("bad", tmp_path / "bad.png", pairs[0].label)]
    plain = TrainingSet(both, encoding(pairs), RARE, seed=3)
    options = {"seed": 3, "copy_paste": 1.0}
    stopping = TrainingSet(both, encoding(pairs), RARE, **options)
    skipping = TrainingSet(both, encoding(pairs), RARE, skip_bad=True, **options)
    errors = 0
    for epoch in range(20):
        if isinstance(stopping[epoch, 0], DataError):
            errors += 1
            assert np.array_equal(skipping[epoch, 0].image, plain[epoch, 0].image)
            assert skipping[epoch, 0].problem is None
    assert 3 < errors < 17  # half of the partners are the bad one
