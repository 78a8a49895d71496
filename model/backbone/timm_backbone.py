"""Any feature backbone of timm (`pip install timm`) under any head: `TRAIN.backbone timm/NAME`."""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STAGES = 4
# what lets a transformer take images of any size; the first set that the network knows is used
ANY_SIZE = (
    {"dynamic_img_size": True, "dynamic_img_pad": True},
    {"strict_img_size": False, "dynamic_mask": True},
    {"strict_img_size": False},
    {},
)


class TimmBackbone(nn.Module):
    """(N, in_channels, H, W) -> the last four feature maps, of timm's strides.

    Images are padded (with the mean, zero) to a multiple of the largest stride, and the maps cut
    back. A network with fewer maps gives its first one more than once. timm's own weight files fit.

    Args:
        name: of a timm model, such as convnext_tiny.
        in_channels: of the image.
        output_stride: 8, 16 or 32, where the model can be had at less than its own.
        drop_path: share of residual branches left out in training, growing with depth up to it
            (Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016).
        sizes: (height, width) of images that the network must take; tried out without data.
    Raises:
        ValueError: timm is not installed, has no such model, or the model cannot be had at this
            output stride, as a backbone, for this size, or with `drop_path`.
    """

    def __init__(
        self,
        name: str,
        *,
        in_channels: int = 3,
        output_stride: int = 32,
        drop_path: float = 0.0,
        sizes: Sequence[tuple[int, int]] = ((224, 224),),
    ) -> None:
        super().__init__()
        self.network = create_features(name, in_channels, output_stride, drop_path)
        pad_by_constants(self.network)
        widths, strides = (
            getattr(self.network.feature_info, k)() for k in ("channels", "reduction")
        )
        self.chosen = [max(0, len(widths) + stage - STAGES) for stage in range(STAGES)]
        self.channels = tuple(widths[index] for index in self.chosen)
        self.strides = tuple(strides[index] for index in self.chosen)
        self.multiple = max(strides)
        for size in dict.fromkeys(sizes):
            self._try(name, in_channels, size)

    def _try(self, name: str, in_channels: int, size: tuple[int, int]) -> None:
        """Check without data that the network takes such images, with the strides it claims."""
        complaint = f"backbone timm/{name} does not take images of {size[0]}x{size[1]}"
        height, width = (side + -side % self.multiple for side in size)
        hollow = deepcopy(self.network).to("meta").eval()
        try:
            with torch.no_grad():
                maps = hollow(torch.empty(1, in_channels, height, width, device="meta"))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ValueError(f"{complaint}: {error}") from error
        for index, stride in zip(self.chosen, self.strides, strict=True):
            found = tuple(maps[index].shape[-2:])
            if found != (height // stride, width // stride):
                raise ValueError(f"{complaint}: its maps are {found} at a stride of {stride}")

    def layers(self) -> list[list[nn.Parameter]]:
        """The parameters of each layer as timm groups them, the first layer first.

        Raises:
            ValueError: timm does not say how to group this network.
        """
        from timm.models import group_parameters

        model = getattr(self.network, "model", self.network)
        if not hasattr(model, "group_matcher"):
            raise ValueError(
                "timm does not tell the layers of this backbone apart; set TRAIN.layer_lr_decay 1"
            )
        groups = group_parameters(model, model.group_matcher(coarse=False))
        parameters = dict(model.named_parameters())
        return [[parameters[name] for name in groups[number]] for number in sorted(groups)]

    def undecayed(self) -> list[nn.Parameter]:
        """What timm leaves without weight decay besides norms and biases: tokens and positions."""
        model = getattr(self.network, "model", self.network)
        names = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
        return [p for name, p in model.named_parameters() if name in names]

    def forward(self, image: Tensor) -> list[Tensor]:
        height, width = image.shape[-2:]
        # without negative numbers, whose remainder ONNX defines otherwise
        right, below = (
            (self.multiple - side % self.multiple) % self.multiple for side in (width, height)
        )
        maps = self.network(F.pad(image, (0, right, 0, below)))
        return [
            maps[index][:, :, : (height + stride - 1) // stride, : (width + stride - 1) // stride]
            for index, stride in zip(self.chosen, self.strides, strict=True)
        ]


def create_features(
    name: str, in_channels: int, output_stride: int, drop_path: float = 0.0
) -> nn.Module:
    """timm's model `name` as a module that returns its feature maps."""
    try:
        import timm
    except ImportError as error:
        raise ValueError(
            f"backbone timm/{name} needs timm, which is not installed: pip install timm"
        ) from error
    options = {
        "pretrained": False,
        "features_only": True,
        "feature_cls": "getter",  # keeps timm's tensor names, so that its weight files fit
        "in_chans": in_channels,
    }
    if output_stride != 32:
        options["output_stride"] = output_stride
    if drop_path:
        options["drop_path_rate"] = drop_path
    if not timm.is_model(name):
        likely = timm.list_models(f"*{name}*")[:3]
        hint = f"; did you mean {', '.join(likely)}?" if likely else ""
        raise ValueError(f"timm has no model {name!r}{hint}")
    errors: list[Exception] = []
    for any_size in ANY_SIZE:
        try:
            network: nn.Module = timm.create_model(name, **options, **any_size)
            return network
        except (TypeError, AssertionError, RuntimeError, NotImplementedError) as error:
            errors.append(error)
    if "unexpected keyword argument" in (text := str(errors[-1])) and "drop_path_rate" in text:
        raise ValueError(f"backbone timm/{name} has no drop path; set TRAIN.drop_path 0")
    if output_stride != 32:
        raise ValueError(
            f"backbone timm/{name} cannot be had at output stride {output_stride}; set "
            "TRAIN.output_stride 32"
        ) from errors[-1]
    raise ValueError(f"timm/{name} cannot serve as a backbone: {errors[-1]}") from errors[-1]


class SameConvolution(nn.Conv2d):
    """TensorFlow's "same" convolution of maps whose sides the stride divides.

    (N, C, H, W) -> (N, K, H / stride, W / stride). Then what is missing at the borders does not
    depend on the size, as it does in timm's module, which is slow to export.
    """

    def forward(self, x: Tensor) -> Tensor:
        (top, below), (left, right) = (
            (missing // 2, missing - missing // 2)
            for size, dilation, stride in zip(
                self.kernel_size, self.dilation, self.stride, strict=True
            )
            for missing in [max((size - 1) * dilation + 1 - stride, 0)]
        )
        padded = F.pad(x, (left, right, top, below))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def pad_by_constants(network: nn.Module) -> None:
    """Replace timm's "same" convolutions: the backbone pads its images to what strides divide."""
    from timm.layers import Conv2dSame

    for parent in list(network.modules()):
        for name, old in parent.named_children():
            if type(old) is not Conv2dSame:
                continue
            new = SameConvolution(
                old.in_channels,
                old.out_channels,
                old.kernel_size,
                old.stride,
                dilation=old.dilation,
                groups=old.groups,
                bias=old.bias is not None,
                device="meta",
            )
            new.weight, new.bias = old.weight, old.bias
            setattr(parent, name, new)
