"""A matrix of runs to a table and pictures: `stripseg study STUDY.yaml [KEY VALUE ...]`.

    stripseg study config/studies/heads.yaml
    stripseg study config/studies/heads.yaml --config "mydata spnet18" TRAIN.width 0.25
    stripseg study config/studies/heads.yaml --report      only the table of what there is

Every config, with every combination of the options that vary and every seed, is trained and
tested in a process of its own. Finished runs are not repeated: run the same command to resume
after a stop. Tables (Markdown, LaTeX, CSV, JSON) and pictures come to exp/studies/NAME.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stripseg import command_line
from stripseg.command_line import Result
from stripseg.config.errors import TrainingError
from stripseg.config.load import given_options
from stripseg.tool.summary import summarise_config
from stripseg.util.checkpoint import folder_lock
from stripseg.util.experiments.child_process import follow
from stripseg.util.experiments.report import new_figure
from stripseg.util.experiments.run_file import own_options
from stripseg.util.experiments.study import Row, read_study, write_study_report
from stripseg.util.signals import STOPPED, Stopped, StopRequest

FOLDER = Path("exp/studies")


def main(argv: Sequence[str]) -> Result:
    """Make the missing runs, then the report of those there are."""
    parser = command_line.command_parser("stripseg study", __doc__)
    parser.add_argument("file", metavar="STUDY.yaml", help="what to compare")
    parser.add_argument(
        "words", nargs="*", metavar="KEY VALUE", help="options of all runs, over the file's"
    )
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar='"DATASET EXPERIMENT"',
        help="in place of the file's configs; may be repeated",
    )
    parser.add_argument("--name", help="folder in exp/studies, in place of the file's name")
    parser.add_argument("--report", action="store_true", help="only write table and pictures")
    options = parser.parse_intermixed_args(list(argv))
    given = dict(given_options(options.words))
    file, rows = read_study(Path(options.file), configs=options.config, options=given)
    folder = FOLDER / (options.name or file.name)
    new_figure(1, 1)  # matplotlib is missed now, not after the last run
    if not options.report:
        # seed by seed, so that a part of it is a study too
        runs = [(row, seed) for seed in file.seeds for row in rows]
        with folder_lock(folder), StopRequest() as request:
            for number, (row, seed) in enumerate(runs, 1):
                place = folder / row.folder(seed)
                if figures_of(place) is None:
                    print(f"run {number} of {len(runs)}: {place}", flush=True)
                    make_run(row, seed, place, request)
    folder.mkdir(parents=True, exist_ok=True)
    print(write_study_report([measured(row, file.seeds, folder) for row in rows], folder))
    runs = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return Result({"folder": folder, "runs": runs})


def make_run(row: Row, seed: int, place: Path, request: StopRequest) -> None:
    """Train and test, from where the run's folder says."""
    own = {"TRAIN.manual_seed": seed, **own_options(place)}
    for command in ("train", "test"):
        run(command, row.words(**own), place, request)


def run(command: str, words: Sequence[str], place: Path, request: StopRequest) -> None:
    """Run one command in a process of its own, its words in a file beside the run.

    Raises:
        Stopped: it was asked to stop; run the same command to resume.
        TrainingError: it failed.
    """
    output = place / f"{command}.txt"
    program = [sys.executable, str(Path(__file__).with_name(f"{command}.py")), *words]
    code = follow(program, output, end=lambda: request.name is not None)
    if code == STOPPED or request.name:
        raise Stopped(f"stopped in {place}; run the same command to resume")
    if code:
        last = output.read_text(encoding="utf-8", errors="replace").strip().split("\n")[-1]
        raise TrainingError(f"{place}: {command} ended with code {code}: {last}")


def figures_of(place: Path) -> dict[str, Any] | None:
    """The figures of a run that is done; None if it is not."""
    try:
        return json.loads((place / "result/metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def measured(row: Row, seeds: Sequence[int], folder: Path) -> Row:
    """The row with what its network costs and the figures of its seeds so far."""
    parts = summarise_config(row.load())
    cost = {
        "parameters": sum(part.parameters for part in parts),
        "multiply-adds": sum(part.multiply_adds for part in parts),
    }
    found = {seed: figures_of(folder / row.folder(seed)) for seed in seeds}
    figures = {seed: figures for seed, figures in found.items() if figures}
    return replace(row, cost=cost, figures=figures)


if __name__ == "__main__":
    command_line.run_command(main)
