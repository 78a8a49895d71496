"""The inference engine that a config describes, and the trained network in it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .config.compatibility import check_same_network
from .config.errors import CheckpointError
from .config.schema import Config
from .dataset.build import build_classes
from .model.build import build_network
from .model.weights import load_weights
from .network_file import read_network
from .onnx_network import OnnxNetwork
from .util.inference.sliding_window import (
    InferenceSettings,
    SlidingWindow,
    usual_batch_size,
)
from .util.precision import choose_precision, set_numerics

IMAGES_WORTH_COMPILING = 500  # images of a test, which save what the compiler takes, some seconds


def build_engine(
    config: Config,
    network: nn.Module,
    *,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int,
    **changes: Any,
) -> SlidingWindow:
    """The inference engine that `TEST` describes; `changes` are fields of `InferenceSettings`."""
    test = config.TEST
    # an export with one fixed window takes no other
    fixed = network.window if isinstance(network, OnnxNetwork) else None
    settings = InferenceSettings(
        classes=config.DATA.classes,
        window=fixed or (test.test_h, test.test_w),
        base_size=test.base_size,
        scales=tuple(test.scales),
        flip=test.flip,
        mean=tuple(config.DATA.mean),
        std=tuple(config.DATA.std),
        batch_size=batch_size,
    )
    return SlidingWindow(
        network,
        replace(settings, **changes),
        device=device,
        dtype=dtype,
        channels_last=test.channels_last,
    )


def compile_engine(config: Config, engine: SlidingWindow, images: int) -> None:
    """Let torch.compile make kernels for `images` predictions, where `TEST.compile` wants them."""
    wanted = config.TEST.compile
    if wanted == "auto":
        on_gpu = engine.device.type == "cuda"
        wanted = on_gpu and images >= IMAGES_WORTH_COMPILING and not config.TRAIN.deterministic
    if wanted:
        engine.compile(network=config.TEST.compile is True)


def evaluation_dtype(config: Config, device: torch.device) -> torch.dtype:
    """The dtype of a test; on GPUs by default that of validation during training."""
    if config.TEST.precision is not None:
        return choose_precision(config.TEST.precision, device, key="TEST.precision")
    name = "fp32" if device.type == "cpu" else config.TRAIN.precision
    return choose_precision(name, device, key="TRAIN.precision")


def load_network(config: Config, device: torch.device) -> nn.Module:
    """The network with the weights of `TEST.model_path`, strictly loaded, ready to predict.

    Raises:
        CheckpointError: the file cannot be read, or is of another network.
    """
    set_numerics(deterministic=config.TRAIN.deterministic)
    path = config.TEST.model_path
    content = read_network(path, device)
    if isinstance(content, OnnxNetwork):
        check_same_network({"config": content.card.config}, config, origin=path)
        check_same_classes(content.card.names, config, origin=path)
        return content
    network = build_network(config)
    check_same_network(content, config, origin=path)  # first: it knows which option differs
    check_same_classes(names_in(content), config, origin=path)
    return with_weights(network, content, config, device, origin=str(path))


def with_weights(
    network: nn.Module,
    content: Mapping[str, Any],
    config: Config,
    device: torch.device,
    *,
    origin: str,
) -> nn.Module:
    """The network with a checkpoint's weights, on the device and ready to predict.

    Raises:
        CheckpointError: tensors are missing, left over or of other shapes.
    """
    load_weights(network, content, origin=origin, exact=True)
    network.eval().to(device)
    if config.TEST.channels_last:
        network.to(memory_format=torch.channels_last)
    return network


def names_in(content: Mapping[str, Any]) -> Sequence[str]:
    """The class names of a checkpoint's card; none of one without."""
    card = content.get("card")
    names = card.get("names") if isinstance(card, Mapping) else None
    return names if isinstance(names, list) else []


def check_same_classes(names: Sequence[str], config: Config, *, origin: str) -> None:
    """Check that the classes a network was trained with are numbered as the config's are.

    Raises:
        CheckpointError: a name has another number.
    """
    if config.classifies or not names:
        return
    now = {name: index for index, name in enumerate(build_classes(config).names)}
    for index, name in enumerate(names):
        if now.get(name, index) != index:
            raise CheckpointError(
                f"{origin}: was trained with {name!r} as class {index}, which is class {now[name]} "
                f"in {config.source}: the classes have been renumbered since; train again, or "
                "restore their former order"
            )


def load_engine(config: Config, device: torch.device) -> SlidingWindow:
    """The engine with the network of `load_network`."""
    network = load_network(config, device)
    dtype = evaluation_dtype(config, device)
    batch_size = config.TEST.batch_size or usual_batch_size(device)
    return build_engine(config, network, device=device, dtype=dtype, batch_size=batch_size)
