"""FCN head: the plain baseline, and the auxiliary head of every network of the family.

Long, Shelhamer, Darrell: "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from .layers import NormLayer, conv_norm


class FCNHead(nn.Module):
    """3x3 convolution to a quarter of the channels, dropout, classifier: stage -> (N, K, h, w).

    `stage` is the index of the feature it reads: 3 for the last, 2 as auxiliary head.
    """

    def __init__(
        self,
        channels: Sequence[int],
        classes: int,
        *,
        stage: int = 3,
        dropout: float = 0.1,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.stage = stage
        inner = channels[stage] // 4
        self.conv = conv_norm(channels[stage], inner, 3, norm_layer)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(inner, classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return self.classifier(self.dropout(self.conv(features[self.stage])))
