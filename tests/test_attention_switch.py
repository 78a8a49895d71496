"""One switch puts an attention module into every block; the parameters are those published."""

import pytest
import torch
from torch import nn

from stripseg.config.errors import ConfigError
from stripseg.config.load import load_config
from stripseg.model.backbone.attention import build_attention, eca_kernel_size
from stripseg.model.backbone.pyconv import PyConvResNet
from stripseg.model.backbone.resnet import ResNet
from stripseg.model.build import build_backbone, build_network
from stripseg.model.classifier import ImageClassifier
from stripseg.model.layers import group_norm
from stripseg.model.weights import load_weights

NAMES = ["strip_pool", "triplet", "eca", "gct", "gct_l1", "se", "cbam"]


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def cifar_resnet(depth: int, attention: str = "none") -> ImageClassifier:
    with torch.device("meta"):
        return ImageClassifier(ResNet(depth, stem="cifar", attention=attention), 10)


@pytest.mark.parametrize(("depth", "count"), [(18, 11_173_962), (34, 21_282_122)])
def test_cifar_resnets_have_the_known_size(depth: int, count: int) -> None:
    assert parameters(cifar_resnet(depth)) == count


@pytest.mark.parametrize(
    ("attention", "of_18", "of_34"),
    [
        ("strip_pool", 4_883_840, 8_821_184),
        ("triplet", 2_400, 4_800),
        ("eca", 36, 74),
        ("gct", 5_760, 11_328),
        ("gct_l1", 5_760, 11_328),
        ("se", 89_080, 161_196),
        ("cbam", 87_840, 158_784),
    ],
)
def test_attention_adds_the_known_parameters(attention: str, of_18: int, of_34: int) -> None:
    for depth, added in ((18, of_18), (34, of_34)):
        whole = parameters(cifar_resnet(depth, attention))
        assert whole - parameters(cifar_resnet(depth)) == added


def test_cifar_stem_keeps_the_size_and_dilates_nothing() -> None:
    backbone = ResNet(18, stem="cifar").eval()
    with torch.no_grad():
        features = backbone(torch.rand(1, 3, 32, 32))
    assert [tuple(f.shape[1:]) for f in features] == [
        (64, 32, 32),
        (128, 16, 16),
        (256, 8, 8),
        (512, 4, 4),
    ]
    convolutions = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    assert {m.dilation for m in convolutions} == {(1, 1)}
    assert not any(isinstance(m, nn.MaxPool2d) for m in backbone.modules())
    with pytest.raises(ValueError, match="'cifar' has output_stride 8, not 16"):
        ResNet(18, stem="cifar", output_stride=16)


@pytest.mark.parametrize("attention", NAMES)
@pytest.mark.parametrize("depth", [18, 50])
def test_the_module_follows_the_last_norm(attention: str, depth: int) -> None:
    """Every block has one, of the width of what is added to the shortcut."""
    with torch.device("meta"):
        backbone = ResNet(depth, attention=attention)
    for name, block in backbone.named_modules():
        if hasattr(block, "downsample"):
            last = block.bn2 if depth == 18 else block.bn3
            expected = build_attention(attention, last.num_features, nn.BatchNorm2d)
            assert type(block.attention) is type(expected), name
            assert parameters(block.attention) == parameters(expected)


def test_the_module_acts_before_the_addition() -> None:
    """With a gate that is always shut, a block passes on its shortcut alone."""
    block = ResNet(18, stem="cifar", attention="eca").eval().layer1[0]

    class Shut(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 0 * x

    block.attention = Shut()
    x = torch.randn(1, 64, 8, 8)
    assert torch.equal(block(x), x.relu())


@pytest.mark.parametrize("attention", NAMES)
def test_every_parameter_learns(attention: str) -> None:
    torch.manual_seed(0)
    network = ImageClassifier(ResNet(18, stem="cifar", attention=attention), 10)
    for name, parameter in network.named_parameters():
        if name.endswith("gamma"):  # zero at the start: alpha gets its gradient through it
            nn.init.constant_(parameter, 0.1)
    network(torch.rand(2, 3, 16, 24)).logits.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("depth", [18, 50])
def test_without_attention_no_key_changes(depth: int) -> None:
    with torch.device("meta"):
        keys = ResNet(depth).state_dict().keys()
        with_module = ResNet(depth, attention="se").state_dict().keys()
    assert not any("attention" in key for key in keys)
    assert {key for key in with_module if ".attention." not in key} == set(keys)


def test_pyramidal_networks_carry_it_too() -> None:
    plain, carrying = (PyConvResNet(18, attention=name) for name in ("none", "gct"))
    assert parameters(carrying) - parameters(plain) == 5_760
    assert carrying(torch.rand(1, 3, 32, 32))[-1].shape == (1, 512, 4, 4)


def test_gct_starts_as_the_identity() -> None:
    x = torch.randn(2, 8, 5, 7)
    for name in ("gct", "gct_l1"):
        assert torch.equal(build_attention(name, 8, nn.BatchNorm2d)(x), x)


def test_squeeze_and_excitation_against_its_formula() -> None:
    module = build_attention("se", 32, nn.BatchNorm2d)
    x = torch.randn(2, 32, 5, 7)
    w1, w2 = module.reduce.weight[..., 0, 0], module.expand.weight[..., 0, 0]
    z = x.mean((2, 3))  # eq. 2
    s = (w2 @ (w1 @ z.T + module.reduce.bias[:, None]).relu() + module.expand.bias[:, None]).T
    torch.testing.assert_close(module(x), x * s.sigmoid()[..., None, None])


def test_cbam_against_its_formula() -> None:
    module = build_attention("cbam", 32, nn.BatchNorm2d).eval()
    x = torch.randn(2, 32, 5, 7)
    w1, w2 = (module.perceptron[i].weight[..., 0, 0] for i in (0, 2))
    shared = [w2 @ (w1 @ z.T).relu() for z in (x.mean((2, 3)), x.amax((2, 3)))]
    x1 = x * (shared[0] + shared[1]).T.sigmoid()[..., None, None]  # eq. 2
    pooled = torch.stack([x1.amax(1), x1.mean(1)], 1)
    gate = nn.functional.conv2d(pooled, module.places.conv.weight, padding=3)
    scale = 1 / (1 + module.places.bn.eps) ** 0.5  # a fresh norm in evaluation
    torch.testing.assert_close(module(x), x1 * (gate * scale).sigmoid())


def test_eca_kernel_sizes_are_odd_and_grow() -> None:
    assert [eca_kernel_size(c) for c in (64, 128, 256, 512, 1024, 2048)] == [3, 5, 5, 5, 5, 7]


def test_an_unknown_name_is_refused(small_config) -> None:
    with pytest.raises(ValueError, match="attention must be one of none, strip_pool"):
        build_attention("ecaa", 8, nn.BatchNorm2d)
    with pytest.raises(ConfigError, match="TRAIN.attention must be one of .*did you mean eca"):
        load_config(small_config, ["TRAIN.attention", "ecaa"])


def test_the_switch_reaches_segmenters_and_checkpoints(small_config) -> None:
    """A checkpoint without the modules initialises a network with them, which stay new."""
    plain = build_network(load_config(small_config))
    config = load_config(small_config, ["TRAIN.attention", "eca"])
    network = build_network(config)
    assert parameters(build_backbone(config.TRAIN)) == parameters(network.backbone)
    report = load_weights(network, plain.state_dict(), origin="plain", exact=False)
    assert len(report.new) == 8
    assert all(".attention." in key for key in report.new)


def test_networks_of_timm_take_none(small_config) -> None:
    overrides = ["TRAIN.attention", "se", "TRAIN.backbone", "timm/resnet18"]
    with pytest.raises(ConfigError, match="timm/resnet18 takes no attention"):
        build_network(load_config(small_config, overrides))


@pytest.mark.parametrize("attention", NAMES)
def test_group_norm_leaves_no_batch_norm(attention: str) -> None:
    with torch.device("meta"):
        backbone = ResNet(18, attention=attention, norm_layer=group_norm)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())


@pytest.mark.parametrize("attention", NAMES)
def test_any_size_passes_in_float64(attention: str) -> None:
    """Odd sizes, a single pixel, a batch of one; gradients are those of the function."""
    torch.manual_seed(0)
    module = build_attention(attention, 16, nn.BatchNorm2d).double().eval()
    for size in ((1, 1), (5, 1), (3, 4)):
        x = torch.randn(1, 16, *size, dtype=torch.float64, requires_grad=True)
        assert module(x).shape == x.shape
        assert torch.autograd.gradcheck(module, x)
