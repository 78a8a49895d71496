"""Backbone + head + decoder + auxiliary head: what is trained, tested and exported."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from .layers import resize


class SegmenterOutput(NamedTuple):
    """`logits` (N, K, h, w), and `auxiliary` of the same shape while training, else None.

    An image classifier's logits are (N, K).
    """

    logits: Tensor
    auxiliary: Tensor | None


class Segmenter(nn.Module):
    """(N, 3, H, W) normalised image -> `SegmenterOutput`; any H and W.

    Args:
        backbone: image -> features, one of each stage, with `channels` naming their widths.
        head: features -> (N, K, h, w).
        auxiliary_head: the same from an earlier stage; evaluated in training mode only.
        decoder: (head's features, first stage) -> (N, K, h, w); the head then gives features.
        strip_pooling: {stage: module} that the features of a stage, "1" to "4", pass before the
            head, decoder and auxiliary head see them.
        zoom_factor: 8 gives logits of the input's size. 2 and 4 give the smaller
            (size - 1) // 8 * zoom_factor + 1 of semseg's networks, to save memory in training; 1
            leaves the logits as head or decoder give them.
        align_corners: how logits, and a decoder's features, are enlarged. True is semseg's way: the
            first and the last lie on the outermost pixels, exact for a ResNet and sizes of
            stride n + 1. False: each lies in the middle of stride x stride pixels; where the
            stride divides the size, all are then off by the same shift at most. The sizes of
            `zoom_factor` 2 and 4 are then a quarter and half of the image's.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        auxiliary_head: nn.Module | None = None,
        *,
        decoder: nn.Module | None = None,
        strip_pooling: Mapping[str, nn.Module] | nn.ModuleDict | None = None,
        zoom_factor: int = 8,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        if zoom_factor not in (1, 2, 4, 8):
            raise ValueError(f"zoom_factor must be 1, 2, 4 or 8, not {zoom_factor}")
        self.backbone = backbone
        self.head = head
        self.auxiliary_head = auxiliary_head
        self.decoder = decoder
        self.strip_pooling = nn.ModuleDict(strip_pooling)
        self.zoom_factor = zoom_factor
        self.align_corners = align_corners

    def forward(self, image: Tensor) -> SegmenterOutput:
        features = self.features(image)
        logits = self.zoom(self.decode(features), image.shape[-2:])
        auxiliary = None
        if self.training and self.auxiliary_head is not None:
            auxiliary = self.resize(self.auxiliary_head(features), logits.shape[-2:])
        return SegmenterOutput(logits, auxiliary)

    def features(self, image: Tensor) -> list[Tensor]:
        """The features of the four stages, (N, C, h, w) each, as head and decoder see them."""
        features = list(self.backbone(image))
        for stage, module in self.strip_pooling.items():
            features[int(stage) - 1] = module(features[int(stage) - 1])
        return features

    def decode(self, features: Sequence[Tensor]) -> Tensor:
        """The features of the stages -> logits (N, K, h, w) of the head's or decoder's size."""
        output = self.head(features)
        if self.decoder is None:
            return output
        return self.decoder(output, features[0], align_corners=self.align_corners)

    def coarse_logits(self, image: Tensor) -> Tensor:
        """Logits at the head's or decoder's stride, (N, K, h, w), without the final upsampling.

        With `zoom_factor` 2 or 4 these are the logits that training sees.
        """
        logits = self.decode(self.features(image))
        return logits if self.zoom_factor == 8 else self.zoom(logits, image.shape[-2:])

    def zoom(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """Logits of the size that `zoom_factor` asks for, for an image of `size`."""
        if self.zoom_factor == 1:
            return logits
        if self.zoom_factor == 8:
            return self.resize(logits, size)
        if self.align_corners:
            return self.resize(logits, [(side - 1) // 8 * self.zoom_factor + 1 for side in size])
        # without negative numbers, whose quotient ONNX rounds otherwise
        return self.resize(logits, [(side * self.zoom_factor + 7) // 8 for side in size])

    def resize(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """Bilinear, as `align_corners` says."""
        return resize(logits, size, align_corners=self.align_corners)

    def inference_parts(self) -> dict[str, Any]:
        """The arguments of another `Segmenter` that computes the same from the same weights."""
        return {
            "backbone": self.backbone,
            "head": self.head,
            "decoder": self.decoder,
            "strip_pooling": self.strip_pooling,
            "align_corners": self.align_corners,
        }

    def new_layers(self) -> list[nn.Module]:
        """The parts that no backbone's weights initialise; `head_lr_factor` is for them."""
        parts = (self.head, self.decoder, self.auxiliary_head)
        return [*(part for part in parts if part is not None), *self.strip_pooling.values()]
