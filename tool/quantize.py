"""An ONNX export in int8: `stripseg quantize MODEL.onnx --calibrate LIST [KEY VALUE ...]`.

Convolutions, activations and sums become int8 (ONNX Runtime's static QDQ, per channel); LIST has
the images to calibrate with. The result is then tested beside the original on --validate LIST (by
OpenVINO as well, where it is installed) and is refused if its mIoU is more than --allow-drop lower.
KEY VALUE override the options in the file, such as DATA.data_root.

    stripseg quantize best.onnx --calibrate train.txt --validate val.txt DATA.data_root data/camvid
    stripseg quantize best.onnx --calibrate train.txt --checkpoint best.pth    PyTorch's rows, too
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from stripseg import command_line
from stripseg.command_line import Result
from stripseg.config.errors import CheckpointError, ExportError
from stripseg.quantization import (
    CPU,
    Candidate,
    Row,
    measure,
    measure_in_openvino,
    quantize,
    table,
)
from stripseg.util.precision import has_native_bfloat16


def main(argv: Sequence[str]) -> Result:
    """Quantize, measure, keep or refuse."""
    parser = command_line.command_parser("stripseg quantize", __doc__)
    parser.add_argument("model", type=Path, help="an .onnx file that `stripseg export` wrote")
    parser.add_argument("words", nargs="*", metavar="KEY VALUE", help="options of its config")
    parser.add_argument("--calibrate", required=True, metavar="LIST", help="images to calibrate")
    parser.add_argument("--validate", metavar="LIST", help="pairs to test on (default: calibrate)")
    parser.add_argument("--output", type=Path, help="file to write (default: MODEL.int8.onnx)")
    parser.add_argument("--windows", type=int, default=64, help="windows to calibrate with")
    parser.add_argument(
        "--weight-bits",
        type=int,
        choices=(7, 8),
        default=7,
        help="8 are closer to fp32, and saturate on x86 processors without VNNI",
    )
    parser.add_argument("--checkpoint", type=Path, help="the checkpoint, for PyTorch's rows")
    parser.add_argument(
        "--allow-drop",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="largest fall of mIoU, 0.01 is a point",
    )
    options = parser.parse_intermixed_args(list(argv))
    target = options.output or options.model.with_suffix(".int8.onnx")
    if options.windows < 1:
        parser.error(f"--windows {options.windows}: expected 1 or more")
    if target.resolve() == options.model.resolve():
        parser.error(f"--output {target}: is the model itself; name another file")
    attempt = target.with_name(f"{target.stem}.unverified.onnx")
    words = [*options.words, "TEST.test_list", options.calibrate]
    try:
        quantize(
            options.model,
            attempt,
            words=words,
            windows=options.windows,
            weight_bits=options.weight_bits,
        )
        words = [*options.words, "TEST.test_list", options.validate or options.calibrate]
        precisions = ["fp32", "bf16"] if has_native_bfloat16(CPU) else ["fp32"]
        measured = [
            measure(Candidate(f"PyTorch {precision}", options.checkpoint, precision), words)
            for precision in (precisions if options.checkpoint else ())
        ]
        full = measure(Candidate("ONNX Runtime fp32", options.model), words)
        int8 = measure(Candidate("ONNX Runtime int8", attempt), words)
        measured += [full, int8, *by_openvino(options.model, attempt, words)]
        print(table(measured))
        drop = full.mean_iou - int8.mean_iou
        if drop > options.allow_drop:
            raise ExportError(
                f"{target}: not written; int8 lowers mIoU by {drop:.4f}, more than --allow-drop "
                f"{options.allow_drop:g}. Calibrate with more images (--windows), or allow it"
            )
        attempt.replace(target)
    finally:
        attempt.unlink(missing_ok=True)
    print(f"{target}: mIoU {int8.mean_iou:.4f}, {-drop:+.4f} against fp32")
    return Result({"file": target, "mIoU_drop": drop, "rows": measured})


def by_openvino(model: Path, int8: Path, words: Sequence[str]) -> list[Row]:
    """The rows of OpenVINO, where it is installed; none, after a warning, if it fails."""
    try:
        return measure_in_openvino(model, int8, words)
    except CheckpointError as error:
        print(f"warning: {error}", file=sys.stderr)
        return []


if __name__ == "__main__":
    command_line.run_command(main)
