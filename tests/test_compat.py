"""Numbers of the reference implementations, reproduced from weights under the authors' names.

The fixtures lie in the folder STRIPSEG_COMPAT, or in `shared/compat` beside the checkout. Weights
and inputs are functions of names (`recipe.py` there); outputs are stored. The tolerances are the
ones measured for the fixtures: 3e-5 times the largest value for outputs.
"""

import importlib.util
import json
import os
import statistics
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from reference import fcn, spnet
from torch import Tensor, nn

from stripseg.config.errors import CheckpointError
from stripseg.dataset.catalogue import describe, raw_to_train_table
from stripseg.model.segmenter import Segmenter
from stripseg.model.strip_pooling import MixedPoolingModule, StripPoolingModule
from stripseg.model.weights import (
    MIXED_POOLING_RULES,
    STRIP_POOLING_RULES,
    load_weights,
    rename,
    translate,
)
from stripseg.util.inference import InferenceSettings, SlidingWindow
from stripseg.util.losses import SegmentationLoss, subsample_label
from stripseg.util.metrics import ConfusionMatrix, Scores
from stripseg.util.schedule import poly

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "compat"
FOLDER = Path(os.environ.get("STRIPSEG_COMPAT", BESIDE))
if not (FOLDER / "recipe.py").is_file():
    pytest.skip(
        f"no reference numbers in {FOLDER}; name their folder in STRIPSEG_COMPAT",
        allow_module_level=True,
    )


def load_recipe() -> ModuleType:
    """`recipe.py` of the fixtures, by its path."""
    spec = importlib.util.spec_from_file_location("compat_recipe", FOLDER / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


recipe = load_recipe()


def facts(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as stored:
        return dict(stored)


def authors_weights(name: str) -> dict[str, Tensor]:
    """The weights of a fixture under the author's names, made anew; their digest is checked."""
    described = facts(name)
    weights = recipe.weights_from_names([entry[:2] for entry in described["state_dict"]])
    if "weights_sha256" in described:
        assert recipe.weights_digest(weights) == described["weights_sha256"]
    return {key: torch.from_numpy(value) for key, value in weights.items()}


def make_input(shape: list[int], name: str = "input") -> Tensor:
    return torch.from_numpy(recipe.make_input(shape, name))


def assert_equals_stored(ours: Tensor, stored: np.ndarray) -> None:
    """Within the fixtures' tolerance, relative to the largest value stored."""
    assert tuple(ours.shape) == stored.shape
    difference = np.abs(ours.detach().numpy() - stored).max()
    assert difference <= 3e-5 * max(1.0, np.abs(stored).max())


def margin(scores: Tensor, dim: int) -> np.ndarray:
    """How far the best class is ahead of the second."""
    best, second = scores.topk(2, dim=dim).values.unbind(dim)
    return (best - second).detach().numpy()


# SPNet ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def released() -> dict[str, Tensor]:
    """A file as SPNet's train.py saves it, but for its content."""
    weights = authors_weights("spnet50_spm_150_97x129")
    return {"epoch": 120, "state_dict": {f"module.{key}": v for key, v in weights.items()}}


def loaded_spnet50(released: dict[str, Tensor]) -> Segmenter:
    network = spnet(50, 150, dropout=0.0)
    report = load_weights(network, released, origin="spnet50", exact=True)
    assert report.family == "SPNet"
    assert (report.new, report.unused) == ([], [])
    assert report.matched == len(released["state_dict"]) == len(network.state_dict())
    return network


def test_spnet50_gives_the_released_codes_logits(released: dict[str, Tensor]):
    name = "spnet50_spm_150_97x129"
    stored = arrays(name)
    network = loaded_spnet50(released).eval()
    image = make_input(facts(name)["input"]["shape"])
    assert recipe.array_digest(image.numpy()) == facts(name)["input"]["sha256"]
    with torch.inference_mode():
        features = network.backbone(image)
        auxiliary = network.auxiliary_head(features)
        logits = network(image).logits
    for stage, feature in zip(("c2", "c3", "c4"), features[1:], strict=True):
        assert_equals_stored(feature[:, ::64, ::4, ::4], stored[f"{stage}_probe"])
    assert_equals_stored(auxiliary[:, ::64, ::4, ::4], stored["aux_probe"])
    assert_equals_stored(logits[:, :, ::4, ::4], stored["logits"])
    different = logits.argmax(1).numpy() != stored["argmax"]
    assert (margin(logits, 1)[different] < 1e-4).all()


def test_spnet50_takes_the_released_codes_training_step(released: dict[str, Tensor]):
    """Losses, the gradient norm of every parameter, and the running statistics.

    Computed in float64: the stored norms are float32, in which some ReLU fall to the other side of
    zero. Measured, that alone moves single norms by up to 1 % and the middle one by 0.1 %.
    """
    name = "spnet50_train_150_97x97"
    described, stored = facts(name), arrays(name)
    assert facts("spnet50_spm_150_97x129")["weights_sha256"] == described["weights_sha256"]
    network = loaded_spnet50(released).train().double()
    before = {key: value.clone() for key, value in network.named_buffers()}
    target = recipe.make_target(described["target"]["shape"], 150)
    assert np.array_equal(target, stored["target"])

    output = network(make_input(described["input"]["shape"]).double())
    label = torch.from_numpy(target)
    total, main, auxiliary = SegmentationLoss(auxiliary_weight=0.4)(*output, label)
    total.backward()

    assert main.item() == pytest.approx(described["main_loss_f64"], rel=1e-6)
    assert auxiliary.item() == pytest.approx(described["aux_loss_f64"], rel=1e-6)
    assert total.item() == pytest.approx(described["loss"], rel=1e-6)
    different = output.logits.argmax(1)[:, ::2, ::2].numpy() != stored["pred"]
    assert (margin(output.logits, 1)[:, ::2, ::2][different] < 1e-3).all()

    content = {key: torch.tensor(norm) for key, norm in described["grad_norms"].items()}
    family, norms, _ = translate(content, origin=name)
    parameters = dict(network.named_parameters())
    assert norms.keys() == parameters.keys()
    errors = {key: abs(parameters[key].grad.norm().item() / norms[key].item() - 1) for key in norms}
    assert max(errors.values()) < 1.5e-2, max(errors, key=errors.get)
    assert statistics.median(errors.values()) < 2e-3

    buffers = dict(network.named_buffers())
    for theirs in (key for key in stored if key.startswith("buffer:")):
        key = rename(theirs.removeprefix("buffer:"), family.rules)
        value = buffers[key]
        if key.startswith("auxiliary_head."):
            # the released code runs its auxiliary head twice in a step, so its running statistics
            # there took the same batch twice; ours took it once, as in any other layer
            batch = (value - 0.9 * before[key]) / 0.1
            value = 0.9 * value + 0.1 * batch
        np.testing.assert_allclose(value, stored[theirs], rtol=1e-4, atol=1e-5, err_msg=key)
    assert buffers["auxiliary_head.conv.1.num_batches_tracked"] == 1


def test_spnet_without_strip_pooling_has_the_released_codes_keys():
    name = "keys/spnet50_nospm_150_97x129"
    with torch.device("meta"):
        network = spnet(50, 150, spm_on=False)
        content = {key: torch.empty(shape) for key, shape, _ in facts(name)["state_dict"]}
    family, state, unused = translate(content, origin=name)
    assert (family.name, unused) == ("SPNet", [])
    assert {key: value.shape for key, value in state.items()} == {
        key: value.shape for key, value in network.state_dict().items()
    }


# the two modules --------------------------------------------------------------------------------


def strip_pooling_name(key: str) -> str:
    """The table knows the module inside a block: the author's `spm`, our `strip_pooling`."""
    return rename(f".spm.{key}", STRIP_POOLING_RULES).removeprefix(".strip_pooling.")


def mixed_pooling_name(key: str) -> str:
    return rename(key, MIXED_POOLING_RULES)


def loaded_module(name: str) -> nn.Module:
    if name == "attn_spblock":
        module, ours = StripPoolingModule(64), strip_pooling_name
    else:
        module, ours = MixedPoolingModule(256, (20, 12)), mixed_pooling_name
    weights = authors_weights(name)
    module.load_state_dict({ours(key): value for key, value in weights.items()})
    return module


MODULES = {  # what the author's module computes, and how the stored arrays are sliced
    "attn_spblock": (strip_pooling_name, "attention", (slice(None),)),
    "attn_mpm_61x61": (
        mixed_pooling_name,
        "forward",
        (slice(None), *(slice(None, None, step) for step in (4, 3, 3))),
    ),
}


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", MODULES)
def test_a_module_gives_the_authors_outputs(name: str, mode: str):
    _, method, part = MODULES[name]
    module = loaded_module(name).train(mode == "train")
    output = getattr(module, method)(make_input(facts(name)["input"]["shape"]))
    stored = arrays(name)["output" if mode == "eval" else "output_train_mode"]
    assert_equals_stored(output[part], stored)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_gives_the_authors_gradients(name: str):
    ours, method, _ = MODULES[name]
    described, stored = facts(name), arrays(name)
    module = loaded_module(name).eval()
    x = make_input(described["input"]["shape"]).requires_grad_()
    output = getattr(module, method)(x)
    (output * make_input(list(output.shape), "cotangent")).sum().backward()
    assert x.grad.norm().item() == pytest.approx(described["input_grad_norm"], rel=1e-4)
    if "input_grad" in stored:
        assert_equals_stored(x.grad, stored["input_grad"])
    parameters = dict(module.named_parameters())
    norms = {ours(key): norm for key, norm in described["param_grad_norms"].items()}
    assert norms.keys() == parameters.keys()
    for key, norm in norms.items():
        assert parameters[key].grad.norm().item() == pytest.approx(norm, rel=1e-3), key


# backbones --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "depth", "stem", "family"),
    [
        ("encoding_resnet50s_64", 50, "deep", "PyTorch-Encoding backbone, deep stem"),
        ("encoding_resnet50_64", 50, "classic", "torchvision backbone, classic stem"),
        ("semseg_resnet50_deepbase_224", 50, "deep", "semseg backbone, deep stem"),
        ("semseg_resnet18_deepbase_224", 18, "deep", "semseg backbone, deep stem"),
        ("torchvision_resnet50_64", 50, "classic", "torchvision backbone, classic stem"),
        ("torchvision_resnet18_64", 18, "classic", "torchvision backbone, classic stem"),
    ],
)
def test_a_published_backbone_loads_completely(name: str, depth: int, stem: str, family: str):
    weights = authors_weights(f"keys/{name}")
    network = fcn(depth, stem=stem)
    report = load_weights(network, weights, origin=name, exact=False)
    assert report.family == family
    assert report.unused == ["fc.weight", "fc.bias"]
    assert not [key for key in report.new if key.startswith("backbone.")]
    assert report.matched == len(weights) - 2 == len(network.backbone.state_dict())
    last = len(network.backbone.layer4) - 1
    weight = network.backbone.layer4[last].conv2.weight
    assert torch.equal(weight, weights[f"layer4.{last}.conv2.weight"])
    end_of_stem = {"Py": "conv1.6", "se": "conv3", "to": "conv1"}[family[:2]]
    weight = network.backbone.stem[-4].weight
    assert torch.equal(weight, weights[f"{end_of_stem}.weight"])


def test_a_backbone_of_another_shape_is_refused():
    """resnet50d has a narrower stem and averages before its shortcuts."""
    with torch.device("meta"):
        content = {
            key: torch.empty(shape)
            for key, shape, _ in facts("keys/encoding_resnet50d_64")["state_dict"]
        }
        network = fcn(50, stem="deep")
    with pytest.raises(CheckpointError, match="does not fit the network, another architecture"):
        load_weights(network, content, origin="resnet50d", exact=False)


# figures, schedule, loss, labels ----------------------------------------------------------------


def counted(*images: str) -> tuple[ConfusionMatrix, Scores]:
    stored = arrays("iou_K19")
    matrix = ConfusionMatrix(19)
    for image in images:
        prediction, target = stored[f"pred_{image}"], stored[f"target_{image}"]
        matrix.update(torch.from_numpy(prediction), torch.from_numpy(target))
    return matrix, matrix.scores()


@pytest.mark.parametrize("image", ["a", "b"])
def test_intersection_and_union_are_semsegs(image: str):
    stored, (matrix, _) = arrays("iou_K19"), counted(image)
    hits, labelled, predicted = matrix.counts.diag(), matrix.counts.sum(1), matrix.counts.sum(0)
    assert np.array_equal(hits, stored[f"intersection_{image}"])
    assert np.array_equal(labelled, stored[f"target_area_{image}"])
    assert np.array_equal(labelled + predicted - hits, stored[f"union_{image}"])


def test_scores_are_semsegs():
    stored, (_, scores) = arrays("iou_K19"), counted("a", "b")
    np.testing.assert_allclose(scores.iou, stored["iou_class"], rtol=1e-9)
    np.testing.assert_allclose(scores.accuracy, stored["accuracy_class"], rtol=1e-9)
    assert scores.mean_iou == pytest.approx(stored["mIoU"], rel=1e-9)
    assert scores.mean_accuracy == pytest.approx(stored["mAcc"], rel=1e-9)
    assert scores.pixel_accuracy == pytest.approx(stored["allAcc"], rel=1e-9)


def test_an_absent_class_counts_zero_as_in_semseg():
    _, scores = counted("b")
    assert scores.mean_iou == pytest.approx(arrays("iou_K19")["mIoU_b_only"], rel=1e-9)
    assert scores.mean_iou_present == pytest.approx(scores.mean_iou * 19 / 18, rel=1e-9)


def test_poly_rates_are_semsegs():
    for base_rate, step, total_steps, power, rate in arrays("poly_lr")["cases"]:
        ours = poly(base_rate, int(step), int(total_steps), power)
        assert ours == pytest.approx(rate, rel=1e-12, abs=1e-15)


def test_cross_entropy_is_the_mean_over_labelled_pixels():
    """The logits are stored at every third pixel, which `loss_strided` was computed from."""
    stored = arrays("ce_loss")
    label = torch.from_numpy(stored["target"]).long()
    loss = SegmentationLoss().single(torch.from_numpy(stored["logits"]), label[:, ::3, ::3])
    assert loss.item() == pytest.approx(stored["loss_strided"].item(), rel=1e-6)


def test_a_label_is_subsampled_where_corners_meet():
    """31 x 40 onto 11 x 14 is every third pixel; the loss then takes the large label itself."""
    stored = arrays("ce_loss")
    label = torch.from_numpy(stored["target"]).long()[:, :31, :40]
    logits = torch.from_numpy(stored["logits"])
    assert torch.equal(subsample_label(label, logits.shape[-2:]), label[:, ::3, ::3])
    _, loss, _ = SegmentationLoss()(logits, None, label)
    assert loss.item() == pytest.approx(stored["loss_strided"].item(), rel=1e-6)


@pytest.mark.parametrize(("dataset", "prefix"), [("cityscapes", "city"), ("ade20k", "ade")])
def test_label_maps_are_spnets(dataset: str, prefix: str):
    """SPNet shifts any ADE20K value; ours ends at 150, and -1 has no place in eight bits."""
    stored = arrays("label_maps")
    table = raw_to_train_table(describe(dataset))
    values, expected = stored[f"{prefix}_ids"], stored[f"{prefix}_train"]
    possible = (values >= 0) & (values <= 150)
    assert np.array_equal(table[values[possible]], expected[possible])


# sliding window ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tester_ss_150x211", "tester_ms_150x211"])
def test_the_tester_is_semsegs(name: str):
    described, stored = facts(name), arrays(name)
    image = recipe.make_image(*described["image"]["shape"][:2])
    assert recipe.array_digest(image) == described["image"]["sha256"]
    network = nn.Conv2d(3, 5, 3, padding=1)
    weights = authors_weights(name)
    network.load_state_dict({key.removeprefix("fake."): value for key, value in weights.items()})
    settings = InferenceSettings(
        classes=described["classes"],
        crop=tuple(described["crop"]),
        base_size=described["base_size"],
        scales=described["scales"],
        flip=described["flip"],
        mean=described["mean"],
        std=described["std"],
    )
    tester = SlidingWindow(network.eval(), settings)
    probabilities = tester.probabilities(image)
    assert_equals_stored(probabilities.permute(1, 2, 0)[::2, ::2], stored["prob"])
    different = tester.predict(image).numpy() != stored["argmax"]
    assert (margin(probabilities, 0)[different] < 1e-5).all()
