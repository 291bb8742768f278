"""Detectors with random weights whose answers depend on the picture, for tests of exported files.

Batch norm has the statistics of real pictures, so that no layer forgets its input, and the biases of the head are such
that about one candidate in ten is a detection.
"""

from __future__ import annotations

from pathlib import Path

import torch

from models.exporters.compare import as_batch, load_pictures
from models.yolo import Model
from utils.augmentations import letterbox
from utils.checkpoint import describe_model, save_checkpoint

NAMES = ["cup", "猫", 'it\'s "odd"']


def lively_model(cfg: str | dict, seed: int = 0) -> Model:
    """A model of three classes, in evaluation mode, not fused."""
    torch.manual_seed(seed)
    model = Model(cfg, nc=len(NAMES), verbose=False)
    model.names = list(NAMES)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the plain average over what is seen
    batch = as_batch([letterbox(picture, (128, 128), auto=False)[0] for picture in load_pictures()])
    with torch.no_grad():
        model.train()(batch)
        for conv in model.model[-1].m:
            torch.nn.init.normal_(conv.weight, std=conv.weight[0].numel() ** -0.5)
            bias = torch.zeros(3, 5 + len(NAMES))
            bias[:, 4] = -1.5
            conv.bias.copy_(bias.flatten())
    return model.eval()


def write_lively(path: Path, cfg: str | dict) -> Path:
    """The model as a finished checkpoint."""
    save_checkpoint(path, {"epoch": -1, "model": describe_model(lively_model(cfg)), "ema": None})
    return path
