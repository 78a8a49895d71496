"""One command for a machine with a GPU: does it keep its promises there, and how fast is it?

    python -m benchmark.gpu_check [--json FILE] [--seconds 450] [--only SECTION ...]
    python -m benchmark.gpu_check --device cpu --quick      a rehearsal without a GPU

Sections come in the order of their importance, each with the seconds it may need; what there is no
time for is named. The file is written after every section.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from stripseg.dataset.generated.shapes import write_shapes
from stripseg.util.inference.sliding_window import InferenceSettings, SlidingWindow
from stripseg.util.precision import choose_precision, set_numerics

from . import gpu_promises, textbook
from .__main__ import machine
from .steps import config_of, fresh_trainer, step_after_step
from .testing import BASE_SIZE, CLASSES, CROP, SIX_SCALES, SIZE, picture, spnet50

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Check:
    """What the sections are given.

    Args:
        quick: small networks and pictures: a rehearsal, whose figures mean nothing.
        ends: when all has to be done, by `time.monotonic`.
    """

    device: torch.device
    quick: bool
    ends: float

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def left(self) -> float:
        return self.ends - time.monotonic()

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], *, rounds: int = 5, warm_up: int = 2) -> float:
        """The median time of `work`, until the device has done it."""
        rounds, warm_up = (1, 1) if self.quick else (rounds, warm_up)
        for _ in range(warm_up):
            work()
        taken = []
        for _ in range(rounds):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    def peak(self, work: Callable[[], object]) -> float | None:
        """The most GiB that PyTorch holds during `work`."""
        if not self.on_gpu:
            work()
            return None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        self.wait()
        return rounded(torch.cuda.max_memory_allocated(self.device) / 2**30)


@dataclass(frozen=True)
class Section:
    """A part of the check.

    Args:
        seconds: that it may need on a GPU; it is left out where fewer are left.
        gpu_only: there is nothing to rehearse.
    """

    name: str
    work: Callable[[Check], dict]
    seconds: float
    gpu_only: bool = False


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


def command(words: Sequence[str], seconds: float) -> tuple[int, str]:
    """Exit code and output of a Python process; a negative code where time ran out."""
    try:
        done = subprocess.run(
            [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return -1, f"not done after {seconds:.0f} s"
    return done.returncode, done.stdout + done.stderr


# ---- promises


def gpu_tests(check: Check) -> dict:
    """The tests marked `gpu` but those of test_gpu.py, whose checks are the sections after this."""
    words = ["-m", "pytest", "-m", "gpu", "-n", "0", "--ignore", "tests/test_gpu.py", "tests"]
    code, said = command(words, max(60.0, min(check.left(), 150.0)))
    lines = said.strip().splitlines()
    return {"ok": code == 0, "said": lines[-1] if lines else "", "tail": said[-1500:] * bool(code)}


def equality(check: Check) -> dict:
    cases = list(gpu_promises.STEPS)[: 2 if check.quick else None]
    return all_of({case: gpu_promises.equal_steps(check.device, case) for case in cases})


def bad_steps(check: Check) -> dict:
    kinds = gpu_promises.BAD_STEPS_ON_GPU if check.on_gpu else gpu_promises.BAD_STEPS
    return all_of({" ".join(kind): gpu_promises.bad_step(check.device, *kind) for kind in kinds})


def all_of(found: dict[str, dict]) -> dict:
    return {"ok": all(entry["ok"] for entry in found.values()), **found}


def predictions(check: Check) -> dict:
    return gpu_promises.equal_predictions(check.device)


def out_of_memory(check: Check) -> dict:
    return gpu_promises.forced_out_of_memory(check.device)


def waits(check: Check) -> dict:
    return gpu_promises.waits(check.device)


def two_processes(check: Check) -> dict:
    return gpu_promises.two_processes(check.device, seconds=max(60.0, min(check.left(), 150.0)))


# ---- speed


def hardware(check: Check) -> dict:
    """What the card gives at most: copying, and products of large bf16 matrices."""
    elements, side = (2**20, 256) if check.quick else (2**31, 8192)
    source = torch.zeros(elements, dtype=torch.uint8, device=check.device)
    target = torch.empty_like(source)
    bytes_a_second = 2 * elements / check.seconds(lambda: target.copy_(source))
    one, other = (
        torch.ones(side, side, dtype=torch.bfloat16, device=check.device) for _ in range(2)
    )
    operations = 2 * side**3 / check.seconds(lambda: one @ other)
    return {"copy TB/s": rounded(bytes_a_second / 1e12), "bf16 TFLOP/s": rounded(operations / 1e12)}


def training_speed(check: Check) -> dict:
    """The trainer's own steps: images a second, the host's part, peak memory, kernels."""
    kinds = {"bf16": [], "fp32": [], "bf16, zoom_factor 1": ["TRAIN.zoom_factor", "1"]}
    kinds |= {"bf16, 2 images": [], "fp16": []}
    found = {}
    for name in ["bf16"] if check.quick else kinds:
        precision = name[:4]
        images = 2 if check.quick or "2 images" in name else 16
        found[name] = speed_of_steps(check, ["TRAIN.precision", precision, *kinds[name]], images)
    return found


def speed_of_steps(check: Check, words: Sequence[str], images: int) -> dict:
    words = [*words, "TRAIN.batch_size", str(images)]
    layers, width, size = (18, 0.125, 65) if check.quick else (50, 1, 480)
    config = config_of(*words, size=size, layers=layers, width=width)
    many = 1 if check.quick else 5
    with tempfile.TemporaryDirectory() as folder:
        trainer = fresh_trainer(config, check.device, Path(folder))
        step = step_after_step(trainer, images)
        peak = check.peak(step)
        seconds = check.seconds(lambda: [step() for _ in range(many)], rounds=4) / many
        check.wait()
        began = time.perf_counter()
        step()
        host = time.perf_counter() - began
    found = {"image/s": rounded(images / seconds), "ms": rounded(1e3 * seconds)}
    found |= {"ms of the host": rounded(1e3 * host), "peak GiB": peak}
    found["compiled"] = trainer.network is not trainer.segmenter
    if check.on_gpu:
        found |= kernels_of(check, step)
        torch.cuda.empty_cache()
    return found


def kernels_of(check: Check, work: Callable[[], object]) -> dict:
    """How many kernels, and which of them take the time."""
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as seen:
        work()
        check.wait()
    on_gpu = [e for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    longest = sorted(seen.key_averages(), key=lambda e: -e.self_device_time_total)[:12]
    times = {e.key[:70]: rounded(e.self_device_time_total / 1e3) for e in longest}
    return {"kernels": len(on_gpu), "ms by kernel": times}


def testing_speed(check: Check) -> dict:
    """Images a second: the engine, the forward passes of its windows alone, the textbook."""
    set_numerics()
    device, image = check.device, picture(*((96, 128) if check.quick else SIZE))
    crop, base = (65, 128) if check.quick else (CROP, BASE_SIZE)
    network = gpu_promises.small_network() if check.quick else spnet50()
    network = network.to(device, memory_format=torch.channels_last)
    count = 1 if check.quick else 4
    images = [np.ascontiguousarray(image[: len(image) - i, i:]) for i in range(count)]
    found = {}
    many = {"2 scales": (0.5, 1.0)} if check.quick else {"6 scales": SIX_SCALES}
    for name, scales in {"1 scale": (1.0,), **many}.items():
        settings = InferenceSettings(CLASSES, window=(crop, crop), base_size=base, scales=scales)
        for precision in ("auto", "fp32") if check.on_gpu else ("fp32",):
            dtype = choose_precision(precision, device, key="precision")
            engine = SlidingWindow(network, settings, device=device, dtype=dtype)
            entry = speed_of_engine(check, engine, images)
            if precision == "auto":
                entry["peak GiB"] = check.peak(lambda engine=engine: engine.predict_group(images))
            found[f"{name}, {str(dtype).removeprefix('torch.')}"] = entry
        if check.left() > 60:
            options = {"classes": CLASSES, "crop": crop, "base_size": base, "scales": scales}
            began = time.perf_counter()
            textbook.test_image(network, image, device=str(device), **options)
            found[f"{name}, textbook"] = {"image/s": rounded(1 / (time.perf_counter() - began))}
    return found


def compiled_testing(check: Check) -> dict:
    """`TEST.compile`: whether it compiles, that its scores are the same, and its speed."""
    set_numerics()
    image = picture(*((96, 128) if check.quick else SIZE))
    crop, base = (65, 128) if check.quick else (CROP, BASE_SIZE)
    network = gpu_promises.small_network() if check.quick else spnet50()
    network = network.to(check.device, memory_format=torch.channels_last)
    scales = (0.5, 1.0) if check.quick else SIX_SCALES
    settings = InferenceSettings(CLASSES, window=(crop, crop), base_size=base, scales=scales)
    dtype = choose_precision("auto", check.device, key="precision")
    said: list[str] = []
    engine = SlidingWindow(network, settings, device=check.device, dtype=dtype, warn=said.append)
    expected = engine.probabilities(image)
    engine.compile()
    apart = (engine.probabilities(image) - expected).abs().max().item()
    found: dict = {"ok": not said and apart < 1e-5, "scores": apart}
    found["the scores alone"] = speed_of_engine(check, engine, [image] * 4)
    if check.left() > 90 or check.quick:
        engine.compile(network=True)
        found["network, too"] = speed_of_engine(check, engine, [image] * 4)
    return {**found, "said": said}


def speed_of_engine(check: Check, engine: SlidingWindow, images: Sequence[np.ndarray]) -> dict:
    """Four images of one size, four of other sizes each, and the forward passes alone."""
    shapes: list[torch.Size] = []
    logits = engine.logits

    def noted(pixels: torch.Tensor) -> torch.Tensor:
        shapes.append(pixels.shape)
        return logits(pixels)

    engine.logits = noted
    engine.predict_group([images[0]] * len(images))
    engine.logits = logits
    mixed = engine.dtype != torch.float32
    windows = [
        torch.rand(shape, device=check.device).contiguous(memory_format=torch.channels_last)
        for shape in sorted(set(shapes))
    ]
    by_shape = {window.shape: window for window in windows}

    @torch.no_grad()
    def bare() -> None:
        with torch.autocast(check.device.type, engine.dtype, enabled=mixed):
            for shape in shapes:
                logits(by_shape[shape])

    def predict(group: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [prediction.cpu().numpy() for prediction in engine.predict_group(group)]

    whole = check.seconds(lambda: predict([images[0]] * len(images)), rounds=3) / len(images)
    others = check.seconds(lambda: predict(images), rounds=3, warm_up=1) / len(images)
    forward = check.seconds(bare, rounds=3) / len(images)
    return {
        "image/s": rounded(1 / whole),
        "image/s of several sizes": rounded(1 / others),
        "bare image/s": rounded(1 / forward),
        "share of the forward passes": rounded(forward / whole),
    }


def compiled(check: Check) -> dict:
    """`TRAIN.compile`: whether it compiles, and the speed of its steps."""
    words = ["TRAIN.precision", "bf16", "TRAIN.compile", "True"]
    found = speed_of_steps(check, words, 2 if check.quick else 16)
    return {"ok": found["compiled"], **found}


# ---- whole commands


def shapes(check: Check) -> dict:
    """SPNet on the generated shapes, trained for two minutes and tested by the commands."""
    limit = max(30.0, min(120.0, check.left() - 40))
    epochs = ["TRAIN.epochs", "1" if check.quick else "13"]
    with tempfile.TemporaryDirectory() as folder:
        data, run = f"{folder}/data", f"{folder}/run"
        write_shapes(Path(data), **({"train": 16, "val": 4} if check.quick else {}))
        words = ["shapes", "spnet18", "DATA.data_root", data, "TRAIN.save_path", f"{run}/model"]
        words += ["TEST.save_folder", f"{run}/result", "TEST.report", "False", *epochs]
        if not check.on_gpu:
            words += ["TRAIN.train_gpu", "[]", "TEST.test_gpu", "[]", "TRAIN.width", "0.125"]
        began = time.monotonic()
        trained, said = command(["-m", "stripseg.tool.train", *words], limit)
        found = {
            "train": trained,
            "train s": rounded(time.monotonic() - began),
            "s/step": re.findall(r"([\d.]+) s/step", said)[-1:],
            "where the time goes": re.findall(r"where the time goes: (.*)", said)[:1],
        }
        tested, told = command(["-m", "stripseg.tool.test", *words], max(40.0, check.left()))
        found |= {"test": tested, "figures": re.findall(r"mIoU/mAcc/allAcc ([\d./]+)", told)[-1:]}
    if trained or tested:
        found["tail"] = (said if trained else told)[-1500:]
    return {"ok": trained == tested == 0, **found}


SECTIONS = [
    Section("gpu_tests", gpu_tests, 60, gpu_only=True),
    Section("equality", equality, 30),
    Section("bad_steps", bad_steps, 15),
    Section("predictions", predictions, 15),
    Section("out_of_memory", out_of_memory, 10, gpu_only=True),
    Section("waits", waits, 20, gpu_only=True),
    Section("hardware", hardware, 10),
    Section("training_speed", training_speed, 60),
    Section("testing_speed", testing_speed, 60),
    Section("two_processes", two_processes, 40),
    Section("shapes", shapes, 90),
    Section("compiled", compiled, 70),
    Section("compiled_testing", compiled_testing, 40),
]


def run(section: Section, check: Check) -> dict:
    """The figures of a section, or why there are none."""
    if section.gpu_only and not check.on_gpu:
        return {"left out": "needs a GPU"}
    if check.on_gpu and check.left() < section.seconds:
        return {"left out": f"{check.left():.0f} s are left, it may need {section.seconds:.0f}"}
    began = time.monotonic()
    try:
        found = section.work(check)
    except Exception as error:  # the sections after it still count
        lines = traceback.format_exc().splitlines()[-8:]
        found = {"ok": False, "error": f"{type(error).__name__}: {error}"[:800], "at": lines}
    if check.on_gpu:
        torch.cuda.empty_cache()
    return {**found, "seconds": rounded(time.monotonic() - began)}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--seconds", type=float, default=450, help="for all sections together")
    parser.add_argument("--only", nargs="+", choices=[section.name for section in SECTIONS])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="a rehearsal with small networks")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU here; to rehearse on the CPU: --device cpu --quick")
    began = time.monotonic()
    device = torch.device("cuda", 0) if options.device == "cuda" else torch.device("cpu")
    check = Check(device, options.quick, began + options.seconds)
    report: dict = {"machine": machine(options.device), "quick": options.quick}
    for section in SECTIONS:
        if options.only and section.name not in options.only:
            continue
        report[section.name] = run(section, check)
        print(section.name, json.dumps(report[section.name]), flush=True)
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    failed = [name for name, found in report.items() if is_bad(found)]
    print(json.dumps({"failed": failed, "seconds": round(time.monotonic() - began)}))
    return bool(failed)


def is_bad(found: object) -> bool:
    return isinstance(found, dict) and found.get("ok") is False


if __name__ == "__main__":
    sys.exit(main())
