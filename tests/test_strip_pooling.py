"""The two modules of the paper equal its formulas, at every size a network meets."""

import pytest
import torch
from reference import (
    conv_bn,
    fill_at_random,
    mixed_pooling_module,
    parameter_count,
    strip_pooling_module,
)
from torch import Tensor, nn
from torch.nn import functional as F

from stripseg.config.load import config_from
from stripseg.model.build import build_segmenter
from stripseg.model.layers import bin_masks, grid_average_pool, kept_bin_masks, resize
from stripseg.model.strip_pooling import (
    MixedPoolingModule,
    PointwiseControl,
    StripConvolution,
    StripPoolingModule,
    pool_columns,
    pool_rows,
)

SIZES = [(1, 7, 11), (2, 5, 3), (1, 21, 33), (3, 13, 2)]  # (N, H, W): odd, narrow, batch of one
POOLS = [(20, 12), (5, 3), (4,), ()]


def random_input(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)


def ready(module: nn.Module, *, training: bool) -> nn.Module:
    module = module.double().train(training)
    fill_at_random(module)
    return module


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def assert_same_with_gradients(module: nn.Module, ours: Tensor, expected: Tensor, x: Tensor):
    """Values, and the gradients of the input and of every parameter, to float64 accuracy."""
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-10)
    cotangent = random_input(*ours.shape).detach()
    inputs = {"input": x, **dict(module.named_parameters())}
    mine = torch.autograd.grad(ours, list(inputs.values()), cotangent)
    theirs = torch.autograd.grad(expected, list(inputs.values()), cotangent)
    for name, gradient, reference in zip(inputs, mine, theirs, strict=True):
        torch.testing.assert_close(
            gradient, reference, rtol=1e-7, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize("along", ["height", "width"])
def test_a_strip_convolution_is_the_convolution_it_holds(along: str, length: int, batch: int):
    """In front of batch norm too, whose gradients depend on the strides it is handed."""
    module = nn.Sequential(StripConvolution(6, along=along), nn.BatchNorm2d(6))
    module = ready(module, training=False)
    shape = (length, 1) if along == "height" else (1, length)
    x = random_input(batch, 6, *shape)
    weights = {f"strip.{name}": value for name, value in weights_of(module).items()}
    expected = conv_bn(x, weights, "strip", training=False)
    assert_same_with_gradients(module, module(x), expected, x)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("batch", "height", "width"), SIZES)
def test_strip_pooling_is_the_papers(batch: int, height: int, width: int, training: bool):
    module = ready(StripPoolingModule(6), training=training)
    x = random_input(batch, 6, height, width)
    expected = strip_pooling_module(x, weights_of(module), training=training)
    assert_same_with_gradients(module, module(x), expected, x)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("pools", POOLS, ids=str)
@pytest.mark.parametrize(("batch", "height", "width"), SIZES)
def test_mixed_pooling_is_the_papers(
    batch: int, height: int, width: int, pools: tuple[int, ...], training: bool
):
    module = ready(MixedPoolingModule(8, pools), training=training)
    x = random_input(batch, 8, height, width)
    expected = mixed_pooling_module(x, weights_of(module), pools, training=training)
    assert_same_with_gradients(module, module(x), expected, x)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1)])
def test_a_map_of_one_row_or_column(height: int, width: int):
    x = random_input(1, 8, height, width)
    strips = ready(StripPoolingModule(8), training=False)
    mixed = ready(MixedPoolingModule(8), training=False)
    torch.testing.assert_close(
        strips(x), strip_pooling_module(x, weights_of(strips), training=False)
    )
    torch.testing.assert_close(
        mixed(x), mixed_pooling_module(x, weights_of(mixed), (20, 12), training=False)
    )


@pytest.mark.parametrize("module", [StripPoolingModule(4), MixedPoolingModule(4, (3, 2))])
def test_gradients_equal_finite_differences(module: nn.Module):
    module = ready(module, training=False)
    assert torch.autograd.gradcheck(module, (random_input(1, 4, 3, 5),))


def test_training_updates_the_running_statistics_once():
    module = ready(StripPoolingModule(4), training=True)
    before = module.rows[1].running_mean.clone()
    x = random_input(2, 4, 5, 7).detach()
    module(x)
    strip = F.conv2d(x.mean(3, keepdim=True), module.rows[0].weight, padding=(1, 0))
    expected = 0.9 * before + 0.1 * strip.mean((0, 2, 3))
    torch.testing.assert_close(module.rows[1].running_mean, expected)


def test_attention_is_a_share_of_every_position():
    module = ready(StripPoolingModule(6), training=False)
    x = random_input(2, 6, 5, 9)
    attention = module.attention(x)
    assert attention.shape == x.shape
    assert 0 < attention.min() < attention.max() < 1
    torch.testing.assert_close(module(x), x * attention)


def test_a_position_sees_its_whole_row_and_column_and_their_neighbours_only():
    module = ready(StripPoolingModule(3), training=False)
    x = random_input(1, 3, 9, 11)
    (gradient,) = torch.autograd.grad(module.attention(x)[0, :, 4, 6].sum(), x)
    seen = gradient[0].abs().sum(0) > 0
    expected = torch.zeros(9, 11, dtype=torch.bool)
    expected[3:6, :] = True  # kernels of 3 along the strip reach one row
    expected[:, 5:8] = True  # or column to either side
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("channels", [1, 64, 512])
def test_strip_pooling_has_the_published_size(channels: int):
    with torch.device("meta"):
        module = StripPoolingModule(channels)
    assert parameter_count(module) == 7 * channels**2 + 5 * channels


@pytest.mark.parametrize(("channels", "count"), [(256, 276_096), (1024, 4_397_568)])
def test_mixed_pooling_has_the_published_size(channels: int, count: int):
    with torch.device("meta"):
        module = MixedPoolingModule(channels)
    assert parameter_count(module) == count


@pytest.mark.parametrize("channels", [1, 6, 1023])
def test_channels_that_cannot_be_quartered_are_refused(channels: int):
    with pytest.raises(ValueError, match=f"multiple of 4, not {channels}"):
        MixedPoolingModule(channels)


def test_maps_of_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="a map of 4 channels is given to a module of 8"):
        StripPoolingModule(8)(torch.zeros(1, 4, 5, 6))


@pytest.mark.parametrize("bins", [1, 2, 3, 6, 12, 20])
@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 7), (5, 3), (12, 12), (13, 20), (19, 41), (61, 60)]
)
def test_grid_average_pool_is_adaptive_pooling(height: int, width: int, bins: int):
    x = random_input(2, 3, height, width)
    ours, expected = grid_average_pool(x, bins), F.adaptive_avg_pool2d(x, bins)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-13)
    cotangent = random_input(*expected.shape).detach()
    mine, theirs = (torch.autograd.grad(out, x, cotangent)[0] for out in (ours, expected))
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("size", "bins"), [(60, 20), (60, 12), (60, 9), (60, 1), (300, 1)])
@pytest.mark.parametrize("mixed", [True, False])
def test_grid_average_pool_has_no_bias_in_half_precision(
    size: int, bins: int, dtype: torch.dtype, mixed: bool
):
    x = (torch.rand(1, 64, size, size) + 1).to(dtype)  # sums of a whole map overflow float16
    with torch.autocast("cpu", dtype, enabled=mixed):
        ours = grid_average_pool(x, bins)
    assert ours.dtype == dtype
    expected = F.adaptive_avg_pool2d(x.double(), bins)
    assert abs(ours.double().mean() / expected.mean() - 1) < 5e-4
    torch.testing.assert_close(ours.double(), expected, rtol=3 * torch.finfo(dtype).eps, atol=0)


def test_grid_average_pool_is_exported_for_any_size():
    class Pool(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return grid_average_pool(x, 6)

    x = torch.randn(1, 2, 24, 30)
    sizes = {"x": {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}}
    exported = torch.export.export(Pool(), (x,), dynamic_shapes=sizes).module()
    other = torch.randn(1, 2, 17, 41)
    assert torch.equal(exported(other), grid_average_pool(other, 6))


def test_masks_that_a_test_made_serve_training() -> None:
    """GPUs keep them."""
    arguments = (9, 4, torch.float32, torch.device("cpu"))
    with torch.inference_mode():
        kept = kept_bin_masks(*arguments)
    assert kept_bin_masks(*arguments)[0] is kept[0]
    assert not any(mask.is_inference() for mask in kept)
    assert all(map(torch.equal, kept, bin_masks(*arguments)))


def test_grid_average_pool_in_channels_last():
    x = random_input(2, 5, 13, 17).detach()
    expected = grid_average_pool(x, 4)
    torch.testing.assert_close(
        grid_average_pool(x.contiguous(memory_format=torch.channels_last), 4), expected
    )


def test_resizing_a_strip_repeats_it():
    row = random_input(1, 2, 1, 7)
    torch.testing.assert_close(resize(row, (5, 7)), row.expand(1, 2, 5, 7))


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1, 4, 1), (3, 2, 1, 6)], ids=str)
def test_strips_are_means(shape: tuple[int, ...], memory_format: torch.memory_format):
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=memory_format)
    for pool, dim in ((pool_rows, 3), (pool_columns, 2)):
        torch.testing.assert_close(pool(x), x.mean(dim, keepdim=True))
        assert torch.autograd.gradcheck(pool, x.clone().requires_grad_())


# ---- variants for ablations


def test_strips_may_be_maxima() -> None:
    x = random_input(2, 8, 5, 7)
    module = ready(StripPoolingModule(8, pooling="max"), training=False)
    rows = module.rows(x.amax(3, keepdim=True))
    columns = module.columns(x.amax(2, keepdim=True))
    expected = x * torch.sigmoid(module.fuse(F.relu(rows + columns)))
    assert_same_with_gradients(module, module(x), expected, x)
    mixed = ready(MixedPoolingModule(8, (3,), branches="long", pooling="max"), training=False)
    reduced = mixed.reduce_long(x)
    strips = mixed.columns(reduced.amax(2, keepdim=True)) + mixed.rows(
        reduced.amax(3, keepdim=True)
    )
    expected = F.relu(x + mixed.expand(mixed.fuse_long(F.relu(strips))))
    assert_same_with_gradients(mixed, mixed(x), expected, x)


@pytest.mark.parametrize("branch", ["short", "long"])
def test_one_branch_of_mixed_pooling_is_that_of_both(branch: str) -> None:
    """With the other one zero, and its part of the last convolution left out."""
    x = random_input(2, 16, 9, 6)
    both = ready(MixedPoolingModule(16, (5, 3)), training=False)
    one = MixedPoolingModule(16, (5, 3), branches=branch).double().eval()
    state = {key: value for key, value in both.state_dict().items() if key in one.state_dict()}
    part = slice(0, 4) if branch == "short" else slice(4, 8)
    state["expand.0.weight"] = state["expand.0.weight"][:, part]
    one.load_state_dict(state)
    with torch.no_grad():
        kept = {"short": both.short_range(x), "long": both.long_range(x)}
        halves = [y if name == branch else torch.zeros_like(y) for name, y in kept.items()]
        torch.testing.assert_close(one(x), F.relu(x + both.expand(torch.cat(halves, dim=1))))


@pytest.mark.parametrize("channels", [4, 64])
def test_the_control_has_as_many_parameters_and_sees_one_position(channels: int) -> None:
    control = ready(PointwiseControl(channels), training=False)
    assert parameter_count(control) == parameter_count(StripPoolingModule(channels)) + 4 * channels
    x = random_input(1, channels, 5, 6)
    (gradient,) = torch.autograd.grad(control(x)[0, :, 2, 3].sum(), x)
    seen = gradient.abs().sum(dim=(0, 1)) > 0
    assert seen.sum() == 1
    assert seen[2, 3]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (StripPoolingModule, "average", ("short", "long"))),
        ({"strip_pooling": "max"}, (StripPoolingModule, "max", ("short", "long"))),
        ({"spm_control": True}, (PointwiseControl, None, ("short", "long"))),
        ({"mixed_pooling_branches": "long"}, (StripPoolingModule, "average", ("long",))),
    ],
)
def test_options_choose_the_variant(options: dict, expected: tuple) -> None:
    train = {"layers": 18, "width": 0.125, **options}
    config = config_from({"DATA": {"data_root": ".", "classes": 5}, "TRAIN": train}, [], source="")
    network = build_segmenter(config)
    kind, pooling, branches = expected
    block = network.backbone.layer4[1].strip_pooling
    assert type(block) is kind
    assert getattr(block, "pooling", None) == pooling
    assert network.head.mixed_pooling[1].branches == branches
