"""TRAIN.activation_checkpointing changes what is kept in memory and nothing else."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from processes import run_processes
from reference import PAPER_BLOCKS, fcn, spnet
from torch import Tensor, nn
from yamls import complaint

from stripseg.config.load import load_config
from stripseg.model.backbone.pyconv import PyConvResNet
from stripseg.model.backbone.resnet import run_blocks
from stripseg.model.build import build_segmenter
from stripseg.model.fcn import FCNHead
from stripseg.model.segmenter import Segmenter
from stripseg.training_run import build_trainer
from stripseg.util.distributed import process_group, sync_batch_norm

CPU = torch.device("cpu")


def pyconv(depth: int) -> Segmenter:
    backbone = PyConvResNet(depth, strip_pooling=PAPER_BLOCKS, width=0.125)
    return Segmenter(backbone, FCNHead(backbone.channels, 5))


NETWORKS = {
    "fcn18": lambda: fcn(18),
    "fcn50": lambda: fcn(50),
    "spnet18": lambda: spnet(18),
    "spnet50": lambda: spnet(50),
    "pyconv18": lambda: pyconv(18),
    "pyconv50": lambda: pyconv(50),
}


def step(network: Segmenter, image: Tensor, *, recompute: bool) -> dict[str, Tensor]:
    """Outputs, gradients and the state after one forward and backward pass."""
    network = deepcopy(network).train()
    network.backbone.activation_checkpointing = recompute
    torch.manual_seed(5)
    logits, auxiliary = network(image)
    loss = logits.square().mean()
    if auxiliary is not None:
        loss = loss + auxiliary.square().mean()
    loss.backward()
    found = {f"grad {name}": p.grad for name, p in network.named_parameters()}
    return {"logits": logits.detach(), **found, **network.state_dict()}


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_and_running_statistics_are_the_same(name: str) -> None:
    """Bit for bit, with dropout before the classifiers."""
    torch.manual_seed(0)
    network, image = NETWORKS[name](), torch.randn(2, 3, 33, 41)
    assert_equal(step(network, image, recompute=False), step(network, image, recompute=True))


def test_dropout_in_a_block_draws_the_same_numbers_again() -> None:
    results = []
    for recompute in (False, True):
        torch.manual_seed(1)
        block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
        blocks = nn.Sequential(block, nn.Conv2d(4, 2, 1)).train()
        run_blocks(blocks, torch.randn(2, 3, 9, 9), recompute=recompute).square().sum().backward()
        results.append({name: p.grad for name, p in blocks.named_parameters()})
    assert_equal(*results)


def kept(network: Segmenter, image: Tensor) -> int:
    """Bytes that the forward pass keeps for the backward pass."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network.train()(image)
    return sum(sizes.values())


def test_less_is_kept() -> None:
    network, image = fcn(50), torch.randn(2, 3, 65, 65)
    before = kept(network, image)
    network.backbone.activation_checkpointing = True
    assert kept(network, image) < before / 2


def synchronized(recompute: bool) -> dict[str, Tensor]:
    torch.manual_seed(0)
    network = sync_batch_norm.convert(fcn(18), device=CPU)
    image = torch.randn(2, 3, 33, 41, generator=torch.Generator().manual_seed(process_group.rank()))
    return step(network, image, recompute=recompute)


@pytest.mark.slow
def test_synchronized_batch_norm_of_two_processes() -> None:
    plain, again = (run_processes(2, synchronized, recompute) for recompute in (False, True))
    for first, second in zip(plain, again, strict=True):
        for key, value in first.items():
            assert (value == second[key]).all(), key


def test_the_option_reaches_the_backbone_and_trains(small_config: Path, tmp_path: Path) -> None:
    weights = []
    for value in ("False", "True"):
        words = ["TRAIN.activation_checkpointing", value, "TRAIN.save_path", str(tmp_path / value)]
        trainer = build_trainer(load_config(small_config, words), CPU)
        assert trainer.segmenter.backbone.activation_checkpointing == (value == "True")
        trainer.fit(until=2)
        weights.append(trainer.segmenter.state_dict())
    assert_equal(*weights)


def test_keys_are_unchanged(small_config: Path) -> None:
    plain, again = (
        build_segmenter(load_config(small_config, ["TRAIN.activation_checkpointing", value]))
        for value in ("False", "True")
    )
    assert plain.state_dict().keys() == again.state_dict().keys()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ("TRAIN.compile True", "exclude each other"),
        ("TRAIN.backbone timm/convnext_tiny", "works on ResNet and PyConvResNet, not on timm/"),
    ],
)
def test_what_cannot_be_recomputed(write, other: str, words: str) -> None:
    options = ["TRAIN.activation_checkpointing", "True", *other.split()]
    assert words in complaint(write(), *options)
