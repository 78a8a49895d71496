"""Is B better than A? `stripseg compare A B [C ...]`: tests of the same images, compared honestly.

A, B, C are folders of tests (exp/camvid/spnet18/result/val/ss). The others are compared with the
first. Folders joined by commas are seeds of one method:

    stripseg compare exp/camvid/pspnet18/result/val/ss exp/camvid/spnet18/result/val/ss
    stripseg compare runs/psp_s1,runs/psp_s2,runs/psp_s3 runs/sp_s1,runs/sp_s2,runs/sp_s3

The difference has a 95 % interval (paired bootstrap over images) and a p-value (paired permutation
test; with several seeds, from an interval that holds their spread). compare.html shows the classes,
and the images that changed most.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from stripseg import command_line
from stripseg.command_line import Result
from stripseg.config.errors import ConfigError
from stripseg.report.compare import Comparison, compare
from stripseg.report.compare_page import Method, comparison_page, comparison_text
from stripseg.report.records import read_records
from stripseg.util.files import write_text


def main(argv: Sequence[str]) -> Result:
    """Compare, print, write the page."""
    options = parser().parse_args(list(argv))
    if len(options.tests) < 2:
        raise ConfigError("stripseg compare: expected two tests or more, such as A B")
    if options.names and len(options.names) != len(options.tests):
        raise ConfigError(
            f"--names: expected {len(options.tests)}, one per test, got {len(options.names)}"
        )
    names = options.names or short_names(options.tests)
    first, *others = map(method, options.tests, names)
    results = [(other, compare(first.runs, other.runs, groups=options.groups)) for other in others]
    print("\n\n".join(comparison_text(first, *entry) for entry in results))
    page = options.output
    if page.suffix.lower() != ".html":
        page = page / "compare.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text(page, comparison_page(first, results))
    print(f"page: {page}")
    return Result([figures_of(first, *entry) for entry in results])


def parser() -> argparse.ArgumentParser:
    parser = command_line.command_parser("stripseg compare", __doc__)
    parser.add_argument("tests", nargs="+", help="folders of tests; seeds joined by commas")
    parser.add_argument("--names", nargs="+", help="what to call them (default: their folders)")
    parser.add_argument(
        "--groups", default="auto", help="images drawn together, as in `stripseg test --groups`"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("compare.html"),
        help="the page: FILE.html, or a folder (default: compare.html)",
    )
    return parser


def method(word: str, name: str) -> Method:
    folders = [Path(part) for part in word.split(",") if part]
    return Method(name, folders, [read_records(folder) for folder in folders])


def short_names(words: Sequence[str]) -> list[str]:
    """The parts of the paths in which they differ; the whole paths where nothing is left."""
    paths = [Path(word.split(",")[0]).parts for word in words]
    if len({len(parts) for parts in paths}) > 1 or len(set(paths)) < len(paths):
        return list(words)
    differing = [
        index for index, parts in enumerate(zip(*paths, strict=True)) if len(set(parts)) > 1
    ]
    return ["/".join(parts[index] for index in differing) for parts in paths]


def figures_of(first: Method, second: Method, result: Comparison) -> dict:
    """What `--json` prints of a comparison."""
    known = zip(first.runs[0].names, result.classes, strict=True)
    return {
        "a": {"name": first.name, "mIoU": result.a},
        "b": {"name": second.name, "mIoU": result.b},
        "difference": result.mean,
        "classes": {name: entry for name, entry in known if entry is not None},
        "units": result.units,
        "notes": result.notes,
        "images": result.images,
    }


if __name__ == "__main__":
    command_line.run_command(main)
