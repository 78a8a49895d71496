"""stripseg: train, test and export semantic segmentation networks.

    import stripseg

    run = stripseg.train("camvid", "spnet18", data_root="data/camvid")
    segmenter = stripseg.load(run.best)
    segmenter.predict("photo.jpg").overlay().save("overlay.png")
    segmenter.export("spnet18.onnx")

The names below are loaded when they are first used, so that importing the package costs nothing.
"""

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

# OpenCV reads this once, when it is loaded: an image that claims to be larger is refused
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**28))

__version__ = "0.3.0"

_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "setup.py").is_file():  # a checkout: model/ beside us is `stripseg.model`
    __path__.append(str(_checkout))

if TYPE_CHECKING:
    from .config.errors import StripsegError
    from .model.backbone.attention import (
        EfficientChannelAttention,
        GatedChannelTransformation,
        TripletAttention,
    )
    from .model.strip_pooling import MixedPoolingModule, StripPoolingModule
    from .models import create_model, list_backbones, list_models
    from .testing import TestResult
    from .trained_network import Prediction, TrainedNetwork, load, wrap
    from .training import TrainingResult, train
    from .util.inference.sliding_window import InferenceSettings, SlidingWindow
    from .util.metrics import ConfusionMatrix, Scores
    from .util.signals import Stopped

# name -> the module that defines it
_HOMES = {
    "create_model": "models",
    "list_backbones": "models",
    "list_models": "models",
    "load": "trained_network",
    "train": "training",
    "wrap": "trained_network",
    "Prediction": "trained_network",
    "TestResult": "testing",
    "TrainedNetwork": "trained_network",
    "TrainingResult": "training",
    "StripPoolingModule": "model.strip_pooling",
    "MixedPoolingModule": "model.strip_pooling",
    "TripletAttention": "model.backbone.attention",
    "EfficientChannelAttention": "model.backbone.attention",
    "GatedChannelTransformation": "model.backbone.attention",
    "SlidingWindow": "util.inference.sliding_window",
    "InferenceSettings": "util.inference.sliding_window",
    "ConfusionMatrix": "util.metrics",
    "Scores": "util.metrics",
    "Stopped": "util.signals",
    "StripsegError": "config.errors",
}
__all__ = [
    "ConfusionMatrix",
    "EfficientChannelAttention",
    "GatedChannelTransformation",
    "InferenceSettings",
    "MixedPoolingModule",
    "Prediction",
    "Scores",
    "SlidingWindow",
    "Stopped",
    "StripPoolingModule",
    "StripsegError",
    "TestResult",
    "TrainedNetwork",
    "TrainingResult",
    "TripletAttention",
    "__version__",
    "create_model",
    "list_backbones",
    "list_models",
    "load",
    "train",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'stripseg' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"stripseg.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
