"""Weights to another author's layout and back: every tensor, bit for bit."""

from pathlib import Path

import pytest
import torch
from reference import fcn, fill_at_random, spnet
from torch import Tensor

from stripseg.config.errors import CheckpointError
from stripseg.model.psanet import PSANetHead
from stripseg.model.pspnet import PSPNetHead
from stripseg.model.pyconv import PyConvResNet
from stripseg.model.pyconvsegnet import PyConvSegNetHead
from stripseg.model.resnet import ResNet
from stripseg.model.segmenter import Segmenter
from stripseg.model.weights import load_weights
from stripseg.tool.convert import main
from stripseg.util.checkpoint import read_checkpoint

NETWORKS = {
    "spnet": spnet,
    "semseg-pspnet": lambda: whole(PSPNetHead),
    "semseg-psanet": lambda: whole(PSANetHead, mask_size=(3, 3)),
    "pyconvsegnet": lambda: whole(PyConvSegNetHead, PyConvResNet(18)),
}


def whole(head, backbone=None, **options) -> Segmenter:
    backbone = backbone or ResNet(18)
    return Segmenter(backbone, head(backbone.channels, 5, **options))


def saved(network: Segmenter, path: Path) -> dict[str, Tensor]:
    fill_at_random(network)
    torch.save({"state_dict": network.state_dict()}, path)
    return network.state_dict()


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("author", NETWORKS)
def test_there_and_back_is_exact(author: str, suffix: str, tmp_path: Path) -> None:
    ours, theirs, back = (tmp_path / f"{name}{suffix}" for name in ("ours", "theirs", "back"))
    network = NETWORKS[author]()
    before = saved(network, tmp_path / "start.pth")
    main([str(tmp_path / "start.pth"), str(ours)])
    main([str(ours), str(theirs), "--to", author])
    main([str(theirs), str(back)])
    after = read_checkpoint(back)
    assert_same(before, after.get("state_dict", after))
    report = load_weights(network, read_checkpoint(theirs), origin="", exact=True)
    assert (report.new, report.unused) == ([], [])


def test_authors_programs_find_their_prefix(tmp_path: Path) -> None:
    """A data-parallel wrapper loads keys that begin with `module.`, others silently not at all."""
    saved(spnet(), tmp_path / "ours.pth")
    main([str(tmp_path / "ours.pth"), str(tmp_path / "theirs.pth"), "--to", "spnet"])
    content = torch.load(tmp_path / "theirs.pth", weights_only=True)
    assert "module.pretrained.conv1.0.weight" in content["state_dict"]


def test_a_network_the_author_does_not_have_is_refused(tmp_path: Path) -> None:
    saved(spnet(), tmp_path / "ours.pth")
    with pytest.raises(CheckpointError, match="with the names of semseg PSPNet: .* has no names"):
        main([str(tmp_path / "ours.pth"), str(tmp_path / "x.pth"), "--to", "semseg-pspnet"])
    assert not (tmp_path / "x.pth").exists()


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    saved(fcn(), tmp_path / "ours.pth")
    with pytest.raises(CheckpointError, match=r"x.onnx: weights are written as .pth or"):
        main([str(tmp_path / "ours.pth"), str(tmp_path / "x.onnx")])
