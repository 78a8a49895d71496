"""Mixup, CutMix and the average of the weights, against their formulas and through a resume."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F

from stripseg.config.load import load_config
from stripseg.dataset.generated.shapes10 import write_shapes10
from stripseg.model.build import build_network
from stripseg.model.weights import load_weights
from stripseg.training_run import build_trainer
from stripseg.util.training.ema import EMA
from stripseg.util.training.losses import SegmentationLoss
from stripseg.util.training.mixup import mix
from stripseg.util.training.prefetch import PreparedBatch
from stripseg.util.training.step import TrainingStep

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parent.parent


def batch(count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (count, 3, 16, 20), dtype=torch.uint8, generator=generator)
    return image, torch.randint(0, 5, (count,), generator=generator)


def test_mixup_is_the_weighted_mean() -> None:
    image, label = batch()
    shares = set()
    for seed in range(20):
        mixed = mix(image, label, mixup=0.4, cutmix=0, generator=np.random.default_rng(seed))
        expected = mixed.share * image.float() + (1 - mixed.share) * image.flip(0).float()
        torch.testing.assert_close(mixed.image, expected, rtol=1e-5, atol=1e-3)
        assert torch.equal(mixed.partner, label.flip(0))
        shares.add(mixed.share)
    assert len(shares) == 20
    assert 0 <= min(shares) < 0.2 < 0.8 < max(shares) <= 1


def test_cutmix_counts_the_pixels_that_it_took() -> None:
    image, label = batch()
    for seed in range(40):
        mixed = mix(image, label, mixup=0, cutmix=1, generator=np.random.default_rng(seed))
        assert mixed.image.dtype == torch.uint8
        own, other = (mixed.image == image).all(1), (mixed.image == image.flip(0)).all(1)
        assert (own | other).all()
        for index in range(len(image)):  # two random pixels are equal once in 2^24
            assert own[index].float().mean() == pytest.approx(mixed.share, abs=1e-6)


class Drawn:
    """In the place of a generator: what it is told."""

    def __init__(self, share: float, centre: tuple[int, int]) -> None:
        self.share, self.centre = share, centre

    def beta(self, first: float, second: float) -> float:
        assert first == second == 0.7
        return self.share

    def integers(self, low: int, high: list[int]) -> tuple[int, int]:
        assert (low, high) == (0, [16, 20])
        return self.centre


@pytest.mark.parametrize(
    ("share", "centre", "rows", "columns"),
    [
        (0.75, (8, 10), (4, 12), (5, 15)),  # half of each side
        (0.75, (0, 19), (0, 4), (14, 20)),  # cut off at the border
        (1.0, (8, 10), (8, 8), (10, 10)),
        (0.0, (8, 10), (0, 16), (0, 20)),
    ],
)
def test_cutmix_pastes_the_rectangle_that_is_drawn(
    share: float, centre: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    image, label = batch()
    expected = image.clone()
    place = (..., slice(*rows), slice(*columns))
    expected[place] = image.flip(0)[place]
    mixed = mix(image, label, mixup=0, cutmix=0.7, generator=Drawn(share, centre))
    assert torch.equal(mixed.image, expected)
    area = (rows[1] - rows[0]) * (columns[1] - columns[0])
    assert mixed.share == pytest.approx(1 - area / 320)


def test_both_take_turns() -> None:
    image, label = batch()
    kinds = {
        mix(image, label, mixup=0.2, cutmix=1, generator=np.random.default_rng(s)).image.dtype
        for s in range(20)
    }
    assert kinds == {torch.uint8, torch.float32}


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3 * 16 * 20, 5)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.layer(image.flatten(1) / 255), None


@pytest.mark.parametrize("parts", [1, 2])
def test_the_loss_is_mixed_like_the_images(parts: int) -> None:
    image, label = batch()
    mixed = mix(image, label, mixup=0, cutmix=1, generator=np.random.default_rng(3))
    network = Linear()
    train_step = TrainingStep(
        network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1, fused=True),
        loss=SegmentationLoss(ignore_label=-1),
        accumulation_steps=parts,
    )
    figures = train_step(
        PreparedBatch(0, mixed.image.float(), label, mixed.partner, mixed.share, [], [])
    )
    target = mixed.share * F.one_hot(label, 5) + (1 - mixed.share) * F.one_hot(label.flip(0), 5)
    other = Linear()
    loss = F.cross_entropy(other(mixed.image.float())[0], target)
    loss.backward()
    torch.testing.assert_close(figures.losses[0], loss.detach())
    torch.testing.assert_close(network.layer.weight.grad, other.layer.weight.grad)


def test_the_average_against_its_recursion() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    network.register_buffer("table", torch.zeros(2, 3, dtype=torch.int64))
    average = EMA(network, 0.5)
    expected = network[0].weight.detach().clone()
    for step in range(1, 30):
        with torch.no_grad():
            network[0].weight.normal_()
            network[1].num_batches_tracked += 1
            network.table += 2
        average.update(step)
        keep = min(0.5, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * network[0].weight.detach()
    torch.testing.assert_close(average.tensors["0.weight"], expected)
    assert average.tensors["1.num_batches_tracked"] == 29
    assert (average.tensors["table"] == 58).all()  # integers are taken over as they are
    live = network[0].weight.detach().clone()
    with average.applied():
        torch.testing.assert_close(network[0].weight, expected)
    assert torch.equal(network[0].weight, live)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    write_shapes10(tmp_path / "data", train=24, val=7)
    content = {
        "base": str(ROOT / "config/shapes10/shapes10_resnet18.yaml"),
        "DATA": {"data_root": str(tmp_path / "data")},
        "TRAIN": {"batch_size": 8, "epochs": 2, "workers": 0, "train_h": 16, "train_w": 16},
    }
    content["TRAIN"] |= {"precision": "fp32", "width": 0.125, "save_path": str(tmp_path / "run")}
    content["TRAIN"] |= {"mixup": 0.2, "cutmix": 1, "average_decay": 0.9, "label_smoothing": 0.1}
    path = tmp_path / "shapes10_mixed.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def trained(config: Path, folder: Path, *, until: int | None = None) -> dict:
    trainer = build_trainer(load_config(config, ["TRAIN.save_path", str(folder)]), CPU)
    trainer.fit(until=until)
    return torch.load(trainer.checkpoints.last, weights_only=True)


def test_the_average_is_what_others_load(config_file: Path, tmp_path: Path) -> None:
    content = trained(config_file, tmp_path / "run", until=2)
    network = build_network(load_config(config_file))
    load_weights(network, content, origin="last.pth", exact=True)
    for key, value in network.state_dict().items():
        assert torch.equal(value, content["state_dict"][key]), key
