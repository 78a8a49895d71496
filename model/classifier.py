"""Backbone + mean + linear layer = an image classifier."""

from torch import Tensor, nn


class ImageClassifier(nn.Module):
    """(N, 3, H, W) -> (N, K) logits from the mean of the backbone's last stage.

    Weights of image classifiers load into it as into a segmenter (`load_weights`), the classifier
    included.
    """

    def __init__(self, backbone: nn.Module, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(backbone.channels[-1], classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self.backbone(image)[-1].mean(dim=(2, 3)))
