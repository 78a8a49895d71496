"""An exported network (.onnx) in place of one of PyTorch, run by ONNX Runtime or OpenVINO."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from .config.errors import CheckpointError, ConfigError, first_line
from .config.load import stored_config
from .model_card import ModelCard, read_card

KEY = "stripseg"  # of our metadata in the file
LOGITS, CLASS_MAP = "logits", "class map"
NORMALISED, PIXELS = "normalised", "pixels"


class OnnxNetwork(nn.Module):
    """(N, C, H, W) normalised -> (N, K, H, W) logits, as the network that was exported.

    Args:
        path: a file that `stripseg export` wrote.
        device: where it should run; without ONNX Runtime's CUDA provider that is the CPU.
    Attributes:
        card: of the network.
        window: the (height, width) that it takes alone, or None for any.
        device: where it runs.
    Raises:
        CheckpointError: the file is missing, damaged or no export of ours, or onnxruntime is not
            installed.
    """

    def __init__(self, path: str | Path, device: torch.device) -> None:
        super().__init__()
        path = Path(path).expanduser()
        if not path.is_file():
            raise CheckpointError(f"{path}: export does not exist; check the path that names it")
        try:
            import onnxruntime
        except ImportError as error:
            raise CheckpointError(
                f"{path}: reading it needs onnxruntime; install it: pip install 'stripseg[export]'"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        cuda = device.type == "cuda" and (
            "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        )
        self.device = device if cuda else torch.device("cpu")
        providers: list = [("CUDAExecutionProvider", {"device_id": device.index or 0})] * cuda
        try:
            # to fold constants is to compute what a few bytes say before anything is known of the
            # file; what our exports lose by it (reshaped weights) takes no time that is measured
            self.session = onnxruntime.InferenceSession(
                str(path),
                options,
                providers=[*providers, "CPUExecutionProvider"],
                disabled_optimizers=["ConstantFolding"],
            )
            metadata = self.session.get_modelmeta().custom_metadata_map
        except Exception as error:  # ONNX Runtime's errors have no public ancestor
            raise CheckpointError(
                f"{path}: is damaged or no ONNX file ({first_line(error)})"
            ) from error
        self.card, facts = read_metadata(metadata, origin=str(path))
        if facts.get("output") != LOGITS:
            raise CheckpointError(
                f"{path}: was exported with --class-map; its class maps cannot be averaged over "
                "windows and scales. Export it without, to test or predict with it here"
            )
        if facts.get("input") != NORMALISED:
            raise CheckpointError(
                f"{path}: was exported with --pixels, for programs that do not normalise; export "
                "it without, to test or predict with it here"
            )
        self.window = tuple(facts["window"]) if facts.get("window") else None
        self.input = self.session.get_inputs()[0].name
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        array = image.float().contiguous().cpu().numpy()
        (logits,) = self.session.run([LOGITS], {self.input: array})
        return torch.from_numpy(logits).to(image.device)


class OpenVinoNetwork(OnnxNetwork):
    """The same, run by OpenVINO on the CPU.

    Args:
        path: a file that `stripseg export` or `stripseg quantize` wrote.
        precision: "fp32" or "bf16", of what is not int8 in the file.
    Raises:
        CheckpointError: as above, or OpenVINO is not installed or cannot run the file.
    """

    def __init__(self, path: str | Path, precision: str = "fp32") -> None:
        super().__init__(path, torch.device("cpu"))
        del self.session
        try:
            import openvino
        except ImportError as error:
            raise CheckpointError(
                f"{path}: running it in OpenVINO needs openvino; install it: pip install openvino"
            ) from error
        settings = {
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        try:
            self.compiled = openvino.compile_model(str(path), "CPU", settings)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise CheckpointError(f"{path}: OpenVINO cannot run it ({reason})") from error

    def forward(self, image: Tensor) -> Tensor:
        array = image.float().contiguous().cpu().numpy()
        return torch.from_numpy(self.compiled([array])[0]).to(image.device)


def openvino_precisions() -> list[str]:
    """What OpenVINO computes in on this CPU: fp32, bf16; none where it is not installed."""
    try:
        import openvino
    except ImportError:
        return []
    known = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ["fp32", "bf16"] if "BF16" in known else ["fp32"]


def read_metadata(metadata: dict[str, str], *, origin: str) -> tuple[ModelCard, dict]:
    """The card in an export's metadata, and what else is known of the export.

    Raises:
        CheckpointError: it was not exported by stripseg, or is damaged.
    """
    if KEY not in metadata:
        raise CheckpointError(
            f"{origin}: has no metadata of stripseg, so its classes and normalisation are not "
            "known; export the checkpoint with `stripseg export`"
        )
    try:
        facts = json.loads(metadata[KEY])
        config = stored_config(facts["config"], origin).model_dump(mode="json")
        return read_card(facts["card"], config, origin=origin), facts
    except (ValueError, KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{origin}: its metadata is damaged ({error})") from error
