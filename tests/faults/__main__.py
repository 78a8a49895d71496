"""The long version: python -m tests.faults --kills 60. Prints what was done and what was lost."""

import argparse
import sys
import tempfile
from pathlib import Path

import yaml

from stripseg.dataset.shapes import write_shapes

from .harness import bombard


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        write_shapes(scratch / "data", train=8, val=2, height=72, width=88)
        content = {
            "DATA": {
                "dataset": "shapes",
                "data_root": str(scratch / "data"),
                "train_list": "train.txt",
                "val_list": "val.txt",
                "classes": 9,
            },
            "TRAIN": {
                "arch": "fcn",
                "layers": 18,
                "train_h": 64,
                "train_w": 64,
                "batch_size": 2,
                "precision": "fp32",
                "tensorboard": False,
            },
        }
        config = scratch / "shapes_faults.yaml"
        config.write_text(yaml.safe_dump(content), encoding="utf-8")
        report = bombard(config, scratch, kills=options.kills, seed=options.seed)
    print(report)
    return 1 if report.differences else 0


if __name__ == "__main__":
    sys.exit(main())
