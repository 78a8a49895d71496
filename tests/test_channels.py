"""Images that are not RGB: pretrained stems adapt, and a run goes from files to figures."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from PIL import Image
from reference import spnet

from stripseg.config.errors import CheckpointError
from stripseg.model.backbone.resnet import ResNet
from stripseg.model.segmenter import Segmenter
from stripseg.model.spnet import SPNetHead
from stripseg.model.weights import load_weights
from stripseg.tool import demo, train
from stripseg.tool import test as tool_test


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_a_stem_adapts_to_the_images_channels(channels: int) -> None:
    source = ResNet(18, width=0.125).eval()
    network = spnet_of_channels(channels)
    report = load_weights(network, source.state_dict(), origin="w.pth", exact=False)
    assert report.adapted == ["backbone.stem.0.weight"]
    assert "adapted from RGB to DATA.in_channels: backbone.stem.0.weight" in str(report)
    grey = torch.rand(1, 1, 16, 16)
    rgb, ours = source.stem[0], network.backbone.stem[0]
    if channels == 1:  # a grey picture answers as it does in RGB
        torch.testing.assert_close(ours(grey), rgb(grey.expand(1, 3, 16, 16)))
        return
    expected = torch.stack([rgb.weight[:, c % 3] for c in range(channels)], dim=1) * 3 / channels
    torch.testing.assert_close(ours.weight, expected)


def test_a_trained_networks_channels_are_not_adapted_for_a_test() -> None:
    source = spnet()
    with pytest.raises(CheckpointError, match=r"stem.0.weight is \(8, 3, 3, 3\) in the file"):
        load_weights(spnet_of_channels(4), source.state_dict(), origin="w.pth", exact=True)


def spnet_of_channels(channels: int) -> Segmenter:
    backbone = ResNet(18, in_channels=channels, multi_grid=(4, 8, 16), width=0.125)
    return Segmenter(backbone, SPNetHead(backbone.channels, 5), None)


@pytest.mark.parametrize("channels", [1, 5])
def test_pictures_of_any_channels_are_trained_on_and_tested(
    channels: int, small_config: Path, small_shapes: Path, tmp_path: Path
) -> None:
    """From RGB weights; then the test and the demo read the same pictures."""
    root = tmp_path / "data"
    for line in (small_shapes / "train.txt").read_text().splitlines():
        image, label = line.split()
        rgb = np.array(Image.open(small_shapes / image))
        bands = rgb[..., [index % 3 for index in range(channels)]]
        path = (root / image).with_suffix(".tif")
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, bands.squeeze(), photometric="minisblack")
        with open(root.joinpath("train.txt"), "a") as file:
            file.write(f"{path.relative_to(root)} {small_shapes / label}\n")
    weights = tmp_path / "rgb.pth"
    torch.save(ResNet(18, width=0.125).state_dict(), weights)
    content = yaml.safe_load(small_config.read_text())
    content["DATA"] |= {"data_root": str(root), "in_channels": channels, "val_list": "train.txt"}
    content["TRAIN"] |= {"pretrained": str(weights), "epochs": 1}
    content["TEST"] |= {"test_list": "train.txt", "scales": [0.5, 1.0]}
    small_config.write_text(yaml.safe_dump(content))
    arguments = ["--config", str(small_config)]
    train.main(arguments)
    assert "adapted from RGB" in next(tmp_path.glob("run/model/*.log")).read_text()
    tool_test.main(arguments)
    assert json.loads((tmp_path / "run/result/metrics.json").read_text())["images"] == 6
    demo.main([*arguments, "--image", str(root), "--output", str(tmp_path / "out")])
    assert len(list((tmp_path / "out").rglob("*_overlay.png"))) == 6
