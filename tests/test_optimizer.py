"""The optimizer's groups, its states, and what they meet when a run goes on."""

from copy import deepcopy
from math import cos, pi
from pathlib import Path

import pytest
import torch
from torch import nn

from stripseg.config.errors import ConfigError
from stripseg.config.load import load_config
from stripseg.model.build import build_network
from stripseg.util.training.optimizer import (
    build_optimizer,
    cosine,
    load_optimizer_state,
    lr_at,
)
from stripseg.util.training.optimizer import optimizer_of as configured_optimizer
from stripseg.util.training.optimizer import poly as poly_of_step

FORMATS = [torch.contiguous_format, torch.channels_last]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(5, 6, 3), nn.Conv2d(6, 4, (1, 3)))


def optimizer_of(model: nn.Module, name: str, **options) -> torch.optim.Optimizer:
    return build_optimizer(
        model,
        [model[1]],
        base_lr=0.1,
        head_lr_factor=10.0,
        momentum=0.9,
        weight_decay=1e-3,
        name=name,
        **options,
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
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


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


def settings(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, tuple[float, float]]:
    """{parameter: (lr_factor, weight_decay)}."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        names[id(p)]: (group["lr_factor"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_norms_and_biases_without_decay(name: str) -> None:
    """With a gradient of zero, weights shrink and biases stay."""
    model = network()
    optimizer = optimizer_of(model, name, decay_norms_and_biases=False)
    assert settings(optimizer, model) == {
        "0.weight": (1.0, 1e-3),
        "0.bias": (1.0, 0.0),
        "1.weight": (10.0, 1e-3),
        "1.bias": (10.0, 0.0),
    }
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for key, value in model.state_dict().items():
        factor = 1.0 if key.endswith("bias") else 1 - 0.1 * 1e-3
        torch.testing.assert_close(value, before[key] * factor)


def test_without_the_options_there_are_the_two_groups_of_before() -> None:
    model = network()
    groups = optimizer_of(model, "sgd").param_groups
    assert [group["lr_factor"] for group in groups] == [1.0, 10.0]
    assert [list(map(id, g["params"])) for g in groups] == [
        list(map(id, m.parameters())) for m in model
    ]


def stage_factors(config_file: Path, *overrides: str) -> dict[str, float]:
    config = load_config(config_file, ["TRAIN.layer_lr_decay", "0.5", *overrides])
    model = build_network(config)
    found = settings(configured_optimizer(config, model), model)
    assert len(found) == sum(p.requires_grad for p in model.parameters())
    return {key: factor for key, (factor, _) in found.items()}


@pytest.mark.parametrize("backbone", ["resnet18", "pyconvresnet18"])
def test_each_stage_learns_at_half_the_rate_of_the_next(small_config: Path, backbone: str) -> None:
    parts = ("stem", "layer1", "layer2", "layer3", "layer4")
    for key, factor in stage_factors(small_config, "TRAIN.backbone", backbone).items():
        if key.startswith("backbone."):
            assert factor == 0.5 ** (4 - parts.index(key.split(".")[1])), key
        else:
            assert factor == 10.0, key


@pytest.mark.parametrize(("name", "last"), [("resnet10t", "layer4"), ("vit_tiny_patch16_224", "")])
def test_layers_of_timm(small_config: Path, name: str, last: str) -> None:
    pytest.importorskip("timm")
    words = ["TRAIN.backbone", f"timm/{name}", "TRAIN.output_stride", "32", "TRAIN.width", "1"]
    factors = stage_factors(small_config, *words)
    backbone = {k: f for k, f in factors.items() if k.startswith("backbone.")}
    blocks = f"backbone.network.model.{last or 'blocks'}."
    ordered = [f for k, f in backbone.items() if k.startswith(blocks)]
    assert ordered == sorted(ordered)
    assert ordered[-1] == max(backbone.values()) == 1
    assert min(backbone.values()) == next(iter(backbone.values())) < 0.5**3


def test_a_backbone_of_unknown_layers_is_refused(small_config: Path, monkeypatch) -> None:
    timm = pytest.importorskip("timm")
    monkeypatch.delattr(timm.models.resnet.ResNet, "group_matcher")
    words = ["TRAIN.backbone", "timm/resnet10t", "TRAIN.output_stride", "32", "TRAIN.width", "1"]
    with pytest.raises(ConfigError, match="command line: timm does not tell the layers of this"):
        stage_factors(small_config, *words)


@pytest.mark.parametrize("schedule", ["poly", "cosine"])
def test_a_segmenter_warms_up(small_config: Path, schedule: str) -> None:
    words = ["TRAIN.epochs", "6", "TRAIN.warmup_epochs", "2", "TRAIN.schedule", schedule]
    train = load_config(small_config, words).TRAIN
    rates = [lr_at(train, step, steps_per_epoch=3) for step in range(18)]
    assert rates[:6] == pytest.approx([train.base_lr * (step + 1) / 6 for step in range(6)])
    assert rates[6] == pytest.approx(train.base_lr)
    assert rates[6:] == sorted(rates[6:], reverse=True)


def test_rates_of_every_schedule_by_their_formula(small_config: Path) -> None:
    """`step` counts epochs from the start of the run, poly and cosine steps after the warm-up."""

    def rates(*words: str) -> list[float]:
        base = ["TRAIN.epochs", "4", "TRAIN.base_lr", "0.8", "TRAIN.schedule", *words]
        train = load_config(small_config, base).TRAIN
        return [lr_at(train, step, steps_per_epoch=2) for step in range(9)]

    poly = [0.8 * (1 - step / 8) ** 0.9 for step in range(9)]
    assert rates("poly") == pytest.approx(poly)
    assert rates("poly", "TRAIN.power", "2")[4] == pytest.approx(0.2)
    assert rates("cosine") == pytest.approx([0.4 * (1 + cos(pi * s / 8)) for s in range(9)])
    steps = rates("step", "TRAIN.milestones", "[3, 1]", "TRAIN.rate_decay", "0.5")
    assert steps == pytest.approx([0.8, 0.8, 0.4, 0.4, 0.4, 0.4, 0.2, 0.2, 0.2])
    assert poly_of_step(0.8, 99, 8) == 0  # beyond the end, as the last validation may be
    assert cosine(0.8, 99, 8) == pytest.approx(0)


def test_momentum_and_betas_are_the_options() -> None:
    model = network()
    assert optimizer_of(model, "sgd").param_groups[0]["momentum"] == 0.9
    for name in ("adam", "adamw"):
        optimizer = optimizer_of(model, name)
        assert type(optimizer).__name__.lower() == name
        assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
        assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-3, 1e-3]
    state = optimizer_of(model, "sgd").state
    assert all((state[p]["momentum_buffer"] == 0).all() for p in model.parameters())
