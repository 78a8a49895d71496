"""A matrix of runs to a table and pictures: `python tool/study.py STUDY.yaml [--report]`.

Every config, with every combination of the options that vary and every seed, is trained and
tested in a process of its own. Runs that are done are not done again: the same command goes on
after a stop. Table (Markdown, LaTeX, CSV) and pictures come to exp/studies/NAME.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from stripseg.config.errors import TrainingError
from stripseg.config.study_file import Cell, Study
from stripseg.tool import common
from stripseg.tool.summary import summarise_config
from stripseg.util.checkpoint import folder_lock
from stripseg.util.interruption import STOPPED, Stopped
from stripseg.util.study_report import Result, write_report

FOLDER = Path("exp/studies")


def main(argv: Sequence[str]) -> int | None:
    """Make the missing runs, then the report of those there are."""
    parser = argparse.ArgumentParser(prog="study.py", description=__doc__)
    parser.add_argument("file", metavar="STUDY.yaml", help="what to compare")
    parser.add_argument("--report", action="store_true", help="only write table and pictures")
    options = parser.parse_args(list(argv))
    study = Study(Path(options.file))
    folder = FOLDER / study.file.name
    if not options.report:
        with folder_lock(folder):
            make_runs(study, folder)
    print(write_report(results_of(study, folder, Path(options.file)), folder))
    return None


def make_runs(study: Study, folder: Path) -> None:
    """Train and test what has no figures yet, seed by seed, so that a part of it is a study too."""
    runs = [(cell, seed) for seed in study.file.seeds for cell in study.cells]
    for number, (cell, seed) in enumerate(runs, 1):
        place = folder / cell.folder / f"seed{seed}"
        words = run_words(study, cell, seed, place)
        if figures_of(place, words) is not None:
            continue
        print(f"run {number} of {len(runs)}: {place}", flush=True)
        for command in ("train", "test"):
            run(command, words, place)
        (place / "command.json").write_text(json.dumps(words), encoding="utf-8")


def run_words(study: Study, cell: Cell, seed: int, place: Path) -> list[str]:
    """What follows `train` and `test` for one run."""
    places = {"TRAIN.save_path": place / "model", "TEST.save_folder": place / "result"}
    fixed = [word for key, value in places.items() for word in (key, str(value))]
    seeds = ["TRAIN.manual_seed", str(seed)]
    return [*cell.config.split(), *study.options, *cell.words, *seeds, *fixed]


def run(command: str, words: Sequence[str], place: Path) -> None:
    """One command in a process of its own, its words in a file beside the run.

    Raises:
        Stopped: it was asked to stop; the same command goes on.
        TrainingError: it failed.
    """
    place.mkdir(parents=True, exist_ok=True)
    output = place / f"{command}.txt"
    module = [sys.executable, "-m", f"stripseg.tool.{command}"]
    with open(output, "ab") as file:
        done = subprocess.run([*module, *words], stdout=file, stderr=subprocess.STDOUT)
    if done.returncode == STOPPED:
        raise Stopped(f"stopped in {place}; the same command goes on from there")
    if done.returncode != 0:
        last = output.read_text(encoding="utf-8", errors="replace").strip().split("\n")[-1]
        raise TrainingError(f"{place}: {command} ended with code {done.returncode}: {last}")


def figures_of(place: Path, words: Sequence[str]) -> dict | None:
    """The figures of a run that is done with these very options; None if there is none."""
    try:
        done = json.loads((place / "command.json").read_text(encoding="utf-8"))
        figures = json.loads((place / "result/metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return figures if done == list(words) else None


def results_of(study: Study, folder: Path, origin: Path) -> list[Result]:
    """One for each cell: what its network costs, and the figures of its seeds."""
    results = []
    for cell in study.cells:
        places = [(seed, folder / cell.folder / f"seed{seed}") for seed in study.file.seeds]
        found = [figures_of(p, run_words(study, cell, seed, p)) for seed, p in places]
        parts = summarise_config(study.load(cell, origin))
        results.append(
            Result(
                config=cell.config,
                values=dict(cell.values),
                figures=[figures for figures in found if figures is not None],
                parameters=sum(part.parameters for part in parts),
                multiply_adds=sum(part.multiply_adds for part in parts),
            )
        )
    return results


if __name__ == "__main__":
    common.run_command(main)
