"""The whole network: any size in, the same size out, everything learns, nothing depends on luck."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from reference import fcn, fill_at_random, spnet
from torch import Tensor, nn
from torch.nn import functional as F

from stripseg.model.layers import group_norm
from stripseg.model.segmenter import Segmenter

NETWORKS = {"spnet": spnet, "fcn": fcn}


@pytest.fixture(scope="module")
def network() -> Segmenter:
    """SPNet-18 of five classes, ready to test; no test here changes it."""
    network = spnet().eval()
    fill_at_random(network)
    return network


def images(batch: int = 2, height: int = 33, width: int = 41) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(3))


@torch.inference_mode()
def logits_of(network: Segmenter, image: Tensor) -> Tensor:
    return network(image).logits


def assert_everything_has_a_gradient(network: Segmenter) -> None:
    """Of every parameter: there, finite and not zero everywhere."""
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize(
    ("height", "width"), [(33, 41), (32, 48), (17, 65), (47, 30), (8, 3), (1, 1)]
)
def test_any_size_gives_logits_of_that_size(network: Segmenter, height: int, width: int):
    logits = logits_of(network, images(1, height, width))
    assert logits.shape == (1, 5, height, width)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("zoom_factor", "expected"), [(1, (5, 6)), (2, (9, 11)), (4, (17, 21)), (8, (33, 41))]
)
def test_zoom_factor_decides_the_size(zoom_factor: int, expected: tuple[int, int]):
    network = fcn()
    network.zoom_factor = zoom_factor
    output = network(images())
    assert output.logits.shape == output.auxiliary.shape == (2, 5, *expected)


@pytest.mark.parametrize(
    ("zoom_factor", "expected"), [(1, (4, 6)), (2, (8, 12)), (4, (16, 24)), (8, (32, 48))]
)
def test_without_aligned_corners_sizes_are_multiples(zoom_factor: int, expected: tuple[int, int]):
    network = fcn()
    network.align_corners, network.zoom_factor = False, zoom_factor
    output = network(images(height=32, width=48))
    assert output.logits.shape == output.auxiliary.shape == (2, 5, *expected)


@pytest.mark.parametrize(
    ("align_corners", "coarse", "size"),
    [(True, lambda x: x[..., ::8, ::8], (41, 57)), (False, nn.AvgPool2d(8), (48, 64))],
)
def test_a_logit_lies_on_the_pixels_that_it_was_computed_from(
    align_corners: bool, coarse: Callable[[Tensor], Tensor], size: tuple[int, int]
):
    """A brightness that grows evenly comes back: no pixel's logits are those of its neighbours.

    Features at the pixels 0, 8, 16, ..., or of 8 x 8 pixels each.
    """
    rows, columns = (torch.arange(side).float() for side in size)
    image = (3 * rows[:, None] + 5 * columns).expand(1, 1, *size)
    network = Segmenter(
        nn.Identity(), lambda features: coarse(features[0][None]), align_corners=align_corners
    ).eval()
    found = network(image).logits
    inner = (..., slice(4, -4), slice(4, -4))
    torch.testing.assert_close(found[inner], image[inner], rtol=0, atol=1e-3)
    network.align_corners = not align_corners
    assert (network(image).logits - image)[inner].abs().max() > 10  # more than two pixels away


def test_zoom_factor_1_does_not_resize(network: Segmenter):
    features = network.backbone(images())
    expected = network.head(features)
    small = Segmenter(network.backbone, network.head, zoom_factor=1).eval()
    assert torch.equal(small(images()).logits, expected)


@pytest.mark.parametrize("zoom_factor", [0, 3, 16])
def test_other_zoom_factors_are_refused(network: Segmenter, zoom_factor: int):
    with pytest.raises(ValueError, match=f"1, 2, 4 or 8, not {zoom_factor}"):
        Segmenter(network.backbone, network.head, zoom_factor=zoom_factor)


def test_auxiliary_logits_exist_in_training_only():
    network = spnet()
    assert network(images()).auxiliary.shape == (2, 5, 33, 41)
    assert network.eval()(images()).auxiliary is None
    without = spnet(auxiliary=False)
    assert without(images()).auxiliary is None


def test_new_layers_are_what_no_backbone_file_brings(network: Segmenter):
    assert network.new_layers() == [network.head, network.auxiliary_head]
    without = Segmenter(network.backbone, network.head)
    assert without.new_layers() == [network.head]


@pytest.mark.parametrize("depth", [18, 34, 50])
@pytest.mark.parametrize("arch", NETWORKS)
def test_every_parameter_learns(arch: str, depth: int):
    network = NETWORKS[arch](depth)
    output = network(images())
    label = torch.randint(5, (2, 33, 41), generator=torch.Generator().manual_seed(5))
    (F.cross_entropy(output.logits, label) + F.cross_entropy(output.auxiliary, label)).backward()
    assert_everything_has_a_gradient(network)


@pytest.mark.parametrize("arch", NETWORKS)
def test_saved_and_loaded_is_the_same_network(arch: str, tmp_path: Path):
    network = NETWORKS[arch]()
    network(images())  # the running statistics are part of it
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    loaded = NETWORKS[arch]()
    loaded.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
    assert torch.equal(logits_of(network.eval(), images()), logits_of(loaded.eval(), images()))


def test_testing_is_deterministic(network: Segmenter):
    assert torch.equal(logits_of(network, images()), logits_of(network, images()))


def test_testing_changes_nothing(network: Segmenter):
    before = {key: value.clone() for key, value in network.state_dict().items()}
    logits_of(network, images())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_an_image_does_not_depend_on_its_batch(network: Segmenter):
    together = logits_of(network, images())
    for index in range(2):
        alone = logits_of(network, images()[index : index + 1])
        torch.testing.assert_close(alone[0], together[index], rtol=1e-4, atol=1e-5)


def test_memory_format_changes_no_number(network: Segmenter):
    expected = logits_of(network, images())
    converted = spnet().eval()
    converted.load_state_dict(network.state_dict())
    converted = converted.to(memory_format=torch.channels_last)
    image = images().contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(logits_of(converted, image), expected, rtol=1e-4, atol=1e-5)


def test_dropout_acts_in_training_only(network: Segmenter):
    assert network.head.dropout.p == network.auxiliary_head.dropout.p == 0.1  # the paper's
    training = spnet(dropout=0.5)
    assert not torch.equal(training(images()).logits, training(images()).logits)


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_group_norm_trains_on_single_images(build: Callable[..., Segmenter]):
    network = build(norm_layer=group_norm)
    output = network(images(1))
    (output.logits.square().mean() + output.auxiliary.square().mean()).backward()
    assert_everything_has_a_gradient(network)


def test_a_small_network_learns_two_images_by_heart():
    """Four colours, each a class: 25 steps take the loss below a tenth of its start."""
    torch.manual_seed(0)
    network = spnet(classes=4, dropout=0.0, width=0.25)
    label = torch.zeros(2, 33, 41, dtype=torch.long)
    label[0, 8:25, 5:20] = 1
    label[0, :, 30:] = 2
    label[1, 20:, :] = 3
    label[1, 3:15, 12:30] = 1
    image = torch.randn(4, 3)[label].permute(0, 3, 1, 2) + 0.1 * torch.randn(2, 3, 33, 41)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(25):
        output = network(image)
        loss = F.cross_entropy(output.logits, label)
        losses.append(loss.item())
        optimizer.zero_grad()
        (loss + 0.4 * F.cross_entropy(output.auxiliary, label)).backward()
        optimizer.step()
    assert losses[-1] < 0.1 * losses[0]
