"""Peak memory of testing large images, each in a process of its own: SPNet-50, one scale, flip."""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

import torch

from stripseg.util.inference.sliding_window import (
    InferenceSettings,
    SlidingWindow,
    usual_batch_size,
)
from stripseg.util.precision import choose_precision

from .rows import Row
from .testing import picture, spnet50

# height, width, classes, dataset whose config has this number, crop, limit in GiB
CASES = [(1024, 2048, 19, "cityscapes", 769, None), (4000, 6000, 150, "ade20k", 480, 16.0)]


def measure(device: str = "cpu", *, rounds: int = 1) -> Iterator[Row]:
    """Ours measured; the baseline is what its two float64 score arrays alone would take."""
    for height, width, classes, dataset, crop, limit in CASES:
        words = [height, width, classes, dataset, crop, device]
        done = subprocess.run(
            [sys.executable, "-m", "benchmark.memory", *map(str, words)],
            check=True,
            capture_output=True,
            text=True,
        )
        peak, seconds = map(float, done.stdout.split())
        baseline = 2 * 8 * height * width * classes / 2**30
        yield Row(
            f"memory of testing {width}x{height}, {classes} classes",
            peak,
            baseline,
            "GiB",
            baseline / peak,
            None if limit is None else baseline / limit,
            f"whole process, done in {seconds:.0f} s",
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("height", "width", "classes"):
        parser.add_argument(name, type=int)
    parser.add_argument("dataset")
    parser.add_argument("crop", type=int)
    parser.add_argument("device")
    options = parser.parse_args()
    device = torch.device(options.device)
    network = spnet50(options.dataset).to(device, memory_format=torch.channels_last)
    settings = InferenceSettings(
        options.classes,
        window=(options.crop, options.crop),
        batch_size=usual_batch_size(device),
        score_bytes=2 * 2**30,
    )
    precision = choose_precision("auto", device, key="precision")
    tester = SlidingWindow(network, settings, device=device, dtype=precision)
    image = picture(options.height, options.width)
    start = time.perf_counter()
    tester.predict(image).cpu()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    print(peak / 2**30, seconds)


if __name__ == "__main__":
    main()
