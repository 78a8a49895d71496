"""Weights to another author's layout and back: every tensor, bit for bit."""

from pathlib import Path

import pytest
import torch
from reference import fcn, fill_at_random, spnet
from safetensors.torch import save_file
from torch import Tensor

from stripseg.config.errors import CheckpointError
from stripseg.model.backbone.pyconv import PyConvResNet
from stripseg.model.backbone.resnet import ResNet
from stripseg.model.backbone.timm_backbone import TimmBackbone
from stripseg.model.layers import group_norm
from stripseg.model.psanet import PSANetHead
from stripseg.model.pspnet import PSPNetHead
from stripseg.model.pyconvsegnet import PyConvSegNetHead
from stripseg.model.segmenter import Segmenter
from stripseg.model.weights import load_weights
from stripseg.tool.convert import main
from stripseg.util.checkpoint import read_checkpoint

NETWORKS = {
    "spnet": lambda: spnet(50),
    "semseg-pspnet": lambda: whole(PSPNetHead),
    "semseg-psanet": lambda: whole(PSANetHead, mask_size=(3, 3)),
    "pyconvsegnet": lambda: whole(PyConvSegNetHead, PyConvResNet(18, width=0.125)),
}


def whole(head, backbone=None, **options) -> Segmenter:
    backbone = backbone or ResNet(18, width=0.125)
    return Segmenter(backbone, head(backbone.channels, 5, **options))


def saved(network: Segmenter, path: Path) -> dict[str, Tensor]:
    fill_at_random(network)
    torch.save({"state_dict": network.state_dict()}, path)
    return network.state_dict()


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(("arch", "family"), [("spnet", "spnet"), ("psp", "semseg-pspnet")])
def test_logits_between_pixels_are_not_written_for_a_program_that_aligns_corners(
    tmp_path: Path, arch: str, family: str
) -> None:
    path = tmp_path / "half.pth"
    config = {"TRAIN": {"arch": arch, "align_corners": False}}
    torch.save({"state_dict": NETWORKS[family]().state_dict(), "config": config}, path)
    with pytest.raises(CheckpointError, match="align_corners False, and that program aligns"):
        main([str(path), str(tmp_path / "theirs.pth"), "--to", family])


def test_maxima_are_not_written_for_a_program_that_averages(tmp_path: Path) -> None:
    network, path = NETWORKS["spnet"](), tmp_path / "max.pth"
    train = {"arch": "spnet", "strip_pooling": "max"}
    torch.save({"state_dict": network.state_dict(), "config": {"TRAIN": train}}, path)
    with pytest.raises(CheckpointError, match="strip_pooling max, and that program averages"):
        main([str(path), str(tmp_path / "theirs.pth"), "--to", "spnet"])
    assert not (tmp_path / "theirs.pth").exists()
    train["strip_pooling"] = "average"
    torch.save({"state_dict": network.state_dict(), "config": {"TRAIN": train}}, path)
    main([str(path), str(tmp_path / "theirs.pth"), "--to", "spnet"])


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


BACKBONES = {
    "torchvision-backbone": lambda: ResNet(18, stem="classic", width=0.125),
    "semseg-backbone": lambda: ResNet(18, width=0.125),
    "encoding-backbone": lambda: ResNet(18, stem_width=32, average_down=True, width=0.125),
    "pyconv-backbone": lambda: PyConvResNet(50, width=0.125),
}


@pytest.mark.parametrize("with_classifier", [True, False])
@pytest.mark.parametrize("author", BACKBONES)
def test_backbones_go_there_and_back(author: str, with_classifier: bool, tmp_path: Path) -> None:
    """The author's file is ours under the author's names; it comes back as it was."""
    ours, theirs, again, back = (tmp_path / f"{i}.pth" for i in range(4))
    network = ResNetClassifier(BACKBONES[author]()) if with_classifier else BACKBONES[author]()
    saved(network, tmp_path / "start.pth")
    main([str(tmp_path / "start.pth"), str(ours)])
    main([str(ours), str(theirs), "--to", author])
    main([str(theirs), str(again)])
    main([str(again), str(back), "--to", author])
    assert_same(read_checkpoint(theirs), read_checkpoint(back))
    assert ("fc.weight" in read_checkpoint(back)) == with_classifier
    assert_same(read_checkpoint(ours)["state_dict"], read_checkpoint(again)["state_dict"])


class ResNetClassifier(torch.nn.Module):
    def __init__(self, backbone: ResNet) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = torch.nn.Linear(backbone.channels[-1], 10)


def test_timms_files_go_there_and_back(tmp_path: Path) -> None:
    """Their classifier travels along; the converted file fills the backbone it is for."""
    timm = pytest.importorskip("timm")
    theirs, ours, back = (tmp_path / f"{name}.safetensors" for name in ("theirs", "ours", "back"))
    state = timm.create_model("convnext_atto").state_dict()
    save_file(state, theirs)
    main([str(theirs), str(ours), "--timm"])
    main([str(ours), str(back), "--to", "timm-backbone"])
    assert_same(read_checkpoint(back), state)
    network = whole(PSPNetHead, TimmBackbone("convnext_atto"))
    report = load_weights(network, read_checkpoint(ours), origin="", exact=False)
    expected = network.backbone.network.model.state_dict()
    assert report.matched == len(expected)
    assert all(torch.equal(value, state[key]) for key, value in expected.items())


def test_authors_programs_find_their_prefix(tmp_path: Path) -> None:
    """A data-parallel wrapper loads keys that begin with `module.`, others silently not at all."""
    saved(spnet(50), tmp_path / "ours.pth")
    main([str(tmp_path / "ours.pth"), str(tmp_path / "theirs.pth"), "--to", "spnet"])
    content = torch.load(tmp_path / "theirs.pth", weights_only=True)
    assert "module.pretrained.conv1.0.weight" in content["state_dict"]


def test_a_network_the_author_does_not_have_is_refused(tmp_path: Path) -> None:
    saved(spnet(), tmp_path / "ours.pth")
    with pytest.raises(CheckpointError, match="with the names of semseg PSPNet: .* has no names"):
        main([str(tmp_path / "ours.pth"), str(tmp_path / "x.pth"), "--to", "semseg-pspnet"])
    assert not (tmp_path / "x.pth").exists()


@pytest.mark.parametrize(
    ("make", "lacks"),
    [(spnet, "layer1"), (lambda: spnet(50, norm_layer=group_norm), "running_mean")],
    ids=["basic blocks", "group norm"],
)
def test_a_variant_the_authors_program_cannot_build_is_refused(
    make, lacks: str, tmp_path: Path
) -> None:
    saved(make(), tmp_path / "ours.pth")
    with pytest.raises(CheckpointError, match=f"program has no such network: it lacks .*{lacks}"):
        main([str(tmp_path / "ours.pth"), str(tmp_path / "x.pth"), "--to", "spnet"])


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    saved(fcn(), tmp_path / "ours.pth")
    with pytest.raises(CheckpointError, match=r"x.onnx: weights are written as .pth or"):
        main([str(tmp_path / "ours.pth"), str(tmp_path / "x.onnx")])
