"""Detectors with random weights whose answers depend on the image, for tests of exported files.

Batch norm has the statistics of images of several sizes and of noise, so that no layer forgets its input or blows it
up, and the biases of the head are such that about one candidate in ten is a detection.
"""

from __future__ import annotations

from pathlib import Path

import torch

from models.exporters.compare import load_images
from models.yolo import Model
from utils.base.networks import started_at_zero
from utils.checkpoints.checkpoint import describe_model, save_checkpoint
from utils.predict.pipeline import prepare_image, to_network

SEEN = ((64, 64), (128, 128), (128, 192), (192, 128), (320, 320))  # heights and widths behind batch norm's statistics
NAMES = ["cup", "猫", 'it\'s "odd"']


def images(height: int, width: int) -> torch.Tensor:
    """The repository's images, (4, 3, height, width) in 0..1."""
    return to_network([prepare_image(image, (height, width), auto=False)[0] for image in load_images()])


def lively_model(cfg: str | dict, seed: int = 0) -> Model:
    """A model of three classes, in evaluation mode, not fused."""
    torch.manual_seed(seed)
    model = Model(cfg, nc=len(NAMES), verbose=False)
    model.names = list(NAMES)
    for layer in started_at_zero(model).values():  # as if it had learnt
        torch.nn.init.normal_(layer.weight, std=0.1)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the plain average over what is seen
    with torch.no_grad():
        model.train()
        for size in SEEN:
            model(images(*size))
        model(torch.rand(4, 3, 128, 128))
        for conv in model.model[-1].m:
            torch.nn.init.normal_(conv.weight, std=2 * conv.weight[0].numel() ** -0.5)
            bias = torch.zeros(3, 5 + len(NAMES))
            bias[:, 4] = -1.0
            conv.bias.copy_(bias.flatten())
    return model.eval()


def write_lively(path: Path, cfg: str | dict) -> Path:
    """The model as a finished checkpoint."""
    save_checkpoint(path, {"epoch": -1, "model": describe_model(lively_model(cfg)), "ema": None})
    return path
