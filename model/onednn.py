"""1x1 convolutions through oneDNN, for single precision on CPUs.

PyTorch computes them as matrix products of the BLAS library it is built with, which on processors
of another maker than the library's may use half of the vector width; oneDNN does not
(`python -m benchmark.pointwise_convolution`).
"""

import torch
from torch import Tensor, nn


class OneDNNConvolution(nn.Conv2d):
    """nn.Conv2d whose float32 images on the CPU are convolved by oneDNN; without gradients."""

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cpu and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
            return torch.mkldnn_convolution(
                x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
            )
        return super().forward(x)


def use_onednn(network: nn.Module) -> None:
    """Have the network's 1x1 convolutions computed by oneDNN, where PyTorch has it."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch, "mkldnn_convolution"):
        return
    for parent in network.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Conv2d and child.kernel_size == (1, 1):
                setattr(parent, name, converted(child))


def converted(convolution: nn.Conv2d) -> OneDNNConvolution:
    """The same convolution with the same parameters."""
    result = OneDNNConvolution(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size,
        stride=convolution.stride,
        padding=convolution.padding,
        groups=convolution.groups,
        bias=convolution.bias is not None,
        device="meta",
    )
    result.weight, result.bias = convolution.weight, convolution.bias
    return result
