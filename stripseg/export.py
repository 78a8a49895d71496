"""A trained network as an ONNX or torch.export file, compared with the network before it counts.

The exporter may hard-code what it traced: sizes of bins, the batch. So the file is run at eight
sizes with different remainders modulo every pooling grid, in two batch sizes, before it gets its
name.
"""

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from .config.errors import ExportError, first_line
from .dataset.generated.shapes import render_scene
from .model.build import largest_stride
from .model.folding import fold_batch_norm
from .model.segmenter import Segmenter
from .onnx_network import CLASS_MAP, KEY, LOGITS, NORMALISED, PIXELS
from .util.images import Normalization
from .util.logger import visible

if TYPE_CHECKING:
    from .trained_network import TrainedNetwork

OPSET = 18  # what ONNX Runtime's CPU and CUDA kernels and its static int8 all take
LARGEST_FILE = 2**31 - 2**20  # bytes of weights in one ONNX file
SIZES = ((96, 128), (97, 129), (160, 120), (131, 89), (75, 200), (224, 64), (33, 41), (113, 307))
BATCHES = (1, 3)
SCENE = 168, 232
TOLERANCE = 1e-4  # of the largest logit, at least 1
ALIKE = 0.9999  # share of the pixels with the same class


@dataclass(frozen=True)
class Comparison:
    """The export against the network, on one batch."""

    shape: tuple[int, int, int]  # batch, height, width
    difference: float  # largest, of the logits
    largest: float  # logit
    alike: float  # share of pixels with the same class

    @property
    def fits(self) -> bool:
        return self.difference <= TOLERANCE * max(1.0, self.largest) and self.alike >= ALIKE


@dataclass(frozen=True)
class Export:
    """A file that was written, and how it compares."""

    path: Path
    comparisons: list[Comparison]

    @property
    def files(self) -> list[Path]:
        """The file, and the one of its weights where they are too large to be inside."""
        return [path for path in (self.path, data_file(self.path)) if path.is_file()]

    def table(self) -> str:
        lines = [f"{'batch x height x width':24}{'difference':>12}{'largest':>10}{'alike':>9}"]
        for row in self.comparisons:
            batch, height, width = row.shape
            lines.append(
                f"{f'{batch} x {height} x {width}':24}{row.difference:12.1e}{row.largest:10.2f}"
                f"{row.alike:9.2%}"
            )
        return "\n".join(lines)


class Deployed(nn.Module):
    """What is exported: logits or a class map, of normalised images or of pixels.

    Either has the image's size, whatever size of logits the network was trained with.

    Args:
        pixels: whether the input is (N, H, W, C) uint8, to be normalised inside.
        class_map: whether the output is (N, H, W) uint8 classes.
    """

    def __init__(
        self,
        network: Segmenter,
        normalize: Normalization,
        *,
        pixels: bool = False,
        class_map: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", normalize.mean, persistent=False)
        self.register_buffer("std", normalize.std, persistent=False)
        self.pixels = pixels
        self.class_map = class_map

    def forward(self, image: Tensor) -> Tensor:
        if self.pixels:
            image = (image.permute(0, 3, 1, 2).float() - self.mean) / self.std
        logits = self.network(image).logits
        if self.network.zoom_factor != 8:  # as the engine brings smaller logits to the window
            logits = self.network.resize(logits, image.shape[-2:])
        return logits.argmax(1).to(torch.uint8) if self.class_map else logits


def export_network(
    trained: "TrainedNetwork",
    path: Path,
    *,
    window: tuple[int, int] | None = None,
    pixels: bool = False,
    class_map: bool = False,
) -> Export:
    """Write `path` (.onnx or .pt2) and compare it with the network.

    Batch, height and width are free unless `window` fixes the size; batch norm is folded; names,
    colours, mean and std are in the metadata of an .onnx file.

    Args:
        window: (height, width) alone, for runtimes that want fixed shapes.
        pixels: the input is (N, H, W, C) uint8 in place of normalised (N, C, H, W) float32.
        class_map: the output is (N, H, W) uint8 classes in place of logits.
    Raises:
        ExportError: it cannot be exported, or computes something else; no file is left.
    """
    check_exportable(trained, path, window)
    network = plain_network(trained)
    normalize = Normalization(trained.config.DATA.mean, trained.config.DATA.std)
    reference = Deployed(network, normalize, pixels=pixels, class_map=class_map).eval()
    with torch.no_grad():
        image = torch.randn(1, trained.config.DATA.in_channels, *(window or SIZES[1]))
        deployed = Deployed(
            fold_batch_norm(network, image), normalize, pixels=pixels, class_map=class_map
        ).eval()
    example = inputs(trained, (2, *(window or SIZES[1])), pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.stem}.", dir=path.parent) as folder:
        attempt = Path(folder) / path.name
        if path.suffix.lower() == ".onnx":
            facts = {
                "card": trained.card.as_dict(),
                "config": trained.card.config,
                "window": window,
                "input": PIXELS if pixels else NORMALISED,
                "output": CLASS_MAP if class_map else LOGITS,
            }
            write_onnx(deployed, example, attempt, fixed=window is not None, facts=facts)
            run = onnx_runner(attempt)
        else:
            write_pt2(deployed, example, attempt, fixed=window is not None)
            run = torch.export.load(attempt).module()
        comparisons = compare(trained, reference, run, window)
        refuse_difference(comparisons, path)
        if data_file(attempt).is_file():
            os.replace(data_file(attempt), data_file(path))
        else:
            data_file(path).unlink(missing_ok=True)  # of an earlier, larger export
        os.replace(attempt, path)
    return Export(path, comparisons)


def check_exportable(trained: "TrainedNetwork", path: Path, window: tuple[int, int] | None) -> None:
    """Check what can be known before the export.

    Raises:
        ExportError: the name is of no format, or network or window cannot be exported.
    """
    if path.suffix.lower() not in (".onnx", ".pt2"):
        raise ExportError(f"{path}: an export is written as .onnx or .pt2 (torch.export)")
    if not isinstance(trained.network, Segmenter):
        raise ExportError(f"{trained.path}: is an export already; export the checkpoint")
    if trained.config.TRAIN.arch == "psp" and trained.config.TRAIN.ppm_pooling == "max":
        raise ExportError(
            f"{trained.path}: TRAIN.ppm_pooling max cannot be exported; PyTorch's exporter has no "
            "rule for adaptive maximum pooling. Train with TRAIN.ppm_pooling average"
        )
    sound = isinstance(window, tuple | list) and len(window) == 2
    if window is not None and not (sound and all(type(s) is int and s > 0 for s in window)):
        raise ExportError(f"window {window}: expected (height, width), both above 0")
    if window is not None and not trained.network.align_corners:
        stride = largest_stride(trained.config, trained.network.backbone)
        if any(side % stride for side in window):
            raise ExportError(
                f"window {window}: with TRAIN.align_corners False height and width must be "
                f"multiples of {stride}, the network's largest stride"
            )


def refuse_difference(comparisons: Sequence[Comparison], path: Path) -> None:
    """Check that the export computes what the network does.

    Raises:
        ExportError: it differs at one of the sizes.
    """
    wrong = next((row for row in comparisons if not row.fits), None)
    if wrong is not None:
        raise ExportError(
            f"{path}: not written; the export differs from the network at "
            f"{' x '.join(map(str, wrong.shape))}: by {wrong.difference:.1e} of logits up to "
            f"{wrong.largest:.2f}, {wrong.alike:.3%} of the pixels equal"
        )


def data_file(path: Path) -> Path:
    """Where the weights are if they are too large to be inside."""
    return path.with_name(f"{path.name}.data")


def plain_network(trained: "TrainedNetwork") -> Segmenter:
    """A float32 copy on the CPU without auxiliary head."""
    network = deepcopy(trained.network).cpu().float().eval()
    network.auxiliary_head = None
    return network.to(memory_format=torch.contiguous_format)


def inputs(trained: "TrainedNetwork", shape: Sequence[int], pixels: bool) -> Tensor:
    """A random batch of (N, H, W) images as the export takes them, always the same."""
    count, height, width = shape
    channels = trained.config.DATA.in_channels
    generator = torch.Generator().manual_seed(count * height * width)
    if pixels:
        size = (count, height, width, channels)
        return torch.randint(256, size, dtype=torch.uint8, generator=generator)
    return torch.randn(count, channels, height, width, generator=generator)


def write_onnx(module: nn.Module, example: Tensor, path: Path, *, fixed: bool, facts: dict) -> None:
    """Export by torch.onnx, with our metadata.

    Raises:
        ExportError: the packages are missing, or the exporter failed.
    """
    try:
        import onnx
        from onnx.external_data_helper import set_external_data
    except ImportError as error:
        raise ExportError(missing_packages("onnx")) from error
    names = {0: "batch"} if fixed else dict(zip(free_axes(module), AXES, strict=True))
    weights = sum(value.numel() * value.element_size() for value in module.state_dict().values())
    with quiet(), exporting(path, fixed=fixed):
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            input_names=["image"],
            output_names=["classes" if module.class_map else LOGITS],
            dynamic_shapes=(names,),
            opset_version=OPSET,
            verbose=False,
        )
        model = program.model_proto
    used = {entry.domain: entry.version for entry in model.opset_import}
    if used.get("", OPSET) != OPSET:
        raise ExportError(f"{path}: opset {used['']} was written and {OPSET} is needed")
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, json.dumps(facts)
    model.producer_name = "stripseg"
    if weights > LARGEST_FILE:  # onnx.save's own option refuses a name that the current folder has
        for tensor in model.graph.initializer:
            if len(tensor.raw_data) >= 1024:  # bytes
                set_external_data(tensor, data_file(path).name)
    onnx.save(model, str(path))


AXES = ("batch", "height", "width")


def free_axes(module: nn.Module) -> tuple[int, int, int]:
    """The axes of the input that are batch, height and width."""
    return (0, 1, 2) if module.pixels else (0, 2, 3)


def write_pt2(module: nn.Module, example: Tensor, path: Path, *, fixed: bool) -> None:
    """Export by torch.export.

    Raises:
        ExportError: the exporter failed.
    """
    free = torch.export.Dim.DYNAMIC
    names = {0: free} if fixed else dict.fromkeys(free_axes(module), free)
    with quiet(), exporting(path, fixed=fixed):
        torch.export.save(torch.export.export(module, (example,), dynamic_shapes=(names,)), path)


@contextmanager
def exporting(path: Path, *, fixed: bool):
    """Turn whatever an exporter raises into one line."""
    try:
        yield
    except ImportError as error:
        raise ExportError(missing_packages(error.name or "onnxscript")) from error
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error.strerror or error}") from error
    except Exception as error:  # exporters may raise any exception
        cause: BaseException = error
        while cause.__cause__ is not None:  # the first line of the others says no more than that
            cause = cause.__cause__
        raise ExportError(
            f"{path.suffix[1:]}: PyTorch could not export it ({in_a_line(cause)}){remedy(fixed)}"
        ) from error


def in_a_line(error: BaseException) -> str:
    return visible(f"{type(error).__name__}: {first_line(error)}")


def remedy(fixed: bool) -> str:
    """What else may be tried where an export fails whose size is free."""
    return "" if fixed else "; one size may work: --window HEIGHT WIDTH, in Python window="


def missing_packages(name: str) -> str:
    return f"exporting needs {name}; install it: pip install 'stripseg[export]'"


@contextmanager
def quiet():
    """Inside, exporters do not print."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            open(os.devnull, "w") as nowhere,
            redirect_stdout(nowhere),
            redirect_stderr(nowhere),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def onnx_runner(path: Path) -> Callable[[Tensor], Tensor]:
    """What runs the file in ONNX Runtime on the CPU.

    Raises:
        ExportError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ExportError(missing_packages("onnxruntime")) from error
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(None, {"image": batch.numpy()})[0])


@torch.no_grad()
def compare(
    trained: "TrainedNetwork",
    reference: Deployed,
    run: Callable[[Tensor], Tensor],
    window: tuple[int, int] | None,
) -> list[Comparison]:
    """Run both at every size and batch, on random images and on a scene."""
    rows = []
    images = [
        inputs(trained, (batch, *size), reference.pixels)
        for batch in BATCHES
        for size in ((window,) if window else SIZES)
    ]
    images.append(scene(trained, window or SCENE, reference))
    for image in images:
        height, width = image.shape[1:3] if reference.pixels else image.shape[2:]
        shape = (len(image), height, width)
        try:
            rows.append(comparison(reference(image), run(image), shape))
        except Exception as error:  # runtimes may raise any exception
            raise ExportError(
                f"not written; the export does not run at {' x '.join(map(str, shape))}: "
                f"{in_a_line(error)}{remedy(window is not None)}"
            ) from error
    return rows


def comparison(expected: Tensor, got: Tensor, shape: tuple[int, int, int]) -> Comparison:
    """Compare logits (N, K, H, W), or class maps (N, H, W)."""
    if expected.ndim == 3:
        return Comparison(shape, 0.0, 0.0, (expected == got).float().mean().item())
    return Comparison(
        shape,
        difference=(expected - got).abs().max().item(),
        largest=expected.abs().max().item(),
        alike=(expected.argmax(1) == got.argmax(1)).float().mean().item(),
    )


def scene(trained: "TrainedNetwork", size: tuple[int, int], reference: Deployed) -> Tensor:
    """A rendered scene as the export takes it."""
    image, _ = render_scene(0, 0, height=size[0], width=size[1])
    channels = trained.config.DATA.in_channels
    if channels != 3:
        image = np.repeat(image.mean(2, keepdims=True).astype(np.uint8), channels, axis=2)
    batch = torch.from_numpy(image)[None]
    if reference.pixels:
        return batch
    return (batch.permute(0, 3, 1, 2).float() - reference.mean) / reference.std
