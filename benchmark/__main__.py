"""python -m benchmark [JOB ...] [--device cuda] [--json FILE]: a table of ratios."""

import argparse
import importlib
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from stripseg.util.precision import set_numerics

from .rows import HEADER, line, write_json

RATIOS = (
    "ratio: how many times better ours is than a plain implementation of the same job "
    "(textbook.py) in single precision, on the same machine with the same allocator settings"
)
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
    set_numerics()
    facts = machine(options.device)
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    print(f"{RATIOS}\n\n{HEADER}", flush=True)
    rows = []
    for job in options.jobs or JOBS:
        for row in importlib.import_module(f"benchmark.{job}").measure(options.device):
            rows.append(row)
            print(line(row), flush=True)
            if options.json:
                write_json(options.json, rows, facts)
    return 0


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def allocator(environment: Mapping[str, str]) -> str:
    """glibc's settings as `tool/environment.sh` or the user made them, for a line of facts."""
    names = [n for n in sorted(environment) if n.startswith("MALLOC_") or n == "GLIBC_TUNABLES"]
    return " ".join(f"{name}={environment[name]}" for name in names) or "system default"


def machine(device: str) -> dict:
    """What the figures were measured on, and the allocator's settings for both sides."""
    facts = {"cores": len(os.sched_getaffinity(0)), "threads": torch.get_num_threads()}
    facts["allocator"] = allocator(os.environ)
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
    return {**facts, "torch": torch.__version__, "python": platform.python_version()}


if __name__ == "__main__":
    sys.exit(main())
