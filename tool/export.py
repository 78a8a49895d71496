"""Write a trained network as a file that other programs run: `stripseg export CHECKPOINT OUT`.

OUT is .onnx (ONNX, for ONNX Runtime, OpenVINO, TensorRT) or .pt2 (torch.export). The file is run at
eight sizes and two batch sizes against the checkpoint before it gets its name.

    stripseg export exp/camvid/spnet18/model/best.pth spnet18.onnx
    stripseg export best.pth window.onnx --window 480 480     fixed size, for runtimes that want it
    stripseg export best.pth simple.onnx --pixels --class-map  uint8 image in, class map out
"""

from collections.abc import Sequence
from pathlib import Path

from stripseg import command_line
from stripseg.command_line import Result
from stripseg.export import export_network
from stripseg.trained_network import load


def main(argv: Sequence[str]) -> Result:
    """Load, export, compare, print the comparison."""
    parser = command_line.command_parser("stripseg export", __doc__)
    parser.add_argument("checkpoint", help="a checkpoint, or a folder that save_pretrained wrote")
    parser.add_argument("output", type=Path, help="file to write: .onnx or .pt2")
    shape = parser.add_argument_group("shapes and types")
    shape.add_argument(
        "--window",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="one fixed size (default: any)",
    )
    shape.add_argument("--pixels", action="store_true", help="input (N, H, W, C) uint8, 0..255")
    shape.add_argument("--class-map", action="store_true", help="output (N, H, W) uint8 classes")
    options = parser.parse_args(argv)
    trained = load(options.checkpoint, device="cpu")
    export = export_network(
        trained,
        options.output,
        window=tuple(options.window) if options.window else None,
        pixels=options.pixels,
        class_map=options.class_map,
    )
    print(export.table())
    size = sum(file.stat().st_size for file in export.files)
    names = " and ".join(map(str, export.files))
    print(f"{names}: {size / 1e6:.1f} MB, the same as {options.checkpoint} at every size tried")
    return Result(
        {
            "file": export.path,
            "files": export.files,
            "bytes": size,
            "comparisons": export.comparisons,
        }
    )


if __name__ == "__main__":
    command_line.run_command(main)
