"""What a network looks at in an image: `stripseg explain CHECKPOINT IMAGE [--pixel ROW COLUMN]`.

For every strip pooling module the weights it multiplies by, for every mixed pooling module what its
branches add, and for one pixel which pixels of the image decide its class, with strip pooling and
without. Pictures and the page explain.html with all of them come to the output folder.

    stripseg explain exp/camvid/spnet18/model/best.pth street.jpg --pixel 400 300 --output explained
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from stripseg import command_line
from stripseg.command_line import Result
from stripseg.config.errors import DataError
from stripseg.report.explain import explain
from stripseg.report.explain_page import NO_STRIPS, write_explanation
from stripseg.trained_network import load, sources_of


def main(argv: Sequence[str]) -> Result:
    """Load, explain, write."""
    options = parser().parse_args(list(argv))
    if sources_of(options.image) is not None:
        raise DataError(f"{options.image}: name one image; a folder or pattern is many")
    trained = load(options.network, device=options.device)
    pixel = tuple(options.pixel) if options.pixel else None
    explanation = explain(trained, options.image, pixel)
    title = f"{Path(options.image).name}: what {options.network} looks at"
    files = write_explanation(explanation, options.output, title=title)
    print("\n".join(map(str, files)))
    if not explanation.has_strips:
        print(NO_STRIPS)
    return Result(
        {
            "pixel": explanation.pixel,
            "class": explanation.names[explanation.class_index],
            "strip_pooling": {m.name: {"mean": m.mean.mean()} for m in explanation.attention},
            "mixed_pooling": {
                m.name: {"pyramid": m.pyramid.mean(), "strips": m.strips.mean()}
                for m in explanation.branches
            },
            "files": files,
        }
    )


def parser() -> argparse.ArgumentParser:
    parser = command_line.command_parser("stripseg explain", __doc__)
    parser.add_argument("network", help="checkpoint, folder, or hf://OWNER/NAME; no export")
    parser.add_argument("image", help="image file")
    parser.add_argument(
        "--pixel",
        type=int,
        nargs=2,
        metavar=("ROW", "COLUMN"),
        help="of the image, from 0, whose class is explained (default: its centre)",
    )
    parser.add_argument("--output", type=Path, default=Path("exp/explain"), help="folder")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    return parser


if __name__ == "__main__":
    command_line.run_command(main)
