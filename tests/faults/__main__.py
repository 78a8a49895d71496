"""The long version: python -m tests.faults --kills 60. Prints what was done and what was lost."""

import argparse
import sys
import tempfile
from pathlib import Path

from .harness import bombard, write_config


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        config = write_config(
            scratch, train=8, height=72, width=88, train_h=64, train_w=64, tensorboard=False
        )
        report = bombard(config, scratch, kills=options.kills, seed=options.seed)
    print(report)
    return 1 if report.differences else 0


if __name__ == "__main__":
    sys.exit(main())
