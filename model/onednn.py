"""Networks that only predict, on the CPU: convolutions together with what follows them.

oneDNN does an addition or a ReLU behind a convolution on its output while that is in the cache,
and weights are laid out once as the hardware reads them (`python -m benchmark.fused_convolutions`).
What follows what is read from a trace of the network (torch.fx).
"""

import operator
from copy import deepcopy

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd

from .folding import first_tensor
from .layers import grid_average_pool, resize
from .strip_pooling import strip_means

ADDITIONS = (operator.add, operator.iadd, torch.add)
RELUS = (F.relu, torch.relu)
SHAPE_DEPENDENT = (grid_average_pool, resize, strip_means)  # branch on sizes: traced as one step


class OneDNNConvolution(nn.Conv2d):
    """nn.Conv2d, then the addition of a map, then ReLU, where asked: one pass without gradients.

    `then_relu` says whether ReLU follows. `overwrites` allows the added map to become the output.
    """

    then_relu = False
    overwrites = False
    packed: tuple[object, Tensor, Tensor | None] | None = None  # of what, weight, bias

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if not (x.is_cpu and runs_in(dtype)) or torch.is_grad_enabled():
            return self.one_by_one(x, added)
        x = x.to(dtype)
        weight, bias = self.packed_for(x)
        how = (self.padding, self.stride, self.dilation, self.groups)
        last = ("relu" if self.then_relu else None, [], "")
        if added is None:
            return torch.ops.mkldnn._convolution_pointwise(
                x, weight, bias, *how, last[0] or "none", *last[1:]
            )
        if added.shape != (x.shape[0], self.out_channels, *self.output_size(x)):
            return self.one_by_one(x, added)
        added = added.to(dtype)
        if self.overwrites:
            return torch.ops.mkldnn._convolution_pointwise_.binary(
                added, x, weight, bias, *how, "add", 1.0, *last
            )
        return torch.ops.mkldnn._convolution_pointwise.binary(
            x, added, weight, bias, *how, "add", 1.0, *last
        )

    def one_by_one(self, x: Tensor, added: Tensor | None) -> Tensor:
        """The same as separate steps."""
        out = super().forward(x)
        if added is not None:
            out = out + added
        return F.relu(out) if self.then_relu else out

    def packed_for(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weight and bias in x's type, laid out for maps of its size."""
        version = None if self.weight.is_inference() else self.weight._version
        key = x.dtype, x.shape[2:], self.weight.data_ptr(), version
        if self.packed is None or self.packed[0] != key:
            weight = torch._C._nn.mkldnn_reorder_conv2d_weight(
                self.weight.detach().to(x.dtype).to_mkldnn(),
                self.padding,
                self.stride,
                self.dilation,
                self.groups,
                x.shape,
            )
            bias = None if self.bias is None else self.bias.detach().to(x.dtype)
            self.packed = key, weight, bias
        return self.packed[1:]

    def output_size(self, x: Tensor) -> list[int]:
        """Height and width of the output."""
        sides = zip(
            x.shape[2:], self.kernel_size, self.padding, self.dilation, self.stride, strict=True
        )
        return [(side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, p, d, s in sides]


def runs_in(dtype: torch.dtype) -> bool:
    """Can oneDNN compute in this type here?"""
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32


def is_available() -> bool:
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name)
        for name in ("_convolution_pointwise", "_convolution_pointwise_")
    )


def use_onednn(network: nn.Module, image: Tensor) -> nn.Module:
    """`network`, in evaluation mode on the CPU, or a copy whose parts are computed by oneDNN.

    A part that cannot be traced is left to its own parts. If the output for `image` (N, C, H, W)
    were another one, or PyTorch's functions for this, which are not public, refused to work, the
    network stays as it is; elsewhere than on a CPU it does so anyway.
    """
    if not is_available() or not image.is_cpu or not next(network.parameters()).is_cpu:
        return network
    fused = deepcopy(network)
    fuse_parts(fused)
    with torch.inference_mode():
        before = first_tensor(network(image))
        try:
            after = first_tensor(fused(image))
        except (AttributeError, RuntimeError, TypeError):
            return network
    tolerance = 1e-3 * before.abs().max().item() + 1e-6
    return fused if torch.allclose(after, before, rtol=1e-3, atol=tolerance) else network


def fuse_parts(module: nn.Module) -> None:
    for name, child in module.named_children():
        setattr(module, name, fused_part(child))


def fused_part(module: nn.Module) -> nn.Module:
    """The module, or what computes the same in fewer passes."""
    if is_plain(module):
        return converted(module)
    if not any(module.children()):
        return module
    try:
        graph = Tracer().trace(module)
    except Exception:
        fuse_parts(module)
        return module
    traced = fx.GraphModule(module, graph)
    fuse_parts(traced)
    Fusion(traced).run()
    return traced


def is_plain(module: nn.Module) -> bool:
    """A convolution that oneDNN's functions can stand for."""
    return (
        type(module) is nn.Conv2d
        and isinstance(module.padding, tuple)
        and module.padding_mode == "zeros"
    )


def converted(convolution: nn.Conv2d) -> OneDNNConvolution:
    """The same convolution with the same parameters."""
    result = OneDNNConvolution(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size,
        stride=convolution.stride,
        padding=convolution.padding,
        dilation=convolution.dilation,
        groups=convolution.groups,
        bias=convolution.bias is not None,
        device="meta",
    )
    result.weight, result.bias = convolution.weight, convolution.bias
    return result.train(convolution.training)


class Tracer(fx.Tracer):
    """Convolutions of whatever kind, and functions that branch on sizes, are single steps."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=SHAPE_DEPENDENT)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Conv2d) or super().is_leaf_module(module, name)


class Fusion:
    """Gives the convolutions of a traced part the additions and ReLUs behind them."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced, self.graph = traced, traced.graph

    def run(self) -> None:
        for node in list(self.graph.nodes):
            if isinstance(self.module(node), nn.Identity | _DropoutNd):
                self.replace(node, node.args[0])
        for node in list(self.graph.nodes):
            if node.op == "call_function" and node.target in ADDITIONS and not node.kwargs:
                self.fuse_addition(node)
            elif self.is_relu(node) and self.is_free(node.args[0]):
                self.module(node.args[0]).then_relu = True
                self.replace(node, node.args[0])
        self.graph.lint()
        self.traced.recompile()

    def fuse_addition(self, node: fx.Node) -> None:
        """Let the later one of two summands, if it is a convolution, add the other one."""
        order = {each: place for place, each in enumerate(self.graph.nodes)}
        summands = [each for each in node.args if isinstance(each, fx.Node)]
        if len(summands) < 2 or summands[0] is summands[1]:
            return
        added, last = sorted(summands, key=order.__getitem__)
        if not self.is_free(last) or len(last.args) > 1:
            return
        readers = [user for user in added.users if user is not node]
        # nobody sees that the map changes: convolutions read it before, and keep no part of it
        self.module(last).overwrites = self.is_convolution(added) and all(
            self.is_convolution(user) and order[user] < order[last] and user.args[0] is added
            for user in readers
        )
        last.args = (*last.args, added)
        self.replace(node, last)

    def module(self, node: fx.Node) -> nn.Module | None:
        """What the node calls, if it is a module."""
        return self.traced.get_submodule(node.target) if node.op == "call_module" else None

    def is_convolution(self, node: object) -> bool:
        return isinstance(node, fx.Node) and isinstance(self.module(node), OneDNNConvolution)

    def is_free(self, node: object) -> bool:
        """A convolution that runs once, nothing done to its output yet, which one node uses."""
        if not self.is_convolution(node) or len(node.users) != 1 or self.module(node).then_relu:
            return False
        convolution = self.module(node)
        return sum(self.module(each) is convolution for each in self.graph.nodes) == 1

    def is_relu(self, node: fx.Node) -> bool:
        if node.op == "call_function":
            return node.target in RELUS
        return isinstance(self.module(node), nn.ReLU)

    def replace(self, node: fx.Node, by: fx.Node) -> None:
        node.replace_all_uses_with(by)
        self.graph.erase_node(node)
