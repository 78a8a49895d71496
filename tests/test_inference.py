"""The sliding window against its definition, written with numpy and OpenCV in float64."""

import logging
import math
from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from stripseg.config.load import load_config
from stripseg.engine import build_engine
from stripseg.model.segmenter import Segmenter
from stripseg.util.inference import sliding_window as inference
from stripseg.util.inference.score_map import (
    _ScaleSums,
    resampling,
    resized_rows,
    resized_window,
    scaled_size,
    window_starts,
)
from stripseg.util.inference.sliding_window import InferenceSettings, SlidingWindow

ROOT = Path(__file__).resolve().parent.parent
CLASSES = 4
MEAN, STD = np.array([100.0, 110.0, 120.0]), np.array([50.0, 60.0, 70.0])


class Network(nn.Module):
    """Sees colours, edges and where in the window it is; of output stride 1 or 8."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(CLASSES, 3, 3, 3, generator=generator) * 0.5
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype)
        logits = F.conv2d(x, weight, padding=1)
        position = torch.linspace(0, 1, x.shape[-1], dtype=x.dtype)
        logits = logits + position * torch.arange(CLASSES, dtype=x.dtype).view(1, -1, 1, 1)
        return logits[..., :: self.stride, :: self.stride]


class Stages(Network):
    """The same as a backbone of one stage, of stride 8."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [super().forward(x)[..., ::8, ::8]]


class Last(nn.Module):
    """A head that returns the last stage as it is."""

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return features[-1]


def resized(array: np.ndarray, height: int, width: int) -> np.ndarray:
    return cv2.resize(array, (width, height), interpolation=cv2.INTER_LINEAR).reshape(
        height, width, -1
    )


def window_scores(network: Network, window: np.ndarray, flip: bool) -> np.ndarray:
    """(h, w, 3) in 0..255 -> (h, w, K)."""
    x = torch.from_numpy((window - MEAN) / STD).permute(2, 0, 1).unsqueeze(0)
    scores = []
    for mirrored in (False, True)[: 1 + flip]:
        logits = network(x.flip(3) if mirrored else x)
        if network.stride > 1:
            logits = F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=True)
        softmax = logits.softmax(1)
        scores.append(softmax.flip(3) if mirrored else softmax)
    return np.mean([s[0].permute(1, 2, 0).numpy() for s in scores], axis=0)


def expected(
    network: Network,
    image: np.ndarray,
    crop: tuple[int, int],
    base_size: int,
    scales: Sequence[float],
    flip: bool,
) -> np.ndarray:
    """(H, W, K) by the recipe of the semseg family."""
    height, width = image.shape[:2]
    total = np.zeros((height, width, CLASSES))
    for scale in scales:
        long_side = round(scale * (base_size or max(height, width)))
        new_height, new_width = (
            (long_side, round(long_side / height * width))
            if height > width
            else (round(long_side / width * height), long_side)
        )
        scaled = resized(image.astype(np.float64), new_height, new_width)
        pad = [max(c - s, 0) for c, s in zip(crop, (new_height, new_width), strict=True)]
        before = [p // 2 for p in pad]
        padded = np.tile(MEAN, (new_height + pad[0], new_width + pad[1], 1))
        inside = (slice(before[0], before[0] + new_height), slice(before[1], before[1] + new_width))
        padded[inside] = scaled
        scores = np.zeros((*padded.shape[:2], CLASSES))
        visits = np.zeros(padded.shape[:2])
        stride = [math.ceil(c * 2 / 3) for c in crop]
        counts = [
            math.ceil((side - c) / s) + 1
            for side, c, s in zip(padded.shape, crop, stride, strict=False)
        ]
        for row in range(counts[0]):
            for column in range(counts[1]):
                bottom = min(row * stride[0] + crop[0], padded.shape[0])
                right = min(column * stride[1] + crop[1], padded.shape[1])
                place = (slice(bottom - crop[0], bottom), slice(right - crop[1], right))
                scores[place] += window_scores(network, padded[place], flip)
                visits[place] += 1
        scores = (scores / visits[..., None])[inside]
        total += resized(scores, height, width)
    return total / len(scales)


def photo(height: int, width: int) -> np.ndarray:
    generator = np.random.Generator(np.random.PCG64(height * 1000 + width))
    return cv2.GaussianBlur(generator.integers(0, 256, (height, width, 3), np.uint8), (5, 5), 0)


def engine(network: nn.Module, **options) -> SlidingWindow:
    settings = InferenceSettings(CLASSES, mean=tuple(MEAN), std=tuple(STD), **options)
    return SlidingWindow(network.eval(), settings)


CASES = {
    "several windows": (60, 90, (32, 40), 90, [1.0], True),
    "smaller than the window": (20, 25, (48, 40), 0, [1.0], True),
    "smaller on one side": (20, 90, (33, 40), 0, [1.0], False),
    "tall": (90, 40, (32, 32), 70, [1.0], True),
    "square": (50, 50, (24, 24), 61, [1.0], True),
    "exactly the window": (32, 40, (32, 40), 0, [1.0], True),
    "many scales": (45, 60, (32, 40), 64, [0.5, 1.0, 1.75], True),
    "enlarged": (30, 41, (40, 40), 100, [1.25], False),
}


@pytest.mark.parametrize("stride", [1, 8])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_probabilities_are_the_definition(case, stride: int) -> None:
    height, width, crop, base_size, scales, flip = case
    network, image = Network(stride), photo(height, width)
    tester = engine(network, window=crop, base_size=base_size, scales=scales, flip=flip)
    ours = tester.probabilities(image).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(
        ours, expected(network, image, crop, base_size, scales, flip), atol=2e-5
    )
    np.testing.assert_allclose(ours.sum(2), 1, atol=1e-5)


def test_the_batch_size_changes_nothing() -> None:
    image, options = photo(70, 90), {"window": (32, 32), "scales": (0.75, 1.0)}
    results = [
        engine(Network(), batch_size=size, **options).probabilities(image) for size in (1, 5, 64)
    ]
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=1e-6)


MANY_SCALES = {"window": (32, 32), "scales": (0.5, 1.0, 1.75), "base_size": 150}


@pytest.mark.parametrize("size", [(97, 150), (150, 97), (20, 150)])
def test_strips_of_an_image_are_the_image(size, monkeypatch) -> None:
    image = photo(*size)
    monkeypatch.setattr(inference, "STRIP", 16)
    whole = engine(Network(8), **MANY_SCALES)
    strips = engine(Network(8), score_bytes=1, **MANY_SCALES)
    torch.testing.assert_close(
        strips.probabilities(image), whole.probabilities(image), rtol=0, atol=1e-6
    )
    assert torch.equal(strips.predict(image), whole.predict(image))


def test_strips_keep_only_the_rows_they_need(monkeypatch) -> None:
    monkeypatch.setattr(inference, "STRIP", 8)
    kept = []
    prepare = _ScaleSums.prepare

    def watched(self, first: int, last: int) -> list[int]:
        due = prepare(self, first, last)
        kept.append(len(self.sums))
        return due

    monkeypatch.setattr(_ScaleSums, "prepare", watched)
    options = {"window": (32, 32), "base_size": 0, "scales": (1.0,)}
    engine(Network(), score_bytes=1, **options).predict(photo(640, 40))
    assert len(kept) > 20
    assert max(kept) <= 32 + 2 * 22 + 8
    engine(Network(), **options).predict(photo(640, 40))
    assert kept[-1] == 640


def test_images_predicted_together_are_predicted_alone() -> None:
    images = [photo(60, 90), photo(40, 30), photo(90, 60)]
    passes = []

    class Counting(Network):
        def forward(self, x: Tensor) -> Tensor:
            passes.append(len(x))
            return super().forward(x)

    tester = engine(Counting(8), window=(32, 32), scales=(0.5, 1.0), batch_size=8)
    alone = [tester.predict(image) for image in images]
    before = len(passes)
    together = tester.predict_group(images)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)
    assert len(passes) - before < before
    assert all(size == 8 for size in passes[before:-1])


class Hungry(Network):
    """Runs out of memory with more than `most` windows at once, or as often as it is told."""

    def __init__(self, most: int, failures: int = 0) -> None:
        super().__init__(8)
        self.most, self.failures, self.sizes = most, failures, []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        if len(x) > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        if self.failures and len(x) == self.most:
            self.failures -= 1
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate")
        return super().forward(x)


def test_too_little_memory_means_smaller_steps_and_the_same_scores() -> None:
    image, said = photo(70, 90), []
    expected_scores = engine(Network(8), window=(32, 32)).probabilities(image)
    tester = engine(Hungry(2, failures=1), window=(32, 32), batch_size=16)
    tester.warn = said.append
    torch.testing.assert_close(tester.probabilities(image), expected_scores, rtol=0, atol=1e-6)
    assert [line.partition("continuing with ")[2] for line in said] == [
        "4 windows in a forward pass",
        "2 windows in a forward pass",
        "1 windows in a forward pass",
        "images strip by strip",
    ]
    tester.predict(image)
    assert len(said) == 4  # it remembers


def test_after_a_huge_image_small_ones_are_done_as_before() -> None:
    """And those of nearly its size in the portions that it took."""
    said: list[str] = []
    tester = engine(Hungry(2), window=(32, 32), batch_size=16)
    tester.warn = said.append
    tester.predict(photo(160, 160))
    assert len(said) == 3
    network = tester.network
    network.most, network.sizes = 16, []
    tester.predict(photo(120, 110))
    assert set(network.sizes) == {2}
    network.sizes = []
    tester.predict(photo(110, 100))
    assert max(network.sizes) == 16
    assert len(said) == 3


def test_every_engine_logs_each_step_to_less_memory(monkeypatch) -> None:
    """An engine built from a config, without a word about warnings, as every command does it."""

    class NineClasses(Hungry):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).repeat(1, 3, 1, 1)[:, :9]

    crop = [word for side in "hw" for word in (f"TEST.test_{side}", "33")]
    config = load_config(ROOT / "config/shapes/shapes_spnet18.yaml", crop)
    tester = build_engine(
        config,
        NineClasses(2).eval(),
        device=torch.device("cpu"),
        dtype=torch.float32,
        batch_size=8,
    )
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    monkeypatch.setattr(logging.getLogger("stripseg"), "handlers", [handler])
    tester.predict(photo(70, 90))
    tester.predict(photo(70, 90))
    assert [record.levelname for record in records] == ["WARNING"] * 2
    assert "1 windows in a forward pass" in records[-1].getMessage()


def test_too_little_memory_for_anything_is_told() -> None:
    tester = engine(Hungry(0), window=(32, 32))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        tester.predict(photo(40, 40))


def test_errors_of_the_network_are_not_taken_for_a_lack_of_memory() -> None:
    class Wrong(Network):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        engine(Wrong(), window=(32, 32)).predict(photo(40, 40))


def test_more_than_128_classes_are_resized_too() -> None:
    """OpenCV 5 cannot, which stops the older testers on ADE20K."""

    class Many(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.repeat(1, 50, 1, 1)

    settings = InferenceSettings(150, window=(16, 16), base_size=20)
    result = SlidingWindow(Many().eval(), settings).probabilities(photo(12, 18))
    assert result.shape == (150, 12, 18)


def test_outputs_with_an_auxiliary_part_are_understood() -> None:
    class Two(Network):
        def forward(self, x: Tensor):
            return super().forward(x), None

    image = photo(20, 30)
    results = [engine(n, window=(16, 16)).probabilities(image) for n in (Two(), Network())]
    assert torch.equal(*results)


def test_a_network_in_training_mode_is_refused() -> None:
    network = Network()
    tester = engine(network, window=(16, 16))
    network.train()
    with pytest.raises(RuntimeError, match="eval"):
        tester.predict(photo(20, 20))


@given(st.integers(1, 400), st.integers(1, 300), st.sampled_from([2 / 3, 0.5, 1.0]))
def test_windows_cover_the_side_without_gaps(extra: int, crop: int, rate: float) -> None:
    side = crop + extra
    starts = window_starts(side, crop, rate)
    assert starts[0] == 0
    assert starts[-1] == side - crop
    stride = math.ceil(crop * rate)
    assert all(0 < b - a <= stride for a, b in pairwise(starts))


@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(0.25, 2), st.integers(0, 2048))
def test_the_longer_side_gets_the_size(height: int, width: int, scale: float, base: int) -> None:
    size = scaled_size((height, width), scale, base)
    long_side = max(1, round(scale * (base or max(height, width))))
    assert max(size) == long_side == (size[0] if height > width else size[1])
    in_proportion = long_side * min(height, width) / max(height, width)
    assert min(size) == 1 or abs(min(size) - in_proportion) <= 0.5 + 1e-9


@pytest.mark.parametrize(("source", "target"), [(5, 12), (12, 5), (7, 7), (1, 4), (4, 1)])
def test_columns_are_mixed_as_interpolation_does(source: int, target: int) -> None:
    x, weights = torch.randn(3, source, 6), torch.rand(source)
    ours = resampling(source, target, aligned=False).mix_columns(x, weights)
    planes = (x * weights[:, None]).permute(2, 0, 1).unsqueeze(0)
    expected = F.interpolate(planes, (3, target), mode="bilinear", align_corners=False)
    torch.testing.assert_close(ours, expected[0].permute(1, 2, 0))


@pytest.mark.parametrize(("source", "target"), [(5, 12), (12, 5), (7, 7), (1, 4), (4, 1)])
def test_rows_are_mixed_on_gpus_as_on_the_cpu(source: int, target: int) -> None:
    """GPUs add two rows where the CPU multiplies by a matrix; both by their definition."""
    mixing, weights = resampling(source, target, aligned=False), torch.rand(source)
    x = torch.randn(source, 3 * 6)
    for first, end in ((0, target), (target // 2, target), (target - 1, target)):
        span = mixing.span(first, end)
        given = x[span], weights[span], first, end
        product, pairs = mixing.rows_by_product(*given), mixing.rows_in_pairs(*given)
        torch.testing.assert_close(pairs, product, rtol=1e-5, atol=1e-6)
        planes = (x * weights[:, None]).view(1, source, 3, 6).permute(0, 3, 1, 2)
        expected = F.interpolate(planes, (target, 3), mode="bilinear", align_corners=False)
        expected = expected[0].permute(1, 2, 0)[first:end]
        torch.testing.assert_close(product.view(-1, 3, 6), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("low", [(5, 7), (33, 40), (1, 1)])
@pytest.mark.parametrize("aligned", [True, False])
def test_windows_are_resized_on_gpus_as_on_the_cpu(low: tuple[int, int], aligned: bool) -> None:
    """GPUs interpolate both sides at once, the CPU one after the other and some rows at a time."""
    logits, size = torch.randn(2, 6, *low), (33, 40)
    chunks = [(0, 10), (10, 32), (32, 33)]
    rows = resized_rows(logits, size, chunks, align_corners=aligned)
    at_once = resized_window(logits, size, align_corners=aligned)
    torch.testing.assert_close(at_once, torch.cat(list(rows), dim=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("aligned", [True, False])
def test_the_engine_enlarges_logits_as_the_network_does(aligned: bool) -> None:
    """`coarse_logits` are enlarged by the engine, the others by the network."""
    torch.manual_seed(0)
    whole = Segmenter(Stages(), Last(), align_corners=aligned).eval()
    complete = nn.Identity().eval()
    complete.forward = lambda x: whole(x).logits
    settings = InferenceSettings(classes=CLASSES, base_size=48, window=(32, 48))
    picture = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    found, expected = (
        SlidingWindow(network, settings).probabilities(picture) for network in (whole, complete)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((20, 30, 3)), r"uint8, RGB, values 0 to 255, not \(20, 30, 3\) float64"),
        (np.zeros((20, 30), np.uint8), r"not \(20, 30\) uint8"),
        ("photo.jpg", "not str"),
    ],
)
def test_what_is_no_image_is_refused(image: object, message: str) -> None:
    settings = InferenceSettings(CLASSES, window=(16, 16))
    engine = SlidingWindow(Network().eval(), settings)
    with pytest.raises(TypeError, match=message):
        engine.predict(image)


def test_networks_of_other_outputs_are_refused() -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": x}

    settings = InferenceSettings(CLASSES, window=(16, 16))
    image = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(TypeError, match="returned a dict; wrap it"):
        SlidingWindow(Named().eval(), settings).predict(image)
    other = InferenceSettings(CLASSES + 2, window=(16, 16))
    with pytest.raises(ValueError, match=f"gives {CLASSES} classes, and InferenceSettings.classes"):
        SlidingWindow(Network().eval(), other).predict(image)


def test_what_is_not_said_is_the_configs_default() -> None:
    config = load_config(ROOT / "config/shapes/shapes_spnet18.yaml", ["TEST.base_size", "0"])
    options = {"device": torch.device("cpu"), "dtype": torch.float32, "batch_size": 8}
    configured = build_engine(config, Network().eval(), **options).settings
    plain = InferenceSettings(9, window=configured.window)
    for field in fields(InferenceSettings):
        ours, theirs = getattr(plain, field.name), getattr(configured, field.name)
        assert ours == theirs or list(ours) == list(theirs), field.name
