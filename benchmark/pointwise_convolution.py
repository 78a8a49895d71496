"""1x1 convolution in float32 on the CPU: oneDNN against what PyTorch chooses, in turn.

python -m benchmark.pointwise_convolution
"""

import torch
from torch import nn

from stripseg.model.onednn import converted

from .rows import seconds_of

CASES = [(64, 256, 120), (1024, 256, 60), (512, 2048, 60), (2048, 512, 60)]  # channels, side


@torch.inference_mode()
def main() -> None:
    print(f"{torch.get_num_threads()} threads, batch 2; time of nn.Conv2d / oneDNN")
    for channels, outputs, side in CASES:
        theirs = nn.Conv2d(channels, outputs, 1).to(memory_format=torch.channels_last)
        ours = converted(theirs)
        image = torch.randn(2, channels, side, side).contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(ours(image), theirs(image), rtol=1e-3, atol=1e-3)
        times = seconds_of(
            lambda c=ours, x=image: c(x), lambda c=theirs, x=image: c(x), rounds=15, warm_up=3
        )
        print(f"{channels} -> {outputs}, {side}x{side}: {times[1] / times[0]:.2f}")


if __name__ == "__main__":
    main()
