"""Strip convolution: ours against nn.Conv2d, as ratios of times measured in turn in this run.

    python -m benchmark.strip_convolution [--device cuda]

Forward and backward of one strip convolution at the sizes it has in SPNet-18 and SPNet-50.
"""

import argparse
import statistics

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from stripseg.model.strip_pooling import StripConvolution

# what, batch, channels, length of the strip
CASES = [
    ("SPNet-18, crop 192, layer1", 8, 64, 48),
    ("SPNet-18, crop 192, layer4", 8, 512, 24),
    ("SPNet-50, crop 473, layer1", 4, 64, 119),
    ("SPNet-50, crop 473, layer4", 4, 512, 60),
]


def train_step(module: nn.Module, strip: Tensor, dtype: torch.dtype) -> None:
    with torch.autocast(strip.device.type, dtype, enabled=dtype != torch.float32):
        out = module(strip)
    out.float().square().mean().backward()


def compare(
    shape: tuple[int, int, int], dtype: torch.dtype, device: str, rounds: int = 5
) -> list[float]:
    """nn.Conv2d's time over ours, once a round: above 1 ours is faster."""
    batch, channels, length = shape
    ours = StripConvolution(channels, along="height").to(device)
    theirs = nn.Conv2d(channels, channels, (3, 1), padding="same", bias=False).to(device)
    strip = torch.randn(batch, channels, length, 1, device=device, requires_grad=True)
    ratios = []
    for _ in range(rounds):
        seconds = [
            Timer(
                "step(m, x, d)", globals={"step": train_step, "m": module, "x": strip, "d": dtype}
            )
            .blocked_autorange(min_run_time=0.2)
            .median
            for module in (theirs, ours)
        ]
        ratios.append(seconds[0] / seconds[1])
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    device = parser.parse_args().device
    print(f"forward and backward, {device}; times of nn.Conv2d / ours: median (lowest to highest)")
    for what, *shape in CASES:
        for dtype in (torch.float32, torch.bfloat16):
            ratios = compare(tuple(shape), dtype, device)
            spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
            name = str(dtype).removeprefix("torch.")
            print(f"{what:28} {name:9} {statistics.median(ratios):5.2f} {spread}", flush=True)


if __name__ == "__main__":
    main()
