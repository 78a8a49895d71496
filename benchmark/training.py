"""Training step: SPNet-50 with auxiliary head on random pictures."""

import tempfile
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from stripseg.config.load import find_config, load_config
from stripseg.dataset.loader import Batch
from stripseg.model.build import build_segmenter
from stripseg.model.segmenter import Segmenter
from stripseg.util.training.optimizer import set_lr

from . import textbook
from .apart import Apart
from .rows import Row, rate_row, seconds_of, wait
from .steps import config_of, one_step, prefetcher_of, trainer_of

SIZES = {"cpu": (2, 321), "cuda": (16, 480)}  # batch, crop
RATE = 0.004


def measure(device: str = "cpu", *, rounds: int = 4) -> Iterator[Row]:
    batch, crop = SIZES[device]
    rng = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (batch, 3, crop // 16, crop // 16), generator=rng).float()
    image = F.interpolate(coarse, (crop, crop), mode="bilinear").byte()
    label = (image.float().mean(1) * 150 / 256).byte()
    ours, our_losses, dtype = our_step(image, label, device)
    with Apart(plain_step, image, label, device) as plain:
        times = seconds_of(ours, plain, rounds=rounds, warm_up=2, device=device)
        plain_losses, plain_peak = plain.result()
    gaps = [abs(a - b) / b for a, b in zip(floats(our_losses), plain_losses, strict=True)]
    name = str(dtype).removeprefix("torch.")
    yield rate_row(
        f"training step, batch {batch}, crop {crop}, {name}",
        times,
        unit="step/s",
        wanted={"cpu": 2, "cuda": 3}[device],
        agreement=f"losses of {len(gaps)} steps within {100 * max(gaps):.1f} %",
    )
    if device == "cuda":
        peaks = peak_memory(ours), plain_peak
        yield Row(
            "memory of a training step",
            *peaks,
            "GiB",
            peaks[1] / peaks[0],
            1 / 0.6,
            "beyond the weights",
        )


def floats(losses: list[Tensor]) -> list[float]:
    return [float(loss) for loss in losses]


def network(device: str) -> Segmenter:
    torch.manual_seed(0)
    config = load_config(find_config("ade20k", "spnet50"), ["TRAIN.dropout", "0"])
    return build_segmenter(config).to(device).train()


def our_step(
    image: Tensor, label: Tensor, device: str
) -> tuple[Callable[[], None], list[Tensor], torch.dtype]:
    """The trainer's own step with its figures for the log, from bytes in pinned memory on a GPU.

    Returns the step, the losses that it adds to, and the type that it computes in.
    """
    words = ["TRAIN.precision", "auto", "TRAIN.dropout", "0", "TRAIN.base_lr", str(RATE)]
    config = config_of(*words, size=image.shape[-1])
    place = torch.device(device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(config, place, network(device), Path(folder))
    set_lr(trainer.optimizer, RATE)
    batch = Batch(image.contiguous(memory_format=torch.channels_last), label, [""] * len(image))
    if place.type == "cuda":
        batch = batch.pin_memory()
    prefetcher = prefetcher_of(config, place, trainer.dtype)
    prepared = prefetcher.prepared(repeat(batch), first_step=0)
    losses: list[Tensor] = []

    def step() -> None:
        losses.append(one_step(trainer, next(prepared))[0])

    return step, losses, trainer.dtype


def plain_step(
    image: Tensor, label: Tensor, device: str
) -> tuple[Callable[[], None], Callable[[], tuple[list[float], float]]]:
    """The step, and what to tell of it: its losses, and on a GPU the peak of one more, in GiB."""
    model = network(device)
    new = {id(p) for layer in model.new_layers() for p in layer.parameters()}
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in new], "lr": RATE},
        {"params": [p for p in model.parameters() if id(p) in new], "lr": 10 * RATE},
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=1e-4)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (textbook.MEAN, textbook.STD))
    losses: list[Tensor] = []

    def step() -> None:
        pixels = ((image - mean) / std).float().to(device)
        losses.append(textbook.train_step(model, optimizer, pixels, label.long().to(device)))
        wait(device)

    return step, lambda: (floats(losses), peak_memory(step) if device == "cuda" else 0.0)


def peak_memory(step: Callable[[], None]) -> float:
    """Peak memory of one step on a GPU, in GiB, beyond what is there before."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    step()
    return (torch.cuda.max_memory_allocated() - held) / 2**30
