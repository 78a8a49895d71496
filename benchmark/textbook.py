"""The published algorithms, written plainly: what the family's systems do, and our baselines.

Single precision, planes in memory one after the other, scores in float64 numpy arrays, OpenCV for
pictures, one step after the other.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

MEAN = np.array([123.675, 116.28, 103.53])
STD = np.array([58.395, 57.12, 57.375])


# ---- testing


def test_image(
    network: nn.Module,
    image: np.ndarray,
    *,
    classes: int,
    crop: int,
    base_size: int,
    scales: Sequence[float],
    device: str,
) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W, K) float64 mean scores over the scales."""
    height, width = image.shape[:2]
    total = np.zeros((height, width, classes))
    for scale in scales:
        long_side = round(scale * (base_size or max(height, width)))
        if height > width:
            size = long_side, round(long_side / height * width)
        else:
            size = round(long_side / width * height), long_side
        scaled = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
        scores = scale_scores(network, scaled, classes, crop, device)
        total += resize_scores(scores, (height, width))
    return total / len(scales)


def scale_scores(
    network: nn.Module, image: np.ndarray, classes: int, crop: int, device: str
) -> np.ndarray:
    """Scores of one scaled image, from overlapping windows and their mirror images."""
    height, width = image.shape[:2]
    pad_height, pad_width = max(crop - height, 0), max(crop - width, 0)
    top, left = pad_height // 2, pad_width // 2
    border = (top, pad_height - top, left, pad_width - left)
    padded = cv2.copyMakeBorder(image.astype(np.float32), *border, cv2.BORDER_CONSTANT, value=MEAN)
    scores = np.zeros((*padded.shape[:2], classes))
    count = np.zeros(padded.shape[:2])
    stride = math.ceil(crop * 2 / 3)
    for row in range(math.ceil((padded.shape[0] - crop) / stride) + 1):
        for column in range(math.ceil((padded.shape[1] - crop) / stride) + 1):
            bottom = min(row * stride + crop, padded.shape[0])
            right = min(column * stride + crop, padded.shape[1])
            place = slice(bottom - crop, bottom), slice(right - crop, right)
            scores[place] += window_scores(network, padded[place], device)
            count[place] += 1
    scores /= count[..., None]
    return scores[top : top + height, left : left + width]


def window_scores(network: nn.Module, window: np.ndarray, device: str) -> np.ndarray:
    pixels = ((window - MEAN) / STD).astype(np.float32).transpose(2, 0, 1)
    image = torch.from_numpy(np.ascontiguousarray(pixels)).unsqueeze(0).to(device)
    with torch.no_grad():
        output = network(torch.cat([image, image.flip(3)]))
        logits = output if isinstance(output, Tensor) else output[0]
        scores = F.softmax(logits, dim=1)
        mean = (scores[0] + scores[1].flip(2)) / 2
    return mean.cpu().numpy().transpose(1, 2, 0)


def resize_scores(scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """OpenCV 5 takes 128 channels at most, so a part of them at a time."""
    parts = [
        cv2.resize(np.ascontiguousarray(scores[..., first : first + 100]), size[::-1])
        for first in range(0, scores.shape[2], 100)
    ]
    return np.concatenate([np.atleast_3d(part) for part in parts], axis=2)


# ---- counting


def areas(
    prediction: np.ndarray, label: np.ndarray, classes: int, ignore: int = 255
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Intersection, union and label area of every class, from three histograms."""
    prediction, label = prediction.flatten(), label.flatten()
    prediction[label == ignore] = ignore
    hits = prediction[prediction == label]
    bins = np.arange(classes + 1)
    intersection, _ = np.histogram(hits, bins=bins)
    predicted, _ = np.histogram(prediction, bins=bins)
    labelled, _ = np.histogram(label, bins=bins)
    return intersection, predicted + labelled - intersection, labelled


# ---- training


def train_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    image: Tensor,
    label: Tensor,
    auxiliary_weight: float = 0.4,
) -> Tensor:
    """(N, 3, H, W) normalised float32 and (N, H, W) int64: forward, loss, backward, step."""
    logits, auxiliary = network(image)
    loss = F.cross_entropy(logits, label, ignore_index=255)
    if auxiliary is not None:
        loss = loss + auxiliary_weight * F.cross_entropy(auxiliary, label, ignore_index=255)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()
