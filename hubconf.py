"""Models by name, for PyTorch Hub and for Python programs that have this repository on disk.

    import torch
    model = torch.hub.load("path/to/this/repository", "custom", path="best.pt", source="local")
    results = model(["bus.jpg", "https://example.org/street.jpg"], size=640)
    results.print()

`pretrained=True` takes yolov5s.pt and its like from where such files lie, else fetches them (docs/fine-tuning.md).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from torch import nn

# Modules, not what is in them: torch.hub.list takes every callable without an underscore for a model.
import models.api.autoshape
import models.backends
import models.experimental
import models.yolo
import utils.base.devices
import utils.base.log
import utils.prepare.named_weights
import utils.training.transfer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

dependencies = ["torch", "torchvision", "numpy", "cv2", "yaml", "einops", "PIL"]

COCO_CLASSES, COLOUR_CHANNELS = 80, 3  # what the published weights were trained for
Device = torch.device | str | None


def _start(verbose: bool, device: Device) -> torch.device:
    """Set up the log as asked for; the first GPU, else the CPU, when no device is named."""
    utils.base.log.set_up_logging()
    if not verbose:
        utils.base.log.LOGGER.setLevel(logging.WARNING)
    return device if isinstance(device, torch.device) else utils.base.devices.select_device(device or "")


def custom(
    path: str | Path = "path/to/model.pt",
    autoshape: bool = True,
    verbose: bool = True,
    device: Device = None,
    trust: bool = False,
) -> nn.Module:
    """Load a weights file of one's own; with `autoshape` the model takes images instead of tensors.

    `trust` opens kinds of files that can run code too (docs/deploy.md).
    """
    target = _start(verbose, device)
    model = models.backends.DetectMultiBackend(path, device=target, trust=trust)
    return (models.api.autoshape.AutoShape(model) if autoshape else model.eval()).to(target)


def _entry(name: str, title: str) -> Callable[..., nn.Module]:
    """The hub function of one model."""

    def build(
        pretrained: bool = True,
        channels: int = 3,
        classes: int = 80,
        autoshape: bool = True,
        verbose: bool = True,
        device: Device = None,
    ) -> nn.Module:
        """Replaced below by the text for this model."""
        target, weights = _start(verbose, device), None
        if pretrained:
            try:
                weights = utils.prepare.named_weights.named_weights(f"{name}.pt")
            except ValueError as error:
                raise ValueError(f"{error}; pretrained=False builds the model without weights") from error
            if channels == COLOUR_CHANNELS and classes == COCO_CLASSES:
                return custom(weights, autoshape, verbose, target)
        model = models.yolo.Model(f"{name}.yaml", ch=channels, nc=classes)
        if weights:  # for another number of classes or channels: what fits
            trained = models.experimental.attempt_load(str(weights), fuse=False)
            if len(trained.names) == len(model.names):
                model.names = trained.names
            found = utils.training.transfer.transfer(trained, model, model.names)
            model.load_state_dict(found.state, strict=False)
            utils.base.log.LOGGER.info(f"took {len(found.state)} of {len(model.state_dict())} weights")
        return (models.api.autoshape.AutoShape(model) if autoshape else model.eval()).to(target)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""{title}; `pretrained` takes {name}.pt by that name (docs/fine-tuning.md).

    channels: of the input images; classes: number of classes; autoshape: take images instead of tensors; verbose: log
    what happens; device: "cpu", "0" ..., None for the first GPU, else the CPU. Raises ValueError without weights.
    """
    return build


yolov5n = _entry("yolov5n", "YOLOv5 nano")
yolov5s = _entry("yolov5s", "YOLOv5 small")
yolov5m = _entry("yolov5m", "YOLOv5 medium")
yolov5l = _entry("yolov5l", "YOLOv5 large")
yolov5x = _entry("yolov5x", "YOLOv5 extra large")
yolov5n6 = _entry("yolov5n6", "YOLOv5 nano with a fourth level, for 1280 pixels")
yolov5s6 = _entry("yolov5s6", "YOLOv5 small with a fourth level, for 1280 pixels")
yolov5m6 = _entry("yolov5m6", "YOLOv5 medium with a fourth level, for 1280 pixels")
yolov5l6 = _entry("yolov5l6", "YOLOv5 large with a fourth level, for 1280 pixels")
yolov5x6 = _entry("yolov5x6", "YOLOv5 extra large with a fourth level, for 1280 pixels")
yolov5n_BiFormer = _entry("yolov5n_BiFormer", "YOLOv5 nano with bi-level routing attention")
yolov5s_BiFormer = _entry("yolov5s_BiFormer", "YOLOv5 small with bi-level routing attention")
yolov5m_BiFormer = _entry("yolov5m_BiFormer", "YOLOv5 medium with bi-level routing attention")
yolov5l_BiFormer = _entry("yolov5l_BiFormer", "YOLOv5 large with bi-level routing attention")
yolov5x_BiFormer = _entry("yolov5x_BiFormer", "YOLOv5 extra large with bi-level routing attention")
