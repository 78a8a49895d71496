"""A trained network from its file: `load`, then `predict`, `test`, `export`.

segmenter = stripseg.load("exp/camvid/spnet18/model/best.pth")
segmenter.predict("photo.jpg").save("photo_classes.png")
"""

import glob
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from .config.errors import CheckpointError, ConfigError, DataError
from .config.legacy import drop_retired
from .config.load import config_from, options_named, suggestion
from .config.schema import SECTIONS, Config
from .engine import build_engine, evaluation_dtype, with_weights
from .model.build import build_network
from .model.segmenter import Segmenter
from .model_card import ModelCard, card_of_checkpoint, spread_colors
from .models import LogitsSegmenter
from .network_file import read_network
from .onnx_network import OnnxNetwork
from .testing import TestResult, chosen_images, evaluate, run_segmentation_test
from .util.distributed import process_group
from .util.images import IMAGE_SUFFIXES, colorize, decode_image, overlay, read_image, write_png
from .util.inference.sliding_window import (
    SlidingWindow,
    check_settings,
    is_whole,
    usual_batch_size,
)
from .util.precision import exact_numerics

Pixels = bytes | bytearray | Image.Image | np.ndarray | Tensor  # one image
Many = list | tuple | Iterator  # of images
Source = Any  # path, Pixels, or many of these


class Prediction:
    """The classes of one image, at the image's own size.

    Attributes:
        mask: (H, W) uint8: the class of every pixel.
        image: (H, W, C) uint8, as the network saw it.
        path: of the file it was read from, or None.
        names, colors: of the classes, in index order.
    """

    def __init__(
        self, network: "TrainedNetwork", engine: SlidingWindow, image: np.ndarray, mask: np.ndarray
    ) -> None:
        self._engine = engine
        self.image = image
        self.mask = mask
        self.path: Path | None = None
        self.names = network.names
        self.colors = network.colors

    @property
    def probabilities(self) -> np.ndarray:
        """(K, H, W) float32, summing to 1 over K; computed when first asked for, and not kept."""
        with exact_numerics():
            return self._engine.probabilities(self.image).cpu().numpy()

    @property
    def present(self) -> list[str]:
        """Names of the classes in the mask, the largest area first."""
        counts = np.bincount(self.mask.ravel(), minlength=len(self.names))
        return [self.names[index] for index in np.argsort(-counts, kind="stable") if counts[index]]

    def overlay(self, opacity: float = 0.5) -> Image.Image:
        """The classes' colours over the image, as a PIL image."""
        return Image.fromarray(overlay(self.image, self.mask, self.colors, opacity=opacity))

    def colored(self) -> Image.Image:
        """The classes' colours alone, as a PIL image."""
        return Image.fromarray(colorize(self.mask, self.colors))

    def save(self, path: str | Path) -> Path:
        """Write the mask: a PNG of class indices, with the classes' colours as its palette."""
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise DataError(f"{path}: a mask is written as .png, which keeps the indices exact")
        write_png(path, self.mask, self.colors.tolist())
        return path

    def __repr__(self) -> str:
        height, width = self.mask.shape
        return f"Prediction({self.path or 'image'}, {height}x{width}, {', '.join(self.present)})"


class TrainedNetwork:
    """A trained segmentation network with its card, ready to predict.

    Attributes:
        network: what computes logits: an nn.Module, or an exported file's.
        card: names, colours, config, figures (`ModelCard`).
        config: the options that it predicts and tests with.
        device: where it computes.
    """

    def __init__(
        self,
        network: nn.Module,
        card: ModelCard,
        config: Config,
        device: torch.device,
        *,
        path: str = "",
    ) -> None:
        self.network = network
        self.card = card
        self.config = config
        self.device = device
        self.path = path

    @property
    def names(self) -> list[str]:
        return self.card.names

    @property
    def colors(self) -> np.ndarray:
        """(K, 3) uint8."""
        return self.card.colors

    def engine(
        self,
        *,
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
        base_size: int | None = None,
        window: tuple[int, int] | None = None,
        batch_size: int | None = None,
    ) -> SlidingWindow:
        """The inference engine; what is None is as in TEST of the config.

        Raises:
            ConfigError: a value that no image can be predicted with.
        """
        check_settings(scales, flip, base_size, window, smallest=8)
        given = {
            "scales": scales,
            "flip": flip,
            "base_size": base_size,
            "window": self._window(window),
        }
        default = self.config.TEST.batch_size or usual_batch_size(self.device)
        return build_engine(
            self.config,
            self.network,
            device=self.device,
            dtype=evaluation_dtype(self.config, self.device),
            batch_size=batch_size or default,
            **{name: value for name, value in given.items() if value is not None},
        )

    def _window(self, window: tuple[int, int] | None) -> tuple[int, int] | None:
        """The window asked for, or the only one that an export with a fixed shape takes.

        Raises:
            ConfigError: the export takes another one.
        """
        fixed = self.network.window if isinstance(self.network, OnnxNetwork) else None
        if window is not None and fixed is not None and tuple(window) != fixed:
            raise ConfigError(
                f"{self.path}: was exported for windows of {fixed[0]}x{fixed[1]} alone, not "
                f"{window[0]}x{window[1]}; export it without --window"
            )
        return fixed or window

    @overload
    def predict(
        self,
        source: Pixels,
        *,
        scales: Sequence[float] | None = ...,
        flip: bool | None = ...,
        base_size: int | None = ...,
        window: tuple[int, int] | None = ...,
        together: int = ...,
        on_error: Callable[[DataError], None] | None = ...,
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        source: Many,
        *,
        scales: Sequence[float] | None = ...,
        flip: bool | None = ...,
        base_size: int | None = ...,
        window: tuple[int, int] | None = ...,
        together: int = ...,
        on_error: Callable[[DataError], None] | None = ...,
    ) -> Iterator[Prediction]: ...

    @overload  # a file, or a folder or glob of many
    def predict(
        self,
        source: str | os.PathLike,
        *,
        scales: Sequence[float] | None = ...,
        flip: bool | None = ...,
        base_size: int | None = ...,
        window: tuple[int, int] | None = ...,
        together: int = ...,
        on_error: Callable[[DataError], None] | None = ...,
    ) -> Any: ...

    def predict(
        self,
        source: Source,
        *,
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
        base_size: int | None = None,
        window: tuple[int, int] | None = None,
        together: int = 1,
        on_error: Callable[[DataError], None] | None = None,
    ) -> "Prediction | Iterator[Prediction]":
        """Predict one image, or lazily many.

        Args:
            source: a path, the bytes of a file, a PIL image, an (H, W, 3) RGB or (H, W) grey uint8
                array, or a (3, H, W) tensor of 0..255: one `Prediction`. A folder, a glob such as
                "photos/*.jpg", a list or any iterable of the former: an iterator of them, in order.
            scales, flip, base_size, window: as TEST of the config says if None.
            together: images whose windows share forward passes, for small images on a GPU.
            on_error: with many images, called for one that cannot be read, which is left out; if
                None the error ends the iterator.
        Raises:
            DataError: an image is missing, damaged, or has another number of channels.
            ConfigError: a value that no image can be predicted with.
        """
        if not is_whole(together, at_least=1):
            raise ConfigError(f"together {together!r}: expected how many images, 1 or more")
        engine = self.engine(scales=scales, flip=flip, base_size=base_size, window=window)
        many = sources_of(source)
        if many is None:
            return self.predict_with(engine, source)
        return self._stream(self._read_all(many, on_error), engine, together)

    def predict_with(self, engine: SlidingWindow, source: Source) -> Prediction:
        """Predict one image with an engine of `engine`, which remembers sizes that did not fit.

        Raises:
            DataError: the image is missing, damaged, or has another number of channels.
        """
        return self._predict([self.read(source)], engine)[0]

    def _read_all(
        self, sources: Iterable[Source], on_error: Callable[[DataError], None] | None
    ) -> Iterator[tuple[np.ndarray, Path | None]]:
        for source in sources:
            try:
                yield self.read(source)
            except DataError as error:
                if on_error is None:
                    raise
                on_error(error)

    def _stream(
        self,
        images: Iterator[tuple[np.ndarray, Path | None]],
        engine: SlidingWindow,
        together: int,
    ) -> Iterator[Prediction]:
        while group := list(islice(images, together)):
            yield from self._predict(group, engine)

    def _predict(
        self, images: Sequence[tuple[np.ndarray, Path | None]], engine: SlidingWindow
    ) -> list[Prediction]:
        engine.network.eval()
        with exact_numerics():
            masks = engine.predict_group([image for image, _ in images])
        predictions = []
        for (image, path), mask in zip(images, masks, strict=True):
            prediction = Prediction(self, engine, image, mask.byte().cpu().numpy())
            prediction.path = path
            predictions.append(prediction)
        return predictions

    def read(self, source: Source) -> tuple[np.ndarray, Path | None]:
        """(H, W, C) uint8 and the path, of one image."""
        channels = self.config.DATA.in_channels
        if isinstance(source, str | os.PathLike):
            return read_image(Path(source).expanduser(), channels), Path(source)
        if isinstance(source, bytes | bytearray):
            return decode_image(bytes(source), channels, origin=Path("bytes")), None
        return as_array(source, channels), None

    def test(self, list_file: str | Path | None = None, **options: Any) -> TestResult:
        """Test on the pairs of a list, as `stripseg test` does.

        Args:
            list_file: lines of "image label"; the config's TEST.test_list if None.
            options: further options of TEST and DATA by their names, such as `scales=[1.0]`,
                `batch_size=4`, `data_root="data"`. With `save_folder` everything that the command
                writes is written there: predictions, figures, records, report.html. Without it
                nothing is.
        Raises:
            ConfigError: an option or file that does not exist.
            DataError: an image or label that cannot be used.
        """
        if list_file is not None:
            options = {"TEST.test_list": str(list_file), **options}
        words = [
            word for key, value in options.items() for word in (test_option(key), plain(value))
        ]
        config = inference_config(self.card.config, self.path, words)
        same = TrainedNetwork(self.network, self.card, config, self.device, path=self.path)
        if "TEST.save_folder" in words:
            log = logging.getLogger("stripseg")
            with exact_numerics():
                # None only where `options` say split="test", which has no labels
                return run_segmentation_test(  # type: ignore[return-value]
                    config, self.device, log, engine=same.engine()
                )
        dataset = chosen_images(config)
        with exact_numerics():
            return evaluate(config, same.engine(), dataset, self.names)

    def export(
        self,
        path: str | Path,
        *,
        window: tuple[int, int] | None = None,
        pixels: bool = False,
        class_map: bool = False,
    ) -> Path:
        """Write an export that was compared with this network: .onnx, or .pt2 (torch.export).

        Args:
            window: the only (height, width) that it takes; any if None.
            pixels: it takes (N, H, W, C) uint8 and normalises inside.
            class_map: it gives (N, H, W) uint8 classes in place of logits.
        Raises:
            ExportError: it cannot be exported, or the export computes something else.
        """
        from .export import export_network  # needs the extra `export`

        path = Path(path)
        return export_network(self, path, window=window, pixels=pixels, class_map=class_map).path

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write a folder to share: weights (safetensors), config and card (JSON), README.md.

        `load` reads it again, also from the Hugging Face hub as hf://OWNER/NAME.
        """
        from .sharing import write_folder

        return write_folder(self, Path(folder))

    def __repr__(self) -> str:
        train = self.card.config["TRAIN"]
        return (
            f"TrainedNetwork({self.path}: {train['arch']} on {train['backbone']}, "
            f"{len(self.names)} classes, {self.device})"
        )


def load(path: str | Path, *, device: str | torch.device | None = None) -> TrainedNetwork:
    """A trained segmentation network from its file, whatever the file is.

    Args:
        path: a checkpoint of stripseg (.pth), an export (.onnx), a folder that `save_pretrained`
            wrote, or hf://OWNER/NAME (hf://OWNER/NAME@REVISION) on the Hugging Face hub (needs
            `huggingface_hub`).
        device: such as "cpu" or "cuda:1"; the first GPU where there is one, if None.
    Raises:
        CheckpointError: the file is missing, damaged, of no trained segmentation network, or does
            not say what network it is.
        DeviceError: the device does not exist here.
    """
    place = process_group.named_device(device)
    text = str(path)
    content = read_network(path, place)
    if isinstance(content, OnnxNetwork):
        config = inference_config(content.card.config, text)
        return TrainedNetwork(content, content.card, config, content.device, path=text)
    return from_content(content, text, place)


def wrap(
    model: LogitsSegmenter,
    *,
    names: Sequence[str] | None = None,
    colors: Sequence[Sequence[int]] | np.ndarray | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str | torch.device | None = None,
    **options: Any,
) -> TrainedNetwork:
    """A network of `create_model` that your own loop trained, as `load` gives one from a file.

    It shares the model's weights, without a copy, and puts the model into evaluation mode.

    Args:
        model: of `create_model`. For other modules there is `SlidingWindow`.
        names: of the classes, in index order; numbers if None.
        colors: (K, 3), 0..255.
        mean, std: of each channel, in 0..255 units, as your images were normalised; those of
            `model.config.DATA` if None.
        device: where the model moves to; None leaves it where it is.
        options: of TEST in docs/config.md by their names, such as `test_h=480`, `base_size=0`.
    Raises:
        TypeError: the module is not of `create_model`.
        ConfigError: an option or value that does not exist, or not K names or colours.

    >>> import numpy as np, stripseg
    >>> model = stripseg.create_model("fcn", backbone="resnet18", classes=2)
    >>> segmenter = stripseg.wrap(model, names=["road", "other"], test_h=64, test_w=64)
    >>> segmenter.predict(np.zeros((50, 70, 3), np.uint8)).mask.shape
    (50, 70)
    """
    if not isinstance(model, LogitsSegmenter):
        raise TypeError(
            f"wrap: a {type(model).__name__} is not a network of stripseg.create_model; "
            "stripseg.SlidingWindow(model, ...) predicts with any module that gives logits"
        )
    words = [word for key, value in options.items() for word in (test_option(key), plain(value))]
    for key, value in (("DATA.mean", mean), ("DATA.std", std)):
        if value is not None:
            words += [key, [float(number) for number in value]]
    config = inference_config(model.config.model_dump(mode="json"), "wrap", words)
    count = config.DATA.classes
    names = [f"class {index}" for index in range(count)] if names is None else [*map(str, names)]
    palette = spread_colors(count) if colors is None else np.array(colors)
    if len(names) != count or palette.shape != (count, 3):
        raise ConfigError(
            f"wrap: {len(names)} names and colours of shape {palette.shape} for {count} classes"
        )
    card = ModelCard(names, palette.astype(np.uint8), config.model_dump(mode="json"))
    place = (
        next(model.parameters()).device if device is None else process_group.named_device(device)
    )
    model.eval().to(place)
    network = Segmenter(**model.inference_parts()).eval()
    return TrainedNetwork(network, card, config, place, path="the wrapped network")


def from_content(content: Mapping[str, Any], origin: str, device: torch.device) -> TrainedNetwork:
    """The network of a checkpoint's content.

    Raises:
        CheckpointError: it is of a classifier, or does not say what network it is.
    """
    card = card_of_checkpoint(content, origin=origin)
    config = inference_config(card.config, origin)
    if config.classifies:
        raise CheckpointError(f"{origin}: is an image classifier; test it with `stripseg test`")
    network = with_weights(build_network(config), content, config, device, origin=origin)
    return TrainedNetwork(network, card, config, device, path=origin)


def inference_config(stored: Mapping[str, Any], origin: str, words: Sequence[Any] = ()) -> Config:
    """The config that a trained network carries, for predicting here.

    Options of the machine that trained it (GPUs, processes, where results go) are left out.

    Args:
        words: KEY VALUE ... that override it.
    """
    if not all(isinstance(stored.get(name, {}), Mapping) for name in SECTIONS):
        raise CheckpointError(f"{origin}: its config is damaged; its sections are not mappings")
    tree: dict[str, Any] = {name: dict(stored.get(name, {})) for name in SECTIONS}
    drop_retired(tree)
    tree["Distributed"] = {}
    tree["TRAIN"] |= {"train_gpu": [], "save_path": None, "pretrained": None, "weight": None}
    tree["TRAIN"]["resume"] = "none"
    tree["TEST"] |= {"save_folder": None, "model_path": origin, "test_gpu": None}
    if "experiment" in stored:
        tree["experiment"] = stored["experiment"]
    try:
        return config_from(
            tree, words, source=origin, dataset=tree["DATA"].get("dataset") or "data"
        )
    except ConfigError as error:
        if words:
            raise
        raise CheckpointError(f"{origin}: its config cannot be used here: {error}") from error


def plain(value: Any) -> Any:
    """A path as text; anything else as it is."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def test_option(key: str) -> str:
    """`TEST.batch_size` for `batch_size` or `test__batch_size`: an option of testing.

    Raises:
        ConfigError: it is unknown, or would change the network.
    """
    section, separator, name = key.partition("__")
    if separator:
        key = f"{section.upper()}.{name}"
    if "." in key:
        chosen = key
    else:
        named = options_named(key)
        chosen = next((o for part in ("TEST.", "DATA.") for o in named if o.startswith(part)), key)
    network = ("DATA.classes", "DATA.in_channels", "DATA.mean", "DATA.std")
    if not chosen.startswith(("TEST.", "DATA.")) or chosen in network:
        raise ConfigError(f"{key}: is not an option of a test{suggestion(key)}")
    return chosen


def sources_of(source: Source) -> Iterable[Source] | None:
    """The images that `source` stands for; None where it is one image.

    Raises:
        DataError: a folder or glob without images.
    """
    if isinstance(source, str | os.PathLike):
        text = os.path.expanduser(os.fspath(source))
        if os.path.isdir(text):
            found = sorted(p for p in Path(text).rglob("*") if is_image(p))
        elif not os.path.exists(text) and glob.has_magic(text):
            found = sorted(p for p in map(Path, glob.glob(text, recursive=True)) if is_image(p))
        else:
            return None
        if not found:
            raise DataError(f"{text}: no image there ({', '.join(IMAGE_SUFFIXES)})")
        return found
    one = isinstance(source, Pixels)
    if one or not isinstance(source, Iterable):
        return None
    return source


def is_image(path: Path) -> bool:
    """Return whether a file in a folder is meant as an image, and is not hidden."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def pil_array(image: Image.Image, channels: int) -> np.ndarray:
    """A PIL image as its file would be read: upright, of 16 bits the high byte.

    Raises:
        DataError: its file is damaged.
    """
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            grey = (np.array(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
            return np.repeat(grey[:, :, None], channels, axis=2)
        if channels == 4 and image.mode == "RGBA":
            return np.array(image)
        return np.array(image.convert("L" if channels == 1 else "RGB"))
    except (OSError, SyntaxError) as error:
        raise DataError(f"the PIL image cannot be read ({error})") from error


def as_array(image: Any, channels: int) -> np.ndarray:
    """(H, W, C) uint8 of a PIL image, an array or a tensor.

    Raises:
        DataError: another shape or type.
    """
    if isinstance(image, Image.Image):
        image = pil_array(image, channels)
    elif isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != channels:
            batch = "; of a batch give list(batch)" if image.ndim == 4 else ""
            raise DataError(
                f"a tensor must be ({channels}, H, W), not {tuple(image.shape)}; values are 0..255"
                f"{batch}"
            )
        fractions = image.is_floating_point() and image.numel() and 0 < float(image.max()) <= 1
        if fractions and not torch.equal(image, image.round()):
            raise DataError(
                "the tensor's values are at most 1, and 0..255 is expected; multiply by 255"
            )
        image = image.detach().round().clamp(0, 255).to("cpu", torch.uint8).permute(1, 2, 0).numpy()
    if not isinstance(image, np.ndarray):
        raise DataError(
            f"a {type(image).__name__} is not an image; give a path, bytes, a PIL image, an array "
            "or a tensor"
        )
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], channels, axis=2) if channels in (1, 3) else image
    if image.ndim != 3 or image.shape[2] != channels or image.dtype != np.uint8 or not image.size:
        raise DataError(
            f"an array must be (H, W, {channels}) uint8, not {image.shape} {image.dtype}"
        )
    return np.ascontiguousarray(image)
