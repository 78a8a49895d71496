"""The SPNet head (Hou et al., CVPR 2020, Sec. 3.3): mixed pooling modules on the last stage."""

from collections.abc import Sequence

from torch import Tensor, nn

from .layers import NormLayer, conv_norm
from .strip_pooling import MixedPoolingModule


class SPNetHead(nn.Module):
    """Reduction, N mixed pooling modules, classifier: last stage (N, C, h, w) -> (N, K, h, w).

    Inner widths follow the backbone: C / 2 through the modules and C / 4 before the classifier
    (2048 -> 1024 -> 512 on ResNet-50, as released). `branches` and `pooling` are the mixed pooling
    modules'.
    """

    def __init__(
        self,
        channels: Sequence[int],
        classes: int,
        *,
        mixed_pooling_modules: int = 2,
        pool_sizes: Sequence[int] = (20, 12),
        branches: str = "both",
        pooling: str = "average",
        dropout: float = 0.1,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        width = channels[-1] // 2
        self.reduce = conv_norm(channels[-1], width, 1, norm_layer)
        self.mixed_pooling = nn.Sequential(
            *(
                MixedPoolingModule(
                    width,
                    pool_sizes,
                    branches=branches,
                    pooling=pooling,
                    norm_layer=norm_layer,
                )
                for _ in range(mixed_pooling_modules)
            )
        )
        self.conv = conv_norm(width, width // 2, 3, norm_layer)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(width // 2, classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        x = self.mixed_pooling(self.reduce(features[-1]))
        return self.classifier(self.dropout(self.conv(x)))
