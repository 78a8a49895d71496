"""Files and functions that the journeys through the code cross: `python -m benchmark.journeys`.

Counted with a profile hook over the files of the package, in every thread: what a reader has to
follow, not what it costs. A small SPNet-18 on generated scenes is trained for one step and tested
on one image. Some journeys contain others: a test reads a sample and runs the network as training
does. "files" counts all of them, "new" those that no journey further up the table has crossed.
"""

import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = tuple(
    f"{ROOT / name}/" for name in ("config", "dataset", "model", "stripseg", "tool", "util")
)


class Journey:
    """The package's functions that were called, by file."""

    def __init__(self) -> None:
        self.functions: set[tuple[str, str, int]] = set()

    @contextmanager
    def recorded(self) -> Iterator[None]:
        threading.setprofile(self._profile)  # of threads that begin in the block
        sys.setprofile(self._profile)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    def _profile(self, frame, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(FOLDERS) and code.co_name != "<module>":
            self.functions.add(
                (
                    code.co_filename,
                    code.co_qualname if hasattr(code, "co_qualname") else code.co_name,
                    code.co_firstlineno,
                )
            )

    @property
    def files(self) -> list[str]:
        return sorted({str(Path(file).relative_to(ROOT)) for file, _, _ in self.functions})


def record(work: Callable[[], object]) -> tuple[Journey, object]:
    journey = Journey()
    with journey.recorded():
        result = work()
    return journey, result


def write_config(folder: Path) -> Path:
    """Six training and three validation scenes, and a YAML for them."""
    from stripseg.dataset.generated.shapes import write_shapes

    write_shapes(folder / "data", train=6, val=3, height=72, width=88)
    content = {
        "DATA": {
            "dataset": "shapes",
            "data_root": str(folder / "data"),
            "train_list": "train.txt",
            "val_list": "val.txt",
            "classes": 9,
        },
        "TRAIN": {
            "arch": "spnet",
            "layers": 18,
            "train_h": 48,
            "train_w": 40,
            "batch_size": 2,
            "epochs": 1,
            "workers": 0,
            "precision": "fp32",
            "save_path": str(folder / "run" / "model"),
        },
        "TEST": {
            "test_list": "val.txt",
            "index_step": 1,
            "base_size": 0,
            "workers": 0,
            "save_folder": str(folder / "run" / "result"),
        },
    }
    path = folder / "shapes_small.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def journeys(folder: Path) -> Iterator[tuple[str, Journey]]:
    from stripseg import testing
    from stripseg.config.load import load_config
    from stripseg.dataset.build import build_classes
    from stripseg.dataset.results import PredictionFiles
    from stripseg.engine import load_engine
    from stripseg.training_run import build_planned, plan_run
    from stripseg.util.training.prefetch import Prefetcher
    from stripseg.util.training.step_timer import StepTimer

    path = write_config(folder)
    journey, config = record(lambda: load_config(path))
    yield "YAML -> Config", journey
    journey, plan = record(lambda: plan_run(config, torch.device("cpu")))
    yield "planning a run: log, data check, resume", journey
    journey, trainer = record(lambda: build_planned(plan))
    yield "building its trainer", journey
    journey, loaded = record(lambda: next(trainer.loader.batches(0, 1)))
    yield "one batch from files", journey
    trainer.network.train()
    device = torch.device("cpu")
    prefetcher = Prefetcher(config, device, timer=StepTimer(device), note=lambda *_: None)
    batch = prefetcher.prepare(loaded, 0)
    journey, _ = record(lambda: trainer.train_step(batch))
    yield "one training step", journey
    journey, _ = record(lambda: trainer.fit(until=1))
    yield "the loop around it: rate, log, checkpoint", journey
    config = load_config(path)
    classes, images = build_classes(config), testing.chosen_images(config)
    names = [pair.name for pair in images.pairs]
    files = PredictionFiles(Path(config.TEST.save_folder), names, classes.colors)
    journey, engine = record(lambda: load_engine(config, torch.device("cpu")))
    yield "loading a trained network", journey

    def test() -> None:
        outcome = testing.predict(config, engine, images, files, checkpoint="")
        testing.write_metrics(config, outcome.scores, classes.names, len(images), "fp32")

    journey, _ = record(test)
    yield "testing one image, to metrics.json", journey


def main() -> None:
    listing = "--files" in sys.argv
    with tempfile.TemporaryDirectory() as folder:
        rows = list(journeys(Path(folder)))
    print(f"{'journey':<43}{'files':>7}{'new':>5}{'functions':>11}")
    known: set[str] = set()
    for name, journey in rows:
        new = set(journey.files) - known
        known |= new
        print(f"{name:<43}{len(journey.files):>7}{len(new):>5}{len(journey.functions):>11}")
        if listing:
            print("\n".join(f"    {file}{' (new)' * (file in new)}" for file in journey.files))


if __name__ == "__main__":
    main()
