"""An ONNX export in int8 (static, per channel), and what it and the others give on this machine."""

import importlib.util
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .config.errors import CheckpointError, ExportError, StripsegError, first_line
from .config.schema import Config
from .dataset.build import build_evaluation_set
from .dataset.loader import evaluation_samples
from .dataset.segmentation import EvaluationSet
from .engine import build_engine
from .export import missing_packages, quiet
from .onnx_network import KEY, OnnxNetwork, OpenVinoNetwork, openvino_precisions
from .testing import evaluate
from .trained_network import TrainedNetwork, inference_config, load
from .util.inference.sliding_window import usual_batch_size

CPU = torch.device("cpu")
# An activation is merged into the convolution before it, whose int8 range is then the activation's:
# before a ReLU6 it reaches several times as far
QUANTIZED = ["Conv", "Relu", "Clip", "Add"]
REPEATS = 5  # of a forward pass; the fastest counts


@dataclass(frozen=True)
class Candidate:
    """A way to run the network: a file, its precision (fp32 or bf16), whether by OpenVINO."""

    name: str
    path: Path
    precision: str = "fp32"
    openvino: bool = False


@dataclass(frozen=True)
class Row:
    """What a candidate gave: seconds per window, bytes of its file, mIoU on the list."""

    name: str
    seconds: float
    size: int
    mean_iou: float


def quantize(
    source: Path, target: Path, *, words: Sequence[str], windows: int = 64, weight_bits: int = 7
) -> tuple[Path, Config]:
    """Write `source` (.onnx) as `target` with convolutions, activations and sums in int8.

    Args:
        words: KEY VALUE ... for the config in the file: TEST.test_list names the images to
            calibrate with, DATA.data_root where they are.
        windows: how many to calibrate with, spread over the list.
        weight_bits: 7 or 8; products of 8 saturate on x86 processors without VNNI.
    Raises:
        ExportError: onnxruntime's quantization is missing or failed.
        DataError: an image cannot be used.
    """
    try:
        import onnx
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise ExportError(missing_packages(error.name or "onnxruntime")) from error
    network = OnnxNetwork(source, CPU)
    config = inference_config(network.card.config, str(source), words)
    dataset = build_evaluation_set(config, config.TEST.test_list, split="val")
    reader = Calibration(config, dataset, network, windows)
    target.parent.mkdir(parents=True, exist_ok=True)
    prepared = target.with_name(f".{target.stem}.{os.getpid()}.prepared.onnx")
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.onnx")
    try:
        with quiet():
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(temporary),
                reader,
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=weight_bits == 7,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=QUANTIZED,
            )
        model = onnx.load(str(temporary))
        if KEY not in {entry.key for entry in model.metadata_props}:
            original = onnx.load(str(source), load_external_data=False)
            model.metadata_props.extend(original.metadata_props)
            onnx.save(model, str(temporary))
        os.replace(temporary, target)
    except Exception as error:  # ONNX Runtime's errors have no public ancestor
        if isinstance(error, StripsegError):
            raise
        raise ExportError(f"{source}: could not be quantized ({first_line(error)})") from error
    finally:
        prepared.unlink(missing_ok=True)
        temporary.unlink(missing_ok=True)
    return target, config


class Recorder(nn.Module):
    """Keeps what the engine gives the network; answers with zeros."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.seen: list[np.ndarray] = []
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        self.seen += [window[None].float().contiguous().numpy() for window in image]
        return torch.zeros(len(image), self.classes, *image.shape[2:])


class Calibration:
    """ONNX Runtime's calibration reader: windows as the engine gives them, one at a time."""

    def __init__(
        self, config: Config, dataset: EvaluationSet, network: OnnxNetwork, windows: int
    ) -> None:
        if network.window:  # the only one that the export takes
            sides = dict(zip(("test_h", "test_w"), network.window, strict=True))
            config = config.model_copy(update={"TEST": config.TEST.model_copy(update=sides)})
        recorder = Recorder(config.DATA.classes)
        engine = build_engine(config, recorder, device=CPU, dtype=torch.float32, batch_size=1)
        chosen = np.unique(np.linspace(0, len(dataset) - 1, windows).round().astype(int))
        each = -(-windows // len(chosen))
        self.windows: list[np.ndarray] = []
        for sample in evaluation_samples(dataset, [int(i) for i in chosen], 0):
            recorder.seen = []
            engine.predict(sample.image)
            own = np.unique(np.linspace(0, len(recorder.seen) - 1, each).round().astype(int))
            self.windows += [recorder.seen[index] for index in own]
        self.name = network.input
        self.next = 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        if self.next == len(self.windows):
            return None
        self.next += 1
        return {self.name: self.windows[self.next - 1]}


def measure(candidate: Candidate, words: Sequence[str]) -> Row:
    """Test a candidate on the list and time its forward pass on one window.

    Args:
        words: KEY VALUE ... : the list, the data, how to test.
    Raises:
        CheckpointError: OpenVINO cannot run the file.
    """
    path, precision = candidate.path, candidate.precision
    trained = load(path, device="cpu")
    network = trained.network
    if candidate.openvino:
        network, precision = OpenVinoNetwork(path, precision), "fp32"
    words = [*words, "TEST.precision", precision]
    config = inference_config(trained.card.config, str(path), words)
    same = TrainedNetwork(network, trained.card, config, CPU, path=str(path))
    dataset = build_evaluation_set(config, config.TEST.test_list, split="val")
    result = evaluate(config, same.engine(batch_size=usual_batch_size(CPU)), dataset, same.names)
    seconds = window_seconds(same, precision)
    return Row(candidate.name, seconds, path.stat().st_size, result.mean_iou)


def measure_in_openvino(model: Path, int8: Path, words: Sequence[str]) -> list[Row]:
    """OpenVINO's rows of an export and its int8 file; none where OpenVINO is not installed.

    Measured in a process of its own: one that has loaded OpenVINO aborted in a later training.

    Raises:
        CheckpointError: OpenVINO cannot run a file, or ended its process.
    """
    if importlib.util.find_spec("openvino") is None:
        return []
    threads = (torch.get_num_threads(),)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, torch.set_num_threads, threads) as process:
        try:
            return process.submit(openvino_rows, model, int8, [*words]).result()
        except BrokenProcessPool as error:
            raise CheckpointError(f"{model}: OpenVINO ended its process") from error


def openvino_rows(model: Path, int8: Path, words: Sequence[str]) -> list[Row]:
    """What `measure_in_openvino` does in its process."""
    candidates = [
        Candidate(f"OpenVINO {p}", model, p, openvino=True) for p in openvino_precisions()
    ]
    candidates.append(Candidate("OpenVINO int8", int8, openvino=True))
    return [measure(candidate, words) for candidate in candidates]


@torch.inference_mode()
def window_seconds(trained: TrainedNetwork, precision: str) -> float:
    """Seconds of one forward pass on one window, the fastest of a few."""
    test = trained.config.TEST
    fixed = trained.network.window if isinstance(trained.network, OnnxNetwork) else None
    size = fixed or (test.test_h, test.test_w)
    image = torch.randn(1, trained.config.DATA.in_channels, *size)
    if test.channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    fastest = float("inf")
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        for _ in range(REPEATS):
            start = time.perf_counter()
            trained.network(image)
            fastest = min(fastest, time.perf_counter() - start)
    return fastest


def table(rows: Sequence[Row]) -> str:
    """The rows as text; speed against the first."""
    lines = [f"{'runtime':24}{'ms/window':>11}{'speed':>8}{'MB':>8}{'mIoU':>9}"]
    for row in rows:
        lines.append(
            f"{row.name:24}{1000 * row.seconds:11.1f}{rows[0].seconds / row.seconds:7.2f}x"
            f"{row.size / 1e6:8.1f}{row.mean_iou:9.4f}"
        )
    return "\n".join(lines)
