"""python -m benchmark [JOB ...] [--device cuda] [--json FILE]: a table of ratios."""

import argparse
import importlib
import os
import platform
import sys
from pathlib import Path

import torch

from .rows import table, write_json

JOBS = ("testing", "memory", "training", "input_pipeline", "counting")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmark", description=__doc__)
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=", ".join(JOBS) + "; empty is all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default_device())
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    unknown = set(options.jobs) - set(JOBS)
    if unknown:
        parser.error(f"no such job: {', '.join(sorted(unknown))}; there are {', '.join(JOBS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no GPU here; --device cpu measures the host")
    rows = []
    for job in options.jobs or JOBS:
        for row in importlib.import_module(f"benchmark.{job}").measure(options.device):
            rows.append(row)
            print(f"{row.job}: {row.ratio:.2f}", file=sys.stderr, flush=True)
    facts = machine(options.device)
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    print(table(rows))
    if options.json:
        write_json(options.json, rows, facts)
    return 0


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def machine(device: str) -> dict:
    """What the figures were measured on."""
    facts = {"cores": len(os.sched_getaffinity(0)), "threads": torch.get_num_threads()}
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
    return {**facts, "torch": torch.__version__, "python": platform.python_version()}


if __name__ == "__main__":
    sys.exit(main())
