"""Costs of networks: the figures that papers and released code give; strides and fields."""

from pathlib import Path

import pytest
import torch
from reference import fcn
from torch import nn

from stripseg.config.errors import CheckpointError
from stripseg.config.load import load_config
from stripseg.tool.summary import Field, main, summarise, summarise_config

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("name", "millions", "giga"),  # parameters without auxiliary head; multiply-adds at the crop
    [
        ("ade20k_spnet50", 45.44, 143.1),  # 151.7 with the auxiliary head's 8.6
        ("ade20k_spnet101", 64.43, 211.3),
        ("ade20k_pspnet50", 46.78, 161.9),
        ("ade20k_pspnet101", 65.77, 230.1),
        ("ade20k_psanet50", 50.88, 170.2),
        ("ade20k_resnet50_pyconvsegnet", 32.00, 107.4),
        ("ade20k_pyconvsegnet50", 31.29, 104.7),
        ("ade20k_pyconvsegnet101", 48.75, 167.3),
    ],
)
def test_costs_are_the_released_networks(name: str, millions: float, giga: float) -> None:
    parts = summarise_config(load_config(ROOT / "config" / "ade20k" / f"{name}.yaml"))
    tested = [part for part in parts if part.name != "auxiliary head"]
    assert sum(p.parameters for p in tested) / 1e6 == pytest.approx(millions, abs=0.006)
    assert sum(p.multiply_adds for p in tested) / 1e9 == pytest.approx(giga, abs=0.15)


def test_parts_have_the_shapes_of_a_real_pass() -> None:
    network = fcn(18).eval()
    parts = summarise(network, (65, 97))
    features = network.backbone(torch.randn(1, 3, 65, 97))
    assert [part.shape for part in parts[1:5]] == [tuple(f.shape[1:]) for f in features]
    assert [part.stride for part in parts] == [4, 4, 7, 7, 7, 7, 7]


def extent_of_gradient(module: nn.Module) -> int:
    """Width of what reaches the middle value, from the first to the last pixel."""
    image = torch.zeros(1, 1, 127, 127).requires_grad_()
    out = module(image)
    out[0, 0, out.shape[2] // 2, out.shape[3] // 2].backward()
    reached = image.grad[0, 0].abs().sum(dim=0).nonzero().flatten()
    return int(reached[-1] - reached[0]) + 1


def test_the_receptive_field_is_what_a_gradient_finds() -> None:
    layers = nn.Sequential(
        nn.Conv2d(1, 1, 3, stride=2, padding=1),
        nn.Conv2d(1, 1, 5, padding=4, dilation=2),
        nn.AvgPool2d(3, stride=2, padding=1),
        nn.Conv2d(1, 1, 3, padding=1),
    )
    for count in range(1, 5):
        assert Field().after(layers[:count]).side == extent_of_gradient(layers[:count])
    assert Field().after(layers).jump == 4


def test_strips_see_everything() -> None:
    fields = {
        name: [p.receptive_field for p in summarise_config(load_config(path))]
        for name in ("spnet50", "fcn50")
        if (path := ROOT / "config" / "ade20k" / f"ade20k_{name}.yaml")
    }
    assert fields["spnet50"][1:] == [None] * 6
    assert all(fields["fcn50"])


def test_one_config_is_told_in_parts_and_several_are_compared(capsys) -> None:
    main(["shapes", "spnet18", "TRAIN.layers", "34"])
    assert "stage 4" in capsys.readouterr().out
    main(["shapes", "spnet18", "ade20k", "pspnet50"])
    said = capsys.readouterr().out
    assert "stage 4" not in said
    assert [line.split()[:2] for line in said.splitlines()[1:]] == [
        ["shapes", "spnet18"],
        ["ade20k", "pspnet50"],
    ]


def test_a_checkpoint_knows_its_network(tmp_path: Path, capsys) -> None:
    config = load_config(ROOT / "config/shapes/shapes_spnet18.yaml")
    torch.save({"config": config.model_dump(mode="json")}, tmp_path / "known.pth")
    main(["--checkpoint", str(tmp_path / "known.pth")])
    assert "shapes spnet18" in capsys.readouterr().out
    torch.save({"state_dict": {}}, tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match=r"bare.pth: has no config"):
        main(["--checkpoint", str(tmp_path / "bare.pth")])
