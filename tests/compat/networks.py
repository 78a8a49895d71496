"""Whole networks: outputs, features and training steps against the authors'."""

import re
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from stripseg.config.load import load_config
from stripseg.model.backbone.pyconv import PyConvResNet
from stripseg.model.backbone.resnet import ResNet
from stripseg.model.build import build_segmenter
from stripseg.model.classifier import ImageClassifier
from stripseg.model.weights import load_weights, translate
from stripseg.util.training.losses import SegmentationLoss

from .fixture import Errors, Fixture, UnknownFixtureError, apart, classes_differ, relative, sliced


def from_config(fixture: Fixture, classes: int, **train) -> nn.Module:
    """A segmenter, built from a YAML file as users write it."""
    height, width = fixture.facts["input"]["shape"][-2:]
    content = {
        "DATA": {"data_root": ".", "classes": classes},
        "TRAIN": {"train_h": height, "train_w": width, **train},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "any_compat.yaml")
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return build_segmenter(load_config(path))


def spnet(fixture: Fixture) -> nn.Module:
    o = fixture.option({"nclass": 150, "backbone": "resnet50", "spm_on": False})
    return from_config(fixture, o.nclass, arch="spnet", backbone=o.backbone, spm_on=o.spm_on)


SEMSEG = {"layers": 50, "classes": 2, "zoom_factor": 8, "dropout": 0.1, "bins": [1, 2, 3, 6]}
PYCONVSEGNET = {"backbone_net": "resnet", "backbone_output_stride": 8}


def pspnet(fixture: Fixture) -> nn.Module:
    of_pyconv = "pyconvsegnet" in fixture.facts["source"]
    o = fixture.option({**SEMSEG, "use_ppm": True, **(PYCONVSEGNET if of_pyconv else {})})
    train = {"arch": "psp", "use_ppm": o.use_ppm, "ppm_bins": list(o.bins)}
    train |= {"layers": o.layers, "zoom_factor": o.zoom_factor}
    if of_pyconv:
        train |= {"backbone_net": o.backbone_net, "stem": "classic"}
        train |= {"backbone_output_stride": o.backbone_output_stride}
    return from_config(fixture, o.classes, **train)


def psanet(fixture: Fixture) -> nn.Module:
    known = {"psa_type": 2, "compact": False, "shrink_factor": 2, "mask_h": 59, "mask_w": 59}
    known |= {"normalization_factor": 1.0, "psa_softmax": True}
    o = fixture.option({**SEMSEG, **known})
    if not getattr(fixture.constructor, "use_psa", True):
        return from_config(
            fixture,
            o.classes,
            arch="psp",
            use_ppm=False,
            layers=o.layers,
            zoom_factor=o.zoom_factor,
        )
    train = {key: getattr(o, key) for key in known}
    train |= {"layers": o.layers, "zoom_factor": o.zoom_factor}
    return from_config(fixture, o.classes, arch="psa", **train)


def pyconvsegnet(fixture: Fixture) -> nn.Module:
    o = fixture.option({**SEMSEG, **PYCONVSEGNET, "backbone_output_stride": 16})
    train = {key: getattr(o, key) for key in (*PYCONVSEGNET, "layers", "zoom_factor")}
    return from_config(fixture, o.classes, arch="pyconvsegnet", **train)


def classifier(fixture: Fixture) -> nn.Module:
    """A backbone with its ImageNet classifier, of any of the repositories."""
    name = fixture.constructor.cls.rpartition(".")[2]
    family, depth, variant = re.fullmatch(r"([a-z]+?)(\d+)([sd]?)", name).groups()
    build: Callable[..., nn.Module]
    if family in ("pyconvresnet", "pyconvhgresnet"):
        fixture.option({})
        build = partial(PyConvResNet, high_groups=family == "pyconvhgresnet")
        options = {"output_stride": 32}
    else:
        known = {"deep_stem": variant != "", "avg_down": variant == "d", "deep_base": False}
        known |= {"stem_width": 32 if variant == "d" else 64, "dilated": False, "dilation": 1}
        known |= {"multi_grid": False}
        o = fixture.option(known)
        build = ResNet
        options = {
            "stem": "deep" if o.deep_stem or o.deep_base else "classic",
            "stem_width": o.stem_width,
            "average_down": o.avg_down,
            "output_stride": 8 if o.dilated or o.dilation == 4 else 32 // o.dilation,
            "multi_grid": (4, 8, 16) if o.multi_grid else None,
        }
    shapes = {entry[0]: entry[1] for entry in fixture.facts["state_dict"]}
    return ImageClassifier(build(int(depth), **options), shapes["fc.weight"][0])


NETWORKS = {
    r"models\.spnet\.SPNet": spnet,
    r"model\.pspnet\.PSPNet": pspnet,
    r"model\.psanet\.PSANet": psanet,
    r"model\.pyconvsegnet\.PyConvSegNet": pyconvsegnet,
    r"models\.pyconv(hg)?resnet\.pyconv(hg)?resnet\d+": classifier,
    r"encoding\.models\.backbone\.resnet(_variants)?\.resnet\d+[sd]?": classifier,
    r"(model\.resnet|torchvision\.models)\.resnet\d+": classifier,
}


def network_of(fixture: Fixture) -> nn.Module:
    """The network that the constructor names, ours, with fresh weights."""
    name = fixture.constructor.cls
    build = next((NETWORKS[p] for p in NETWORKS if re.fullmatch(p, name)), None)
    if build is None:
        raise UnknownFixtureError(f"network {name}")
    return build(fixture)


def loaded_network(fixture: Fixture) -> nn.Module:
    """The network with the fixture's weights, from a file as the author's training writes it."""
    network = network_of(fixture)
    content = {"state_dict": {f"module.{key}": v for key, v in fixture.weights().items()}}
    report = load_weights(network, content, origin=fixture.name, exact=True)
    if report.new or report.unused:
        raise UnknownFixtureError(f"weights do not match: {report}")
    return network


def check_outputs(fixture: Fixture) -> Errors:
    network, stored = loaded_network(fixture).eval(), fixture.arrays
    with torch.inference_mode():
        image = fixture.input()
        features = network.backbone(image)
        output = network(image)
    logits = output if isinstance(output, Tensor) else output.logits
    yield "logits", apart(sliced(logits, fixture.facts["slicing"]), stored["logits"])
    if "argmax" in stored:
        yield "classes", classes_differ(logits, 1, stored["argmax"], 1e-4)
    for stage, feature in enumerate(features, start=1):
        if f"c{stage}_probe" in stored:
            part = sliced(feature, fixture.facts["probe_slicing"])
            yield f"stage {stage}", apart(part, stored[f"c{stage}_probe"])


def check_training_step(fixture: Fixture) -> Errors:
    """Losses, the gradient norm of every parameter, running statistics, classes.

    The stored norms are float32 of one machine, where ReLUs near zero fall to their own side.
    Measured on the visible fixtures: our norms in float64 are up to 1 % off and the middle one
    0.31 % (float32 on two kinds of CPU: 0.07 and 0.29 %); a mistake moves all of them.
    """
    facts, stored = fixture.facts, fixture.arrays
    network = loaded_network(fixture).train()
    for module in network.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    before = {key: value.clone() for key, value in network.named_buffers()}
    target = fixture.recipe.make_target(facts["target"]["shape"], facts["target"]["nclass"])
    output = network(fixture.input())
    total, main, auxiliary = SegmentationLoss()(*output, torch.from_numpy(target))
    total.backward()
    for what, ours in (("main_loss", main), ("aux_loss", auxiliary), ("loss", total)):
        yield what, relative(ours.item(), facts[what], 1e-5)
    family = translate({k: torch.ones(()) for k in facts["grad_norms"]}, origin=fixture.name)[0]
    parameters = dict(network.named_parameters())
    norms = {family.to_stripseg(key): norm for key, norm in facts["grad_norms"].items()}
    if norms.keys() != parameters.keys():
        yield "parameters with a gradient", float("inf")
        return
    errors = [relative(parameters[k].grad.norm().item(), n, 1) for k, n in norms.items()]
    yield "gradient norm, the worst", max(errors) / 2e-2
    yield "gradient norm, the middle", float(np.median(errors)) / 5e-3
    part = sliced(output.logits, facts["pred_slicing"].replace("[:,", "[:, :,", 1))
    yield "classes", classes_differ(part, 1, stored["pred"], 1e-3)
    twice = {key.rpartition(".")[0] for key in facts["bn_updated_more_than_once"]}
    buffers = dict(network.named_buffers())
    for theirs in (key.removeprefix("buffer:") for key in stored if key.startswith("buffer:")):
        key = family.to_stripseg(theirs)
        value = buffers[key]
        if theirs.rpartition(".")[0] in twice:  # they ran this layer on the batch a second time
            value = 0.9 * value + value - 0.9 * before[key]
        yield f"statistics {theirs}", apart(value, stored[f"buffer:{theirs}"]) / 3
