"""A step of several processes is the step of one over the same global batch, in every digit.

In float64, so that nothing hides behind rounding; tests/test_training.py does it with the commands.
"""

from pathlib import Path

import pytest
import torch
from processes import run_processes
from reference import spnet
from torch import Tensor

from stripseg.config.load import load_config
from stripseg.util.distributed import process_group
from stripseg.util.training.losses import SegmentationLoss
from stripseg.util.training.optimizer import build_optimizer
from stripseg.util.training.parallelize import place_network

CPU = torch.device("cpu")


TERMS = {"cross_entropy": 1, "dice": 0.5, "lovasz": 0.5, "focal": 1, "boundary": 1, "ohem": 1}


def training_steps(config_path: str, shares: list[slice]) -> tuple[dict[str, Tensor], list[float]]:
    """Two SGD steps on this process's share: the weights and the global losses."""
    loss_of = SegmentationLoss(TERMS, ohem_min_kept=1000)
    config = load_config(config_path, ["TRAIN.channels_last", "False"])
    torch.manual_seed(0)
    segmenter = spnet(18, 5, dropout=0.0).double().train()
    network = place_network(config, segmenter, CPU)
    optimizer = build_optimizer(
        segmenter,
        segmenter.new_layers(),
        base_lr=0.01,
        head_lr_factor=10.0,
        momentum=0.9,
        weight_decay=1e-4,
    )
    generator = torch.Generator().manual_seed(1)
    share, losses = shares[process_group.rank()], []
    for _ in range(2):
        image = torch.randn(4, 3, 33, 41, generator=generator, dtype=torch.float64)
        label = torch.randint(5, (4, 33, 41), generator=generator)
        label[0, 5:] = 255  # the processes have different numbers of labelled pixels
        loss, _, _ = loss_of(*network(image[share]), label[share])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean = process_group.all_reduce_sum(loss.detach().clone()) / process_group.world_size()
        losses.append(mean.item())
    return segmenter.state_dict(), losses


def test_two_processes_take_the_steps_of_one(small_config: Path) -> None:
    """All terms of the loss in a sum, three images and one: any term's own share would show."""
    shares = [slice(0, 3), slice(3, 4)]
    expected, losses = training_steps(str(small_config), [slice(0, 4)])
    arguments = (str(small_config), shares)
    for weights, global_losses in run_processes(2, training_steps, *arguments):
        assert global_losses == pytest.approx(losses, rel=1e-6)
        for key, value in expected.items():
            torch.testing.assert_close(
                torch.as_tensor(weights[key]),
                value,
                rtol=1e-6,
                atol=1e-9,
                msg=lambda text, key=key: f"{key}: {text}",
            )
