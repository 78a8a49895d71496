"""TRAIN.accumulation_steps: a batch in parts is the batch in one pass, as far as norms allow."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from yamls import complaint

from stripseg.config.errors import TrainingError
from stripseg.config.load import load_config
from stripseg.training_run import build_trainer
from stripseg.util.training import parallelize as placement
from stripseg.util.training.losses import SegmentationLoss
from stripseg.util.training.step import part_sizes

CPU = torch.device("cpu")
EXACT = ["TRAIN.norm", "group", "TRAIN.dropout", "0", "TRAIN.evaluate", "False"]


def after_steps(path: str, *overrides: str, steps: int = 2) -> tuple[dict[str, Tensor], Tensor]:
    """Weights and the training confusion after some steps, from this process."""
    config = load_config(path, [*EXACT, *overrides, "TRAIN.tensorboard", "False"])
    trainer = build_trainer(config, CPU)
    confusion, counts = trainer.run_log.confusion, []
    update = confusion.update

    def recorded(prediction: Tensor, label: Tensor) -> None:
        before = confusion.counts.clone()
        update(prediction, label)
        counts.append((confusion.counts - before).sum(1))

    confusion.update = recorded
    trainer.fit(until=steps)
    weights = {key: value.clone() for key, value in trainer.segmenter.state_dict().items()}
    return weights, torch.stack(counts).sum(0)


def assert_close(
    first: dict[str, Tensor], second: dict[str, Tensor], *, rtol: float = 1e-5, atol: float = 1e-5
) -> None:
    for key, value in first.items():
        torch.testing.assert_close(
            torch.as_tensor(second[key]),
            value,
            rtol=rtol,
            atol=atol,
            msg=lambda text, key=key: f"{key}: {text}",
        )


def place(tmp_path: Path, name: str) -> list[str]:
    return ["TRAIN.save_path", str(tmp_path / name)]


@pytest.mark.parametrize(("batch", "parts"), [(3, 2), (5, 3), (2, 2)])
def test_parts_make_the_step_of_one_pass(
    small_config: Path, tmp_path: Path, batch: int, parts: int
) -> None:
    """Parts of unequal size, images of unequal shares of labelled pixels, auxiliary loss."""
    size = ["TRAIN.batch_size", str(batch), "TRAIN.class_weights", "[1,1,2,1,3,1,1,1,1]"]
    whole, pixels = after_steps(str(small_config), *size, *place(tmp_path, "whole"))
    divided = [*size, "TRAIN.accumulation_steps", str(parts), *place(tmp_path, "parts")]
    weights, pixels_of_parts = after_steps(str(small_config), *divided)
    assert_close(whole, weights)
    assert torch.equal(pixels, pixels_of_parts)  # every pixel is counted once


@pytest.mark.parametrize("part", [0, 1])
def test_one_bad_part_skips_the_step(small_config: Path, tmp_path: Path, part: int) -> None:
    config = load_config(small_config, ["TRAIN.accumulation_steps", "2", "TRAIN.norm", "batch"])
    trainer = build_trainer(config, CPU)
    loss, calls = trainer.train_step.loss, []

    def spoilt(*inputs, **context):
        total, main, second = loss(*inputs, **context)
        calls.append(total)
        return total * (float("nan") if len(calls) == part + 1 else 1), main, second

    trainer.train_step.loss = spoilt
    before = {key: value.clone() for key, value in trainer.segmenter.state_dict().items()}
    trainer.fit(until=1)
    for key, value in trainer.segmenter.state_dict().items():
        assert torch.equal(value, before[key]) or "num_batches" in key, key
    trainer.fit(until=2)
    assert not torch.equal(
        trainer.segmenter.state_dict()["head.classifier.weight"], before["head.classifier.weight"]
    )
    log = next((tmp_path / "run/model").glob("*.log")).read_text()
    assert "step 1 skipped: its loss or gradient is not finite" in log


def labelled(rows: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(len(rows), 4, 9, 8, generator=generator)
    label = torch.randint(4, (len(rows), 9, 8), generator=generator)
    for image, count in zip(label, rows, strict=True):
        image[count:] = 255
    return logits.requires_grad_(), label


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 2.0, 1.0, 3.0])])
@pytest.mark.parametrize("rows", [(7, 5, 2), (0, 9, 0), (0, 0, 0)])
@pytest.mark.parametrize("name", ["cross_entropy", "focal", "boundary", "lovasz"])
def test_losses_of_parts_add_up(name: str, rows: tuple[int, ...], weights: Tensor | None) -> None:
    logits, label = labelled(rows)
    loss = SegmentationLoss({name: 1}, class_weights=weights)
    loss(logits, logits, label)[0].backward()
    expected, logits.grad = logits.grad, None
    total = 0
    for one in (slice(0, 2), slice(2, 3)):
        part, _, _ = loss(logits[one], logits[one], label[one], whole=label, parts=2)
        part.backward()
        total += part.detach()
    torch.testing.assert_close(logits.grad, expected)
    torch.testing.assert_close(total, loss(logits, logits, label)[0].detach())


@pytest.mark.parametrize("terms", [{"ohem": 1}, {"dice": 1}], ids=["ohem", "dice"])
def test_ohem_and_dice_look_at_each_part_and_weigh_it_by_its_labels(terms: dict) -> None:
    logits, label = labelled((9, 3, 6))
    together = SegmentationLoss(terms, ohem_threshold=0.01, ohem_min_kept=20)
    alone = SegmentationLoss(terms, ohem_threshold=0.01, ohem_min_kept=10)
    parts = (slice(0, 2), slice(2, 3))
    got = sum(together(logits[i], None, label[i], whole=label, parts=2)[0] for i in parts)
    first, second = (alone(logits[i], None, label[i])[0] for i in parts)
    torch.testing.assert_close(got, first * (12 / 18) + second * (6 / 18))


def test_sizes_of_parts() -> None:
    assert part_sizes(7, 3) == [3, 2, 2]
    assert part_sizes(4, 2) == [2, 2]


@pytest.mark.parametrize(
    ("batch", "processes", "parts", "synchronized", "images"),
    [(8, 2, 2, True, 4), (8, 2, 2, False, 2), (5, 2, 2, True, 2), (5, 2, 2, False, 1)],
)
def test_batch_norm_sees_a_part(batch, processes, parts, synchronized, images) -> None:
    found = placement.images_at_least(batch, processes, parts, synchronized=synchronized)
    assert found == images


def test_more_parts_than_images_is_an_error(write) -> None:
    with pytest.raises(TrainingError, match="accumulation_steps 3 is more than the 2 images"):
        placement.images_at_least(5, 2, 3, synchronized=True)
    words = ["TRAIN.batch_size", "4", "TRAIN.accumulation_steps", "5"]
    assert "more than the 4 images that a process has of TRAIN.batch_size 4" in complaint(
        write(), *words
    )


def test_a_part_of_one_value_is_found_before_training(small_config: Path) -> None:
    size = ["TRAIN.train_h", "8", "TRAIN.train_w", "8", "TRAIN.accumulation_steps", "2"]
    with pytest.raises(TrainingError, match=r"1 image a pass.* lower TRAIN.accumulation_steps"):
        build_trainer(load_config(small_config, size), CPU)
