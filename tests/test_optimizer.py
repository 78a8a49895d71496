"""The optimizer's states, and what they meet when a run goes on."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from stripseg.util.training.optimizer import build_optimizer, load_optimizer_state

FORMATS = [torch.contiguous_format, torch.channels_last]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(5, 6, 3), nn.Conv2d(6, 4, (1, 3)))


def optimizer_of(model: nn.Module, name: str) -> torch.optim.Optimizer:
    return build_optimizer(
        model,
        [model[1]],
        base_lr=0.1,
        head_lr_factor=10.0,
        momentum=0.9,
        weight_decay=1e-3,
        name=name,
    )


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    image = torch.randn(2, 5, 8, 8, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(image).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize(("before", "after"), [FORMATS, FORMATS[::-1]], ids=["to last", "to first"])
def test_states_follow_the_memory_layout_of_their_parameters(
    name: str, before: torch.memory_format, after: torch.memory_format
) -> None:
    """A run that goes on with another TRAIN.channels_last makes the same next step."""
    model = network().to(memory_format=before)
    optimizer = optimizer_of(model, name)
    for seed in range(3):
        train_step(model, optimizer, seed)
    resumed = network().to(memory_format=after)
    resumed.load_state_dict(model.state_dict())
    other = optimizer_of(resumed, name)
    load_optimizer_state(other, deepcopy(optimizer.state_dict()))
    for parameter in resumed.parameters():
        for value in other.state[parameter].values():
            assert value.dim() == 0 or value.stride() == parameter.stride()
    train_step(model, optimizer, 3)
    train_step(resumed, other, 3)
    for expected, got in zip(model.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)


def test_states_of_older_checkpoints() -> None:
    """Their groups call the factor `rate_factor`; this run's own factor counts."""
    model = network()
    optimizer = optimizer_of(model, "sgd")
    train_step(model, optimizer, 0)
    state = deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        group["rate_factor"] = 99.0
        del group["lr_factor"]
    load_optimizer_state(optimizer, state)
    assert [group["lr_factor"] for group in optimizer.param_groups] == [1.0, 10.0]
    assert all("rate_factor" not in group for group in optimizer.param_groups)


def test_frozen_parameters_are_left_out() -> None:
    model = network()
    model[0].bias.requires_grad_(False)
    optimizer = optimizer_of(model, "adamw")
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 3
