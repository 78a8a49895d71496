"""Learning curves of runs: `stripseg curves EXP [EXP ...]`.

EXP is a run's folder (exp/camvid/spnet18), its model folder, or a file of records in it. Loss,
learning rate, mIoU, mAcc, allAcc, seconds per step and memory come to the terminal, and where the
options say, to a picture and to tables of every value recorded.

    stripseg curves exp/camvid/spnet18 exp/camvid/spnet50 --output curves.png
    stripseg curves exp/camvid/* --csv curves.csv --jsonl curves.jsonl
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from stripseg import command_line
from stripseg.command_line import Result
from stripseg.report.curves import (
    BARS,
    Run,
    check_output,
    draw,
    read_runs,
    text_charts,
    write_csv,
    write_jsonl,
)


def main(argv: Sequence[str]) -> Result:
    """Read, print, and write what the options ask for."""
    options = parser().parse_args(list(argv))
    if options.output:
        check_output(options.output)
    runs = read_runs(options.run)
    print(text_charts(runs, plain=not can_print(BARS)))
    writers = ((options.output, draw), (options.csv, write_csv), (options.jsonl, write_jsonl))
    for path, write in writers:
        if path:
            write(runs, path)
            print(path)
    return Result([figures_of(run) for run in runs])


def figures_of(run: Run) -> dict:
    """What `--json` prints of a run: the last value of every curve, and all of its values."""
    curves = {
        name: {"last": points[-1].value, "values": points} for name, points in run.curves.items()
    }
    return {"run": run.name, "curves": curves}


def parser() -> argparse.ArgumentParser:
    parser = command_line.command_parser("stripseg curves", __doc__)
    parser.add_argument("run", nargs="+", metavar="EXP", help="folder or file of a run")
    parser.add_argument("--output", type=Path, help="picture of all curves: .png or .svg")
    parser.add_argument("--csv", type=Path, help="table: run, name, epoch, step, value")
    parser.add_argument("--jsonl", type=Path, help="the same, one JSON object per line")
    return parser


def can_print(text: str) -> bool:
    """Return whether the terminal has these characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


if __name__ == "__main__":
    command_line.run_command(main)
