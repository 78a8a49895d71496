"""The forward pass of a test on the CPU: batch norm folded, then convolutions fused, in turn.

python -m benchmark.fused_convolutions
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from stripseg.model.folding import fold_batch_norm
from stripseg.model.onednn import OneDNNConvolution, use_onednn
from stripseg.util.precision import PRECISIONS, autocast, has_native_bfloat16

from .rows import seconds_of
from .testing import CROP, spnet50

WORDS = ("plain", "batch norm folded", "convolutions fused as well")


def main() -> None:
    device, sample = torch.device("cpu"), torch.rand(1, 3, 65, 65)
    plain = spnet50().to(memory_format=torch.channels_last)
    folded = fold_batch_norm(plain, sample)
    networks = plain, folded, use_onednn(folded, sample)
    image = torch.randn(2, 3, CROP, CROP).contiguous(memory_format=torch.channels_last)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        plain.coarse_logits(image)
    print(f"{torch.get_num_threads()} threads, SPNet-50, a window of {CROP} and its mirror image")
    for name in ("fp32", "bf16") if has_native_bfloat16(device) else ("fp32",):
        with torch.inference_mode(), autocast(device, PRECISIONS[name]):
            times = seconds_of(
                *[lambda n=network: n.coarse_logits(image) for network in networks],
                rounds=9,
                warm_up=3,
            )
        shown = (f"{word} {1000 * t:.0f} ms" for word, t in zip(WORDS, times, strict=True))
        rate = counter.get_total_flops() / times[-1] / 1e9
        print(f"{name}: {', '.join(shown)} ({rate:.0f} GFLOPS); ", end="")
        print(f"product of matrices {product_rate(PRECISIONS[name]):.0f} GFLOPS")


def product_rate(dtype: torch.dtype) -> float:
    """10^9 operations a second of a product of two matrices by oneDNN, as 1x1 convolution."""
    convolution = OneDNNConvolution(512, 512, 1, bias=False)
    pixels = torch.randn(1, 512, 64, 64).to(dtype).contiguous(memory_format=torch.channels_last)
    convolution.to(dtype)
    with torch.inference_mode():
        (seconds,) = seconds_of(lambda: convolution(pixels), rounds=15, warm_up=3)
    return 2 * 512 * 512 * 64 * 64 / seconds / 1e9


if __name__ == "__main__":
    main()
