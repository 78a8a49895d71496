"""Training step: SPNet-50 with auxiliary head on random pictures."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from stripseg.config.load import find_config, load_config
from stripseg.model.build import build_segmenter
from stripseg.model.segmenter import Segmenter
from stripseg.util.images import Normalization
from stripseg.util.precision import has_native_bfloat16
from stripseg.util.training.losses import SegmentationLoss
from stripseg.util.training.optimizer import build_optimizer

from . import textbook
from .apart import Apart
from .rows import Row, rate_row, seconds_of, wait

SIZES = {"cpu": (2, 321), "cuda": (16, 480)}  # batch, crop
RATE = 0.004


def measure(device: str = "cpu", *, rounds: int = 4) -> Iterator[Row]:
    batch, crop = SIZES[device]
    rng = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (batch, 3, crop // 16, crop // 16), generator=rng).float()
    image = F.interpolate(coarse, (crop, crop), mode="bilinear").byte()
    label = (image.float().mean(1) * 150 / 256).byte()
    dtype = torch.bfloat16 if has_native_bfloat16(torch.device(device)) else torch.float32
    ours, our_losses = our_step(image, label, device, dtype)
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
    image: Tensor, label: Tensor, device: str, dtype: torch.dtype
) -> tuple[Callable[[], None], list[Tensor]]:
    """As the trainer does it: bytes to the device, channels-last, mixed precision, fused."""
    model = network(device).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(
        model,
        model.new_layers(),
        base_lr=RATE,
        head_lr_factor=10.0,
        momentum=0.9,
        weight_decay=1e-4,
    )
    for group in optimizer.param_groups:
        group["lr"] = RATE * group["lr_factor"]
    loss_of = SegmentationLoss(ignore_label=255, auxiliary_weight=0.4)
    normalize = Normalization(textbook.MEAN, textbook.STD, device)
    losses: list[Tensor] = []

    def step() -> None:
        pixels = normalize(image.to(device)).contiguous(memory_format=torch.channels_last)
        target = label.to(device)
        with torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32):
            logits, auxiliary = model(pixels)
        loss, _, _ = loss_of(logits, auxiliary, target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())

    return step, losses


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
