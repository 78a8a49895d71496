"""A matrix of runs to a table and pictures: `stripseg study STUDY.yaml [--report]`.

Every config, with every combination of the options that vary and every seed, is trained and
tested in a process of its own. Finished runs are not repeated: run the same command to resume
after a stop. Table (Markdown, LaTeX, CSV) and pictures come to exp/studies/NAME.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stripseg import command_line
from stripseg.config.errors import TrainingError
from stripseg.config.load import find_config, load_config
from stripseg.tool.summary import summarise_config
from stripseg.util.checkpoint import folder_lock, move_aside
from stripseg.util.experiments.child_process import follow
from stripseg.util.experiments.report import StudyRow, new_figure, write_study_report
from stripseg.util.experiments.study import Cell, Study
from stripseg.util.experiments.sweep_file import as_arguments
from stripseg.util.files import write_text
from stripseg.util.signals import STOPPED, Stopped, StopRequest

FOLDER = Path("exp/studies")
RUN = "run.json"  # what a run was begun with


def main(argv: Sequence[str]) -> int | None:
    """Make the missing runs, then the report of those there are."""
    parser = argparse.ArgumentParser(prog="stripseg study", description=__doc__)
    parser.add_argument("file", metavar="STUDY.yaml", help="what to compare")
    parser.add_argument("--report", action="store_true", help="only write table and pictures")
    options = parser.parse_args(list(argv))
    study = Study(Path(options.file))
    folder = FOLDER / study.file.name
    new_figure(1, 1)  # matplotlib is missed now, not after the last run
    if not options.report:
        with folder_lock(folder), StopRequest() as request:
            make_runs(study, folder, request)
    print(write_study_report(results_of(study, folder, Path(options.file)), folder))
    return None


def make_runs(study: Study, folder: Path, request: StopRequest) -> None:
    """Train and test what has no figures yet, seed by seed, so that a part of it is a study too."""
    runs = [(cell, seed) for seed in study.file.seeds for cell in study.cells]
    for number, (cell, seed) in enumerate(runs, 1):
        place = folder / cell.folder / f"seed{seed}"
        words = run_arguments(study, cell, seed, place)
        content = what_runs(words)
        if figures_of(place, content) is not None:
            continue
        print(f"run {number} of {len(runs)}: {place}", flush=True)
        if content_of(place) != content and (aside := move_aside(place)):
            print(f"the earlier run, with other options, is kept in {aside}", flush=True)
        write_text(place / RUN, json.dumps(content, indent=1))
        for command in ("train", "test"):
            run(command, words, place, request)


def run_arguments(study: Study, cell: Cell, seed: int, place: Path) -> list[str]:
    """What follows `train` and `test` for one run."""
    own = {
        "TRAIN.manual_seed": seed,
        "TRAIN.save_path": str(place / "model"),
        "TRAIN.resume": "auto",
        "TEST.model_path": None,
        "TEST.save_folder": str(place / "result"),
    }
    return [*cell.config.split(), *study.options, *cell.arguments, *as_arguments(own)]


def what_runs(words: Sequence[str]) -> dict[str, Any]:
    """The effective config of a run, whichever file and option say what."""
    config = load_config(find_config(*words[:2]), list(words[2:]))
    return config.model_dump(mode="json")


def run(command: str, words: Sequence[str], place: Path, request: StopRequest) -> None:
    """One command in a process of its own, its words in a file beside the run.

    Raises:
        Stopped: it was asked to stop; run the same command to resume.
        TrainingError: it failed.
    """
    output = place / f"{command}.txt"
    program = [sys.executable, str(Path(__file__).with_name(f"{command}.py"))]
    code = follow([*program, *words], output, end=lambda: request.name is not None)
    if code == STOPPED or (code and request.name):
        raise Stopped(f"stopped in {place}; run the same command to resume")
    if code:
        last = output.read_text(encoding="utf-8", errors="replace").strip().split("\n")[-1]
        raise TrainingError(f"{place}: {command} ended with code {code}: {last}")
    if request.name:
        raise Stopped(f"stopped by {request.name} after {command} in {place}")


def content_of(place: Path) -> dict[str, Any] | None:
    """What a run was begun with, None if there is none."""
    try:
        return json.loads((place / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def figures_of(place: Path, content: dict[str, Any]) -> dict | None:
    """The figures of a run that is done with this very config; None if there is none."""
    try:
        figures = json.loads((place / "result/metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return figures if content_of(place) == content else None


def results_of(study: Study, folder: Path, origin: Path) -> list[StudyRow]:
    """One for each cell: what its network costs, and the figures of its seeds."""
    results = []
    for cell in study.cells:
        places = {seed: folder / cell.folder / f"seed{seed}" for seed in study.file.seeds}
        found = {
            seed: figures_of(place, what_runs(run_arguments(study, cell, seed, place)))
            for seed, place in places.items()
        }
        parts = summarise_config(study.load(cell, origin))
        results.append(
            StudyRow(
                config=cell.config,
                values=dict(cell.values),
                figures={seed: f for seed, f in found.items() if f is not None},
                parameters=sum(part.parameters for part in parts),
                multiply_adds=sum(part.multiply_adds for part in parts),
            )
        )
    return results


if __name__ == "__main__":
    command_line.run_command(main)
