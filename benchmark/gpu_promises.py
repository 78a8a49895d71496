"""What has to hold on a GPU: each check gives its figures and whether they are good (`ok`).

`tests/test_gpu.py` asserts them, and `python -m benchmark.gpu_check` shows them. On the CPU the
first three compare it with itself, which rehearses them.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stripseg.dataset.segmentation import Sample
from stripseg.model.build import build_network
from stripseg.util.distributed import process_group
from stripseg.util.inference.evaluator import Evaluator
from stripseg.util.inference.sliding_window import InferenceSettings, SlidingWindow
from stripseg.util.metrics import ConfusionMatrix
from stripseg.util.precision import set_numerics

from .steps import config_of, fresh_trainer, one_step, prefetcher_of, random_batch, step_after_step

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parent.parent
SIZE = 65
STEPS: dict[str, list[str]] = {
    "spnet": [],
    "psp": ["TRAIN.arch", "psp"],
    "psa": ["TRAIN.arch", "psa"],
    "pyconvsegnet": ["TRAIN.arch", "pyconvsegnet"],
    "fcn": ["TRAIN.arch", "fcn"],
    "adamw": ["TRAIN.optimizer", "adamw", "TRAIN.base_lr", "0.0001"],
    "ohem": ["TRAIN.loss", "ohem", "TRAIN.ohem_min_kept", "500"],
    "class weights": ["TRAIN.class_weights", str(np.linspace(0.5, 2, 150).round(3).tolist())],
    "label smoothing": ["TRAIN.label_smoothing", "0.1"],
    "mixup": ["TRAIN.mixup", "0.2"],
    "accumulation": ["TRAIN.accumulation_steps", "2"],
    "ema": ["TRAIN.average_decay", "0.9"],
    "activation checkpointing": ["TRAIN.activation_checkpointing", "True"],
    "group norm": ["TRAIN.norm", "group"],
}
BAD_STEPS = [("sgd", "fp32"), ("adamw", "fp32"), ("adam", "fp32"), ("sgd", "bf16")]
BAD_STEPS_ON_GPU = [*BAD_STEPS, ("sgd", "fp16"), ("adamw", "fp16")]


def equal_steps(device: torch.device, case: str) -> dict:
    """Weights, statistics, losses and counted pixels after two steps of fp32: device and CPU."""
    set_numerics()
    words = ["TRAIN.precision", "fp32", "TRAIN.dropout", "0", "TRAIN.base_lr", "0.001"]
    config = config_of(*words, *STEPS[case], size=SIZE, layers=18, width=0.25)
    states, losses, counts = [], [], []
    for place in (CPU, device):
        with tempfile.TemporaryDirectory() as folder:
            trainer = fresh_trainer(config, place, Path(folder))
        prefetcher = prefetcher_of(config, place, torch.float32)
        for seed in range(2):
            batch = random_batch(config, 4, seed=seed, pin=place.type == "cuda")
            loss = one_step(trainer, prefetcher.prepare(batch, seed))
        states.append(trainer.segmenter.state_dict())
        losses.append(loss[0].item())
        counts.append(trainer.run_log.confusion.counts.cpu())
    apart = {
        "weights": largest_distance(states[1], states[0]),
        "loss": abs(losses[1] / losses[0] - 1),
        "pixels": int((counts[0] - counts[1]).abs().sum()) // 2,
    }
    return {"ok": apart["weights"] < 2e-3 and apart["loss"] < 1e-4, **apart}


def largest_distance(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """The largest distance of two tensors of one name, relative to their norm, 0.01 at least.

    The biases of batch norm begin at zero: after two steps their norm is 1e-5, and the order of the
    images in the batch alone changes them by 2 %.
    """
    worst = 0.0
    for key, value in first.items():
        if value.is_floating_point():
            one, other = value.detach().double().cpu(), second[key].detach().double().cpu()
            worst = max(worst, ((one - other).norm() / other.norm().clamp(min=1e-2)).item())
    return worst


def bad_step(device: torch.device, optimizer: str, precision: str) -> dict:
    """A step whose loss is NaN leaves weights and optimizer alone, and the next one trains."""
    set_numerics()
    words = ["TRAIN.optimizer", optimizer, "TRAIN.precision", precision, "TRAIN.base_lr", "0.0001"]
    config = config_of(*words, size=SIZE, layers=18, width=0.25)
    with tempfile.TemporaryDirectory() as folder:
        trainer = fresh_trainer(config, device, Path(folder))
    step, good = step_after_step(trainer, 4), trainer.train_step.loss
    step()
    step()

    def spoilt(*given, **context) -> tuple[Tensor, ...]:
        return tuple(part * float("nan") for part in good(*given, **context))

    def state() -> list[Tensor]:
        weights = [t for t in trainer.segmenter.state_dict().values() if t.is_floating_point()]
        entries = [e for s in trainer.optimizer.state.values() for e in s.values()]
        return [t.clone() for t in [*weights, *entries] if isinstance(t, Tensor)]

    before, unread = state(), len(trainer.run_log.unread)
    trainer.train_step.loss = spoilt
    step()
    after_bad = state()
    trainer.train_step.loss = good
    step()
    verdicts = [skipped.item() for *_, skipped in trainer.run_log.unread[unread:]]
    found = {
        "nothing changed": all(map(torch.equal, before, after_bad)),
        "told": verdicts == [1.0, 0.0],
        "goes on": not all(map(torch.equal, after_bad, state())),
    }
    return {"ok": all(found.values()), **found}


def small_network() -> nn.Module:
    torch.manual_seed(0)
    network = build_network(config_of(size=SIZE, layers=18, width=0.25)).eval()
    nn.init.normal_(network.head.classifier.weight, std=0.2)
    return network


def small_engine(device: torch.device, network: nn.Module, **options) -> SlidingWindow:
    settings = InferenceSettings(
        150, window=(97, 97), base_size=160, scales=(0.75, 1.0, 1.5), batch_size=8
    )
    return SlidingWindow(network.to(device), settings, device=device, **options)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


def equal_predictions(device: torch.device) -> dict:
    """Scores of the device as the CPU's: with all portions, and counts of the confusion matrix."""
    set_numerics()
    network, image = small_network(), noise(120, 160)
    expected = small_engine(CPU, network).probabilities(image)
    found = {}
    for index, portions in enumerate(small_engine(device, network).all_portions):
        engine = small_engine(device, network)
        engine.too_large = [(0, index - 1)] if index else []
        scores = engine.probabilities(image).cpu()
        apart = (scores - expected).abs().max().item()
        pixels = int((scores.argmax(0) != expected.argmax(0)).sum())
        found[portions.remedy] = {"ok": apart < 1e-4, "scores": apart, "pixels": pixels}
    label = torch.randint(0, 150, (3, 200, 300), dtype=torch.uint8)
    label[0, :9] = 255
    guess = torch.randint(0, 150, (3, 200, 300))
    matrices = [ConfusionMatrix(150, device=place, check=False) for place in (CPU, device)]
    for matrix in matrices:
        matrix.update(guess.to(matrix.counts.device), label.to(matrix.counts.device))
    same = torch.equal(matrices[0].counts, matrices[1].counts.cpu())
    found["confusion matrix"] = {"ok": same}
    return {"ok": all(entry["ok"] for entry in found.values()), **found}


def forced_out_of_memory(device: torch.device) -> dict:
    """Of a GPU that is nearly full: the engine says so, and finds what it finds with all of it."""
    set_numerics()
    said: list[str] = []
    network, image = small_network(), noise(480, 640)
    expected = small_engine(device, network).probabilities(image).cpu()
    engine = small_engine(device, network, warn=said.append)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    room = torch.cuda.memory_reserved(device) + 400 * 2**20
    torch.cuda.set_per_process_memory_fraction(room / total, device)
    try:
        scores = engine.probabilities(image).cpu()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    apart = (scores - expected).abs().max().item()
    small = noise(60, 80)
    engine.predict(small)
    recovered = engine.portions == engine.all_portions[0]
    return {"ok": bool(said) and apart < 1e-4 and recovered, "said": said, "scores": apart}


def places_of_waits(work: Callable[[], object]) -> dict[str, int]:
    """Where `work` makes the host wait for the GPU, as PyTorch itself sees it."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    told = [warning for warning in caught if "synchroniz" in str(warning.message)]
    return dict(Counter(f"{Path(w.filename).name}:{w.lineno}" for w in told))


def waits(device: torch.device) -> dict:
    """Where training steps and the evaluation of images wait; nowhere is wanted."""
    set_numerics()
    found = {}
    for case in ("spnet", "psa", "ohem", "class weights", "mixup", "accumulation", "ema"):
        words = ["TRAIN.precision", "bf16", *STEPS[case]]
        config = config_of(*words, size=SIZE, layers=18, width=0.25)
        with tempfile.TemporaryDirectory() as folder:
            step = step_after_step(fresh_trainer(config, device, Path(folder)), 4)
        step()
        step()
        found[f"step, {case}"] = places_of_waits(step)
    engine = small_engine(device, small_network(), dtype=torch.bfloat16)
    confusion = ConfusionMatrix(150, device=device, check=False)
    evaluator = Evaluator(engine, confusion, group_size=2)
    images = [noise(*size) for size in ((120, 160), (130, 150), (121, 161), (131, 151))]
    samples = [
        Sample(image, image[..., 0] % 150, f"{index}", index) for index, image in enumerate(images)
    ]
    evaluator.run(samples[:2])
    found["images of new sizes"] = places_of_waits(lambda: evaluator.run(samples[2:]))
    return {"ok": not any(found.values()), **found}


def two_processes(device: torch.device, *, seconds: float = 150) -> dict:
    """Two processes on one device by gloo, with synchronized batch norm, take the step of one."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(process_group.free_port()),
        "WORLD_SIZE": "2",
    }
    ends = time.monotonic() + seconds
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmark.gpu_promises", str(device)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**environment, "RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        texts = [p.communicate(timeout=max(1, ends - time.monotonic())) for p in processes]
    except subprocess.TimeoutExpired:
        return {"ok": False, "said": f"not done after {seconds:.0f} s"}
    finally:
        for process in processes:
            process.kill()
            process.wait()
    lines = [line for line in texts[0][0].splitlines() if line.startswith("{")]
    if any(process.returncode for process in processes) or not lines:
        codes = [process.returncode for process in processes]
        return {"ok": False, "codes": codes, "said": [errors[-1500:] for _, errors in texts]}
    return json.loads(lines[-1])


def as_one_of_two(device: torch.device) -> dict:
    """The distance of two steps here from those of a process that has the whole batch."""
    set_numerics()
    words = ["TRAIN.precision", "fp32", "TRAIN.dropout", "0", "TRAIN.base_lr", "0.001"]
    config = config_of(*words, size=SIZE, layers=18, width=0.25)
    batches = [random_batch(config, 4, seed=seed) for seed in range(2)]
    states = []
    process_group.start(device, backend="gloo")
    with tempfile.TemporaryDirectory() as folder:
        for alone in (True, False):
            share = slice(None) if alone else slice(process_group.rank(), None, 2)
            trainer = None
            with process_group.alone() if alone else warnings.catch_warnings():
                trainer = fresh_trainer(config, device, Path(folder))
                prefetcher = prefetcher_of(config, device, torch.float32)
                for step, batch in enumerate(batches):
                    part = type(batch)(batch.image[share], batch.label[share], batch.names[share])
                    if device.type == "cuda":
                        part = part.pin_memory()
                    one_step(trainer, prefetcher.prepare(part, step))
            states.append({k: v.clone() for k, v in trainer.segmenter.state_dict().items()})
    apart = largest_distance(states[1], states[0])
    process_group.stop()
    return {"ok": apart < 5e-3, "weights": apart}


def main() -> None:
    found = as_one_of_two(torch.device(sys.argv[1]))
    if int(os.environ["RANK"]) == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
