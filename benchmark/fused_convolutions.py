"""The forward pass of a test on the CPU: batch norm folded, then convolutions fused, in turn.

python -m benchmark.fused_convolutions
"""

import torch

from stripseg.model.folding import fold_batch_norm
from stripseg.model.onednn import use_onednn
from stripseg.util.memory import keep_freed_memory
from stripseg.util.optimization import PRECISIONS, autocast, has_native_bfloat16

from .rows import seconds_of
from .testing import CROP, spnet50

WORDS = ("plain", "batch norm folded", "convolutions fused as well")


@torch.inference_mode()
def main() -> None:
    keep_freed_memory()
    device, sample = torch.device("cpu"), torch.rand(1, 3, 65, 65)
    plain = spnet50().to(memory_format=torch.channels_last)
    folded = fold_batch_norm(plain, sample)
    fused = use_onednn(folded, sample)
    image = torch.randn(2, 3, CROP, CROP).contiguous(memory_format=torch.channels_last)
    print(f"{torch.get_num_threads()} threads, SPNet-50, a window of {CROP} and its mirror image")
    for name in ("fp32", "bf16") if has_native_bfloat16(device) else ("fp32",):
        with autocast(device, PRECISIONS[name]):
            times = seconds_of(
                *[lambda n=network: n.coarse_logits(image) for network in (plain, folded, fused)],
                rounds=9,
                warm_up=3,
            )
        shown = (f"{word} {1000 * t:.0f} ms" for word, t in zip(WORDS, times, strict=True))
        print(f"{name}: {', '.join(shown)}")


if __name__ == "__main__":
    main()
