"""Backbone + mean + linear layer = an image classifier."""

from torch import Tensor, nn

from .segmenter import SegmenterOutput


class ImageClassifier(nn.Module):
    """(N, C, H, W) image -> `SegmenterOutput` with logits (N, K), from the last stage's mean.

    It is trained as a segmenter is. Weights of image classifiers load into it (`load_weights`), the
    classifier included, and its own weights load as the backbone of a segmenter.
    """

    def __init__(self, backbone: nn.Module, classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(backbone.channels[-1], classes)

    def forward(self, image: Tensor) -> SegmenterOutput:
        means = self.backbone(image)[-1].mean(dim=(2, 3))  # (N, C)
        return SegmenterOutput(self.classifier(self.dropout(means)), None)

    def new_layers(self) -> list[nn.Module]:
        """The part that learns at the head's rate."""
        return [self.classifier]
