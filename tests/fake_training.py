"""In place of tool/train.py: epochs without a network that resume, stop and fail as real ones do.

The mIoU is 0.5 - |rate - 0.01|, a little less in early epochs; EPOCH_SECONDS makes it slow.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import yaml

signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
options = yaml.safe_load(Path(sys.argv[sys.argv.index("--config") + 1]).read_text())["TRAIN"]
rate, folder = options.get("base_lr", 0.01), Path(options["save_path"])
folder.mkdir(exist_ok=True)
print("GPUs", os.environ.get("CUDA_VISIBLE_DEVICES"), "threads", os.environ["OMP_NUM_THREADS"])
if rate > 1:
    sys.exit("error: 1 steps in a row were skipped")
epochs = folder / "epochs.jsonl"
done = len(epochs.read_text().splitlines()) if epochs.exists() else 0
print("resuming from epoch", done, flush=True)
for epoch in range(done + 1, options["epochs"] + 1):
    figures = {"epoch": epoch, "val": {"mIoU": 0.5 - abs(rate - 0.01) - 0.1 / epoch}}
    with epochs.open("a") as file:
        file.write(json.dumps(figures) + "\n")
    time.sleep(float(os.environ.get("EPOCH_SECONDS", 0)))
