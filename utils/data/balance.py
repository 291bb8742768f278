"""How rare is each class, and which pictures show the weak ones: weights for `--image-weights`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def labels_to_class_weights(labels: Sequence[np.ndarray], nc: int = 80) -> Tensor:
    """Inverse label frequency per class (nc,), summing to 1; a class without labels counts as having one.

    `labels` holds one (n, 5) array a picture with the class first.
    """
    classes = np.concatenate([np.zeros(0), *(rows[:, 0] for rows in labels)])
    counts = np.bincount(classes.astype(int), minlength=nc)
    inverse = 1 / np.maximum(counts, 1)
    return torch.from_numpy(inverse / inverse.sum())


def labels_to_image_weights(
    labels: Sequence[np.ndarray], nc: int = 80, class_weights: np.ndarray | None = None
) -> np.ndarray:
    """The summed class weight of each picture's labels (pictures,); every class counts 1 without `class_weights`."""
    counts = np.array([np.bincount(rows[:, 0].astype(int), minlength=nc) for rows in labels]).reshape(-1, nc)
    return (counts * (np.ones(nc) if class_weights is None else np.asarray(class_weights))).sum(1)


def epoch_weights(labels: Sequence[np.ndarray], class_weights: Tensor, maps: np.ndarray) -> np.ndarray:
    """Shares of the pictures in the next epoch: labels of classes that are rare or badly detected so far count more.

    `class_weights` (nc,) are times nc, `maps` (nc,) is the mAP of each class after the last epoch.
    """
    wanted = class_weights.cpu().numpy() * (1 - maps) ** 2 / len(maps)
    weights = labels_to_image_weights(labels, len(maps), wanted)
    return weights if weights.any() else np.ones(len(weights))
