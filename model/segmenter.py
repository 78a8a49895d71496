"""Backbone + head + auxiliary head = the network that is trained, tested and exported."""

from typing import NamedTuple

from torch import Tensor, nn

from .layers import resize


class SegmenterOutput(NamedTuple):
    """`logits` (N, K, h, w), and `auxiliary` of the same shape while training, else None."""

    logits: Tensor
    auxiliary: Tensor | None


class Segmenter(nn.Module):
    """(N, 3, H, W) normalised image -> `SegmenterOutput`; any H and W.

    Args:
        backbone: image -> features, one of each stage, with `channels` naming their widths.
        head: features -> (N, K, h, w).
        auxiliary_head: the same from an earlier stage; evaluated in training mode only.
        zoom_factor: 8 gives logits of the input's size. 1, 2 and 4 give the smaller
            (size - 1) // 8 * zoom_factor + 1 of semseg's networks, to save memory in training.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        auxiliary_head: nn.Module | None = None,
        *,
        zoom_factor: int = 8,
    ) -> None:
        super().__init__()
        if zoom_factor not in (1, 2, 4, 8):
            raise ValueError(f"zoom_factor must be 1, 2, 4 or 8, not {zoom_factor}")
        self.backbone = backbone
        self.head = head
        self.auxiliary_head = auxiliary_head
        self.zoom_factor = zoom_factor

    def forward(self, image: Tensor) -> SegmenterOutput:
        features = self.backbone(image)
        size = self.output_size(image.shape[-2], image.shape[-1])
        logits = resize(self.head(features), size)
        auxiliary = None
        if self.training and self.auxiliary_head is not None:
            auxiliary = resize(self.auxiliary_head(features), size)
        return SegmenterOutput(logits, auxiliary)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """The size of the logits for an input of this size."""
        if self.zoom_factor == 8:
            return height, width
        return (height - 1) // 8 * self.zoom_factor + 1, (width - 1) // 8 * self.zoom_factor + 1

    def new_layers(self) -> list[nn.Module]:
        """The parts that no pretrained backbone brings: they learn at the head's rate."""
        return [m for m in (self.head, self.auxiliary_head) if m is not None]
