"""A GPU on paper, which tells what a real one would refuse and what the host would wait for.

Tensors of PyTorch's FakeTensorMode have a shape, a type and a device and no values. `Watch` looks
at every operation on them. It needs neither a GPU nor a driver.
"""

import collections
import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmark.steps import one_step, prefetcher_of, trainer_of
from stripseg.config.schema import Config
from stripseg.dataset.loader import Batch
from stripseg.model.layers import kept_bin_masks
from stripseg.util.inference.score_map import resampling

ROOT = Path(__file__).resolve().parent.parent
CUDA = torch.device("cuda", 0)
# the host has to know a value of the device's, or how many there are
WAITS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "bincount",
    "equal",
    "is_nonzero",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "repeat_interleave",
    "histogram",
}
COPIES = {"_to_copy", "copy_"}
# neither views nor kernels
NO_KERNEL = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "_unsafe_view",
    "_reshape_alias",
    "lift_fresh",
    "alias",
    "detach",
    "split_with_sizes",
    "record_stream",
    "resize_",
    "set_",
}
# kernels in place that have no stand-in without values
OPAQUE = {
    "_fused_sgd_",
    "_fused_adam_",
    "_fused_adamw_",
    "_amp_update_scale_",
    "_amp_foreach_non_finite_check_and_unscale_",
}


class Misplaced(AssertionError):
    """A tensor on the host met one on the GPU."""


class Waited(AssertionError):
    """The host would have waited for the GPU."""


class Watch(TorchDispatchMode):
    """Counts what is launched on the GPU.

    Attributes:
        launches: by operation; a few of them are more than one kernel.
        blocking: copies between host and GPU for which the host waits, by place in the code.
    Raises:
        Misplaced, Waited: as they say.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: collections.Counter[str] = collections.Counter()
        self.blocking: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        if func.namespace == "prim":  # asks for the device
            return func(*args, **kwargs)
        # in inference mode, what consists of other operations comes as a whole
        whole = name in COPIES | WAITS or name.startswith("upsample")
        if torch.is_inference_mode_enabled() and not whole:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        on_gpu = any(x.device.type == "cuda" for x in tensors)
        if on_gpu:
            self._refuse(name, func, args, tensors)
        pin = kwargs.pop("pin_memory", None) if name in ("empty", "empty_like") else None
        out = None if name in OPAQUE else func(*args, **kwargs)
        if pin:
            out.pinned = True
        if on_gpu and name == "convolution_backward":
            out = as_cudnn_writes_it(out, args)
        results = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        on_gpu = on_gpu or any(x.device.type == "cuda" for x in results)
        if on_gpu and name in COPIES:
            self._note_copy(name, args, kwargs, [*tensors, *results])
        if on_gpu and not func.is_view and name not in NO_KERNEL:
            self.note_launch(name, args, [*tensors, *results])
        return out

    def note_launch(self, name: str, args: tuple, tensors: list[Tensor]) -> None:
        """Count a launch; `tensors` are what it reads and what it writes."""
        self.launches[name] += 1

    def _refuse(self, name: str, func, args: tuple, tensors: list[Tensor]) -> None:
        by_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if by_mask or name in WAITS:
            raise Waited(f"{caller()}: {name}")
        # a number on the host goes along with the launch
        host = [x for x in tensors if x.device.type == "cpu" and x.dim()]
        if host and name not in COPIES:
            raise Misplaced(f"{caller()}: {func} with {[tuple(x.shape) for x in host]} on the host")
        if name in OPAQUE and name.startswith("_fused"):
            for parameter, gradient in zip(args[0], args[1], strict=True):
                if parameter.stride() != gradient.stride():
                    raise Misplaced(f"{caller()}: {name} with strides that differ")

    def _note_copy(self, name: str, args: tuple, kwargs: dict, tensors: list[Tensor]) -> None:
        host = [x for x in tensors if x.device.type == "cpu"]
        later = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
        if host and not (later and all(getattr(x, "pinned", False) for x in host)):
            self.blocking[caller()] += 1


def as_cudnn_writes_it(gradients: tuple, args: tuple) -> tuple:
    """The gradient of a convolution's weight, channels-last where the maps or the weight are.

    Without values it comes contiguous, and would be copied into the layout of the weight.
    """
    of_x, of_weight, of_bias = gradients
    last = torch.channels_last
    if of_weight is not None and any(x.is_contiguous(memory_format=last) for x in args[:3]):
        # `contiguous` would leave a 1x1 kernel the strides that it has
        of_weight = torch.empty_like(of_weight, memory_format=last)
    return of_x, of_weight, of_bias


def caller() -> str:
    """The line of the package that this comes from."""
    frames = [
        frame
        for frame in traceback.extract_stack()
        if frame.filename.startswith(str(ROOT))
        and "site-packages" not in frame.filename
        and Path(frame.filename).name != "fake_gpu.py"
    ]
    here = frames[-1]
    return f"{Path(here.filename).relative_to(ROOT)}:{here.lineno}"


class Silent:
    """In the place of a stream or an event."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __getattr__(self, name: str):
        return lambda *_, **__: None


def pin(tensor: Tensor) -> Tensor:
    tensor.pinned = True
    return tensor


def accumulate(parameter: Tensor, gradient: Tensor) -> None:
    """Into `parameter.grad`, with the strides of the parameter."""
    if parameter.grad is not None:
        parameter.grad = parameter.grad + gradient
    elif gradient.stride() == parameter.stride():
        parameter.grad = gradient
    else:
        parameter.grad = torch.empty_like(parameter).copy_(gradient)


@torch.no_grad()
def backward(loss: Tensor) -> None:
    """`Tensor.backward` in Python: PyTorch's engine asks for a driver."""
    waiting: collections.Counter = collections.Counter()
    todo, nodes = [loss.grad_fn], {loss.grad_fn}
    while todo:
        for following, _ in todo.pop().next_functions:
            if following is not None:
                waiting[following] += 1
                if following not in nodes:
                    nodes.add(following)
                    todo.append(following)
    gradients = collections.defaultdict(dict)
    gradients[loss.grad_fn][0] = torch.ones_like(loss)
    ready = [loss.grad_fn]
    while ready:
        node = ready.pop()
        given = gradients.pop(node, {})
        if hasattr(node, "variable"):
            accumulate(node.variable, given[0])
            continue
        call = getattr(node, "apply", node)  # of a torch.autograd.Function
        found = call(*[given.get(index) for index in range(len(node._input_metadata))])
        found = found if isinstance(found, tuple) else (found,)
        for (following, index), gradient in zip(node.next_functions, found, strict=False):
            if following is None:
                continue
            if gradient is not None:  # as the engine: of the shape and type that it went forward in
                forward = following._input_metadata[index]
                gradient = gradient.sum_to_size(forward.shape).to(forward.dtype)
                before = gradients[following].get(index)
                gradients[following][index] = gradient if before is None else before + gradient
            waiting[following] -= 1
            if not waiting[following]:
                ready.append(following)


def moved(
    module: nn.Module,
    device: torch.device | str | None = None,
    memory_format: torch.memory_format | None = None,
) -> nn.Module:
    """`nn.Module.to` with new parameters: those without values cannot take the place of others."""

    def to(tensor: Tensor) -> Tensor:
        layout = memory_format if memory_format is not None and tensor.dim() == 4 else None
        place = tensor.device if device is None else device
        return tensor.detach().to(place, memory_format=layout or torch.preserve_format)

    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            new = nn.Parameter(to(parameter), requires_grad=parameter.requires_grad)
            setattr(part, name, new)
        for name, buffer in list(part.named_buffers(recurse=False)):
            setattr(part, name, to(buffer))
    return module


def forget_tables() -> None:
    """Those made in one FakeTensorMode have no values, and serve in no other."""
    for made in (resampling, kept_bin_masks):
        made.cache_clear()


@contextlib.contextmanager
def fake_gpu() -> Iterator[None]:
    """Inside, CUDA's streams are silent and memory on the host can be pinned."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("Stream", "Event", "current_stream"):
            patch.setattr(torch.cuda, name, Silent)
        patch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
        patch.setattr(torch.Tensor, "pin_memory", pin)
        patch.setattr(torch.Tensor, "record_stream", lambda *_: None)
        # autocast and the gradient scaler ask what there is
        patch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(nn.Module, "to", moved)
        patch.setattr(torch.Tensor, "backward", backward)
        # checkpointing computes a block again once for each backward pass, which the engine numbers
        patch.setattr(torch._C, "_current_graph_task_id", lambda: 0)
        patch.setattr(_foreach_utils, "_foreach_supported_types", [torch.Tensor, FakeTensor])
        forget_tables()
        try:
            yield
        finally:
            forget_tables()


def batch_of(config: Config, images: int) -> Batch:
    size = config.TRAIN.train_h, config.TRAIN.train_w
    image = torch.zeros(images, *size, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    shape = (images,) if config.classifies else (images, *size)
    label = torch.zeros(shape, dtype=torch.int64 if config.classifies else torch.uint8)
    return Batch(image, label, ["a"] * images).pin_memory()


def step_of(
    config: Config,
    network: nn.Module,
    folder: Path,
    *,
    images: int = 4,
    earlier: int = 0,
    watch: type[Watch] = Watch,
) -> Watch:
    """Seen in a training step, from the loaded batch to the figures, after `earlier` ones.

    Called inside `fake_gpu`.
    """
    forget_tables()
    with FakeTensorMode(allow_non_fake_inputs=True):
        trainer = trainer_of(config, CUDA, network, folder)
        prefetcher = prefetcher_of(config, CUDA, trainer.dtype)
        for step in range(earlier + 1):
            batch = batch_of(config, images)
            with watch() as seen:
                one_step(trainer, prefetcher.prepare(batch, step))
    return seen
