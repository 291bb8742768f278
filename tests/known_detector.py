"""A detector whose answers are known beforehand, for tests of everything around the network.

Its head ignores the image: the first anchor (10 x 13 pixels) of the finest level fires in every cell of 8 x 8 pixels,
always for class 1. A 32 x 32 input so has 16 detections, centred on 4, 12, 20 and 28 in both directions.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from models.yolo import Model
from utils.checkpoints.checkpoint import describe_model, save_checkpoint

NAMES = ["car", "person", "行人"]
LOGIT = 4.0
CONFIDENCE = float(torch.tensor(LOGIT).sigmoid() ** 2)


def known_model() -> Model:
    """yolov5n with three classes and the head described above."""
    model = Model("yolov5n.yaml", nc=len(NAMES), verbose=False).eval()
    model.names = list(NAMES)
    for level, conv in enumerate(model.model[-1].m):
        torch.nn.init.zeros_(conv.weight)
        bias = torch.full((3, 5 + len(NAMES)), -12.0)  # anchors x (box, objectness, classes)
        bias[:, :4] = 0
        if level == 0:
            bias[0, 4], bias[0, 6] = LOGIT, LOGIT
        conv.bias.data = bias.flatten()
    return model


def write_weights(path: Path, names: Sequence[str] = NAMES) -> Path:
    """The known model as a finished checkpoint, its classes called so."""
    model = known_model()
    model.names = list(names)
    save_checkpoint(path, {"epoch": -1, "model": describe_model(model), "ema": None})
    return path


def expected_boxes() -> torch.Tensor:
    """The 16 boxes of a 32 x 32 image, xyxy, clipped, unrounded, in the order of rows."""
    centres = torch.tensor([[8 * x + 4.0, 8 * y + 4.0] for y in range(4) for x in range(4)])
    half = torch.tensor([10.0, 13.0]) / 2
    return torch.cat([centres - half, centres + half], 1).clamp(0, 32)


def by_rows(boxes: torch.Tensor) -> torch.Tensor:
    """Boxes xyxy in the order of `expected_boxes`."""
    order = sorted(range(len(boxes)), key=lambda i: (round(float(boxes[i, 1] + boxes[i, 3])), float(boxes[i, 0])))
    return boxes[order]
