"""Networks that only predict, on the CPU: convolutions together with what follows them.

oneDNN does an addition or a ReLU behind a convolution on its output while that is in the cache,
and weights are laid out once as the hardware reads them (`python -m benchmark.fused_convolutions`).
What follows what is read from a trace of the network (torch.fx).
"""

import operator
from collections.abc import Iterator
from contextlib import contextmanager
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
PACKED = 4  # layouts of one convolution's weights that are kept
SHAPE_DEPENDENT = (grid_average_pool, resize, strip_means)  # branch on sizes: traced as one step


class OneDNNConvolution(nn.Conv2d):
    """nn.Conv2d, then the addition of a map, then ReLU, where asked: one pass without gradients.

    `then_relu` says whether ReLU follows. `overwrites` allows the added map to become the output.
    Weights that change through `.data` are not seen to change.
    """

    then_relu = False
    overwrites = False

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if not self.is_fit(x, dtype, added):
            return self.one_by_one(x, added)
        x = x.to(dtype)
        weight, bias = self.packed_for(x)
        how = (self.padding, self.stride, self.dilation, self.groups)
        if added is None:
            activation = "relu" if self.then_relu else "none"
            return torch.ops.mkldnn._convolution_pointwise(
                x, weight, bias, *how, activation, [], ""
            )
        activation = "relu" if self.then_relu else None
        if self.overwrites:
            return torch.ops.mkldnn._convolution_pointwise_.binary(
                added, x, weight, bias, *how, "add", 1.0, activation, [], ""
            )
        return torch.ops.mkldnn._convolution_pointwise.binary(
            x, added, weight, bias, *how, "add", 1.0, activation, [], ""
        )

    def is_fit(self, x: Tensor, dtype: torch.dtype, added: Tensor | None) -> bool:
        """Can oneDNN do all of it in `dtype`? It neither promotes types nor broadcasts."""
        if not x.is_cpu or not runs_in(dtype) or torch.is_grad_enabled():
            return False
        if self.weight.is_inference():  # nobody counts their changes
            return False
        size = (x.shape[0], self.out_channels, *self.output_size(x))
        return added is None or (added.dtype == dtype and added.shape == size)

    def one_by_one(self, x: Tensor, added: Tensor | None) -> Tensor:
        """The same as separate steps."""
        out = super().forward(x)
        if added is not None:
            out = out + added
        return F.relu(out) if self.then_relu else out

    def packed_for(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weight and bias in x's type, laid out for maps of its size; the last few are kept."""
        version = self.weight.data_ptr(), self.weight._version
        packed = self.__dict__.setdefault("packed", {})
        if packed.get("version") != version or len(packed) > PACKED:
            packed.clear()
            packed["version"] = version
        key = x.dtype, x.shape[2:]
        if key not in packed:
            weight = torch._C._nn.mkldnn_reorder_conv2d_weight(
                self.weight.detach().to(x.dtype).to_mkldnn(),
                self.padding,
                self.stride,
                self.dilation,
                self.groups,
                x.shape,
            )
            packed[key] = weight, None if self.bias is None else self.bias.detach().to(x.dtype)
        return packed[key]

    def __getstate__(self) -> dict:
        """For copies and files: packed weights can be neither copied nor saved."""
        return {name: value for name, value in self.__dict__.items() if name != "packed"}

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
    were another one, in single precision or in bfloat16, or anything failed, the network stays as
    it is: the trace runs anybody's forward on things that are no tensors, and PyTorch's functions
    are not public ones. Elsewhere than on a CPU it does so anyway.
    """
    if not is_available() or not image.is_cpu or not next(network.parameters(), image).is_cpu:
        return network
    try:
        fused = deepcopy(network)
        fuse_parts(fused)
        same = agree(network, fused, image)
        for module in fused.modules():
            module.__dict__.pop("packed", None)  # laid out for this image
    except Exception:
        return network
    return fused if same else network


@torch.inference_mode()
def agree(network: nn.Module, fused: nn.Module, image: Tensor) -> bool:
    """Are the outputs the same, up to rounding?"""
    for dtype, tolerance in ((torch.float32, 1e-3), (torch.bfloat16, 0.05)):
        if not runs_in(dtype):
            continue
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            before, after = (first_tensor(whole(image)) for whole in (network, fused))
        if before.dtype != after.dtype or before.shape != after.shape:
            return False
        slack = tolerance * before.abs().max().item() + 1e-6
        if not torch.allclose(after, before, rtol=tolerance, atol=slack):
            return False
    return True


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
        with no_autocast():
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
        and isinstance(module.weight, nn.Parameter)
        and isinstance(module.padding, tuple)
        and module.padding_mode == "zeros"
        and not (module._forward_hooks or module._forward_pre_hooks)
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


@contextmanager
def no_autocast() -> Iterator[None]:
    """Entering autocast is an error inside: a trace would lose it."""

    def refuse(_: torch.autocast) -> None:
        raise RuntimeError("a part that sets its own precision is not traced")

    enter, torch.autocast.__enter__ = torch.autocast.__enter__, refuse
    try:
        yield
    finally:
        torch.autocast.__enter__ = enter


class Fusion:
    """Gives the convolutions of a traced part the additions and ReLUs behind them."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced, self.graph = traced, traced.graph

    def run(self) -> None:
        for node in list(self.graph.nodes):
            if isinstance(self.module(node), nn.Identity | _DropoutNd) and has_one_input(node):
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
        """Let a convolution right before an addition add the other summand, which comes earlier."""
        last = node.prev
        others = [each for each in node.args if each is not last]
        if len(others) != 1 or not isinstance(others[0], fx.Node) or not self.is_free(last):
            return
        convolution, added = self.module(last), others[0]
        if len(last.args) > 1 or convolution.groups > 1:  # PyTorch has not all of it for groups
            return
        # nobody sees that the map changes: convolutions read it before, and keep no part of it
        convolution.overwrites = self.is_convolution(added) and all(
            self.is_convolution(user) and user.args[0] is added and user < last
            for user in added.users
            if user is not node
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
        if not has_one_input(node):
            return False
        if node.op == "call_function":
            return node.target in RELUS
        return type(self.module(node)) is nn.ReLU

    def replace(self, node: fx.Node, by: fx.Node) -> None:
        node.replace_all_uses_with(by)
        self.graph.erase_node(node)


def has_one_input(node: fx.Node) -> bool:
    return len(node.args) == 1 and not node.kwargs
