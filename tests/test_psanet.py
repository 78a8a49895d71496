"""Point-wise spatial attention: the re-indexing against loops, the head against its parts."""

import pytest
import torch
from torch import Tensor

from stripseg.model.psanet import PointwiseSpatialAttention, PSANetHead, collect_attention


def loops(mask: Tensor, mask_height: int, mask_width: int) -> Tensor:
    """(N, sources, targets): the definition, one entry at a time."""
    batch, _, height, width = mask.shape
    result = torch.zeros(batch, height, width, height, width, dtype=mask.dtype)
    for h in range(height):
        for w in range(width):
            for i in range(height):
                for j in range(width):
                    row = i - h + (mask_height - 1) // 2
                    column = j - w + (mask_width - 1) // 2
                    if 0 <= row < mask_height and 0 <= column < mask_width:
                        result[:, i, j, h, w] = mask[:, row * mask_width + column, h, w]
    return result.reshape(batch, height * width, height * width)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize(
    ("height", "width", "mask_height", "mask_width"),
    [(4, 5, 7, 9), (4, 5, 3, 5), (3, 3, 1, 1), (2, 6, 9, 3), (1, 4, 1, 7)],
)
def test_masks_are_reindexed_as_loops_do(height, width, mask_height, mask_width):
    mask = random(2, mask_height * mask_width, height, width).requires_grad_()
    ours = collect_attention(mask, mask_height, mask_width)
    expected = loops(mask, mask_height, mask_width)
    assert torch.equal(ours, expected)
    cotangent = random(*ours.shape)
    gradients = [torch.autograd.grad((x * cotangent).sum(), mask)[0] for x in (ours, expected)]
    torch.testing.assert_close(*gradients)


def branch(direction: str, **options) -> PointwiseSpatialAttention:
    torch.manual_seed(0)
    return PointwiseSpatialAttention(16, direction, **options).double().eval()


def test_distribute_is_the_transpose_of_collect():
    x = random(2, 4, 3, 4)
    options = {"mask_size": (5, 7), "softmax": False}
    collect, distribute = (branch(word, **options) for word in ("collect", "distribute"))
    assert torch.equal(distribute.attention(x), collect.attention(x).transpose(1, 2))


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("direction", ["collect", "distribute"])
def test_weights_of_the_sources_of_a_position_sum_to_one(direction: str, compact: bool):
    size = (3, 4) if compact else (5, 7)
    attention = branch(direction, mask_size=size, compact=compact).attention(random(2, 4, 3, 4))
    assert attention.shape == (2, 12, 12)
    torch.testing.assert_close(attention.sum(1), torch.ones(2, 12, dtype=torch.float64))


def test_a_uniform_mask_averages_the_map():
    """Equal weights for all sources: every position gets the mean of the (shrunk) map."""
    module = branch("collect", mask_size=(9, 9), shrink_factor=1)
    torch.nn.init.zeros_(module.predict[-1].weight)
    x = random(1, 16, 5, 5)
    expected = module.reduce(x).mean(dim=(2, 3), keepdim=True).expand(-1, -1, 5, 5)
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize(("factor", "expected"), [(1, (7, 10)), (2, (4, 5)), (3, (3, 4))])
def test_shrinking_keeps_the_corners(factor: int, expected: tuple[int, int]):
    assert branch("collect", mask_size=(5, 5), shrink_factor=factor)(random(1, 16, 7, 10)).shape[
        2:
    ] == torch.Size(expected)


def test_the_normalization_factor_divides():
    x = random(1, 16, 5, 5)
    one, four, mask = (
        branch("collect", mask_size=(5, 5), normalization_factor=n)(x) for n in (1.0, 4.0, None)
    )
    torch.testing.assert_close(one / 4, four)
    torch.testing.assert_close(one / 25, mask)


def test_a_compact_mask_at_another_size_says_so():
    module = branch("collect", mask_size=(3, 3), compact=True)
    with pytest.raises(ValueError, match="compact PSANet works at its training size only"):
        module(random(1, 16, 9, 9))


def test_another_direction_is_refused():
    with pytest.raises(ValueError, match="'collect' or 'distribute', not 'both'"):
        branch("both", mask_size=(3, 3))


@pytest.mark.parametrize("directions", [("collect",), ("distribute",), ("collect", "distribute")])
@pytest.mark.parametrize(("height", "width"), [(7, 9), (6, 8)])
def test_the_head_works_at_even_sizes_too(directions, height: int, width: int):
    """The original cannot concatenate an even map with its shrunk and enlarged self."""
    channels = (4, 8, 16, 32)
    head = PSANetHead(channels, 3, directions=directions, mask_size=(7, 9))
    logits = head([torch.randn(2, c, height, width) for c in channels])
    assert logits.shape == (2, 3, height, width)
    logits.sum().backward()
    assert all(p.grad is not None for p in head.parameters())
