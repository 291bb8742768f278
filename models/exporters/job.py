"""What is to be exported, and how: the one thing that every exporter is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from models.backends.facts import NOTES, Facts
from models.bra.attention import BiLevelRoutingAttention
from models.yolo import Model
from utils.base.log import LOGGER, Fault

DEFAULT_OPSET = 18  # the least that PyTorch's present ONNX exporter writes without converting down


class ExportError(Fault):
    """A file was written, but it does not do what the network does; the message is one line."""


@dataclass(frozen=True, slots=True)
class NmsSettings:
    """Suppression inside the file."""

    iou_thres: float = 0.45
    conf_thres: float = 0.25
    per_class: int = 100  # most detections of a class, and of a picture
    in_all: int = 100
    agnostic: bool = False


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """What a user may choose."""

    imgsz: tuple[int, int] = (640, 640)
    batch: int = 1
    device: torch.device = torch.device("cpu")
    half: bool = False
    int8: bool = False
    dynamic: bool = False
    simplify: bool = False
    optimize: bool = False
    opset: int = DEFAULT_OPSET
    verbose: bool = False
    workspace: float = 4.0  # GB
    nms: NmsSettings | None = None
    command: str = ""


@dataclass(slots=True)
class ExportJob:
    """A network and where its files go.

    model: fused, in evaluation mode, on the device. weights: the checkpoint; files lie beside it. calibration: gives
    batches (1, 3, h, w) in 0..1 of pictures of the data set, for int8.
    """

    model: Model
    weights: Path
    settings: ExportSettings
    calibration: Callable[[], list[Tensor]] = field(default=list)

    @property
    def routes(self) -> bool:
        """Whether the network has bi-level routing attention."""
        return any(isinstance(module, BiLevelRoutingAttention) for module in self.model.modules())

    @property
    def free_sides(self) -> bool:
        """Whether height and width are left open, as the number of pictures is.

        With routing attention only where one formula cuts maps of every size into regions.
        """
        layers = [module for module in self.model.modules() if isinstance(module, BiLevelRoutingAttention)]
        return self.settings.dynamic and all(layer.cuts_by_formula for layer in layers)

    @property
    def free_sides_in_programs(self) -> bool:
        """The same for `torch.export`, which also counts a region of one token's height as a case of its own."""
        return self.free_sides and not self.routes

    def calibration_pictures(self) -> list[Tensor]:
        """Batches (1, 3, h, w) for int8, read now."""
        pictures = self.calibration()
        LOGGER.info(f"calibrating int8 on {len(pictures)} pictures")
        return pictures

    def file(self, ending: str) -> Path:
        """Where the file of a format goes: best.pt -> best.onnx, best_openvino_model."""
        return self.weights.with_name(self.weights.stem + ending)

    def example(self) -> Tensor:
        """Pictures (B, 3, H, W) to trace with; two at least where their number is left open, for 1 is special."""
        settings = self.settings
        batch = max(settings.batch, 2) if settings.dynamic else settings.batch
        kind = torch.float16 if next(self.model.parameters()).dtype == torch.float16 else torch.float32
        generator = torch.Generator().manual_seed(0)
        return torch.rand(batch, 3, *settings.imgsz, generator=generator).to(settings.device, kind)

    def facts(self, *, dynamic: bool = True, program: bool = False, nms: bool = False) -> Facts:
        """What goes into the file.

        dynamic: it can leave sizes open. program: it is one of `torch.export`'s. nms: it can suppress by itself.
        """
        settings, names = self.settings, self.model.names
        free = dynamic and settings.dynamic
        free_sides = self.free_sides_in_programs if program else self.free_sides
        return Facts(
            names=tuple(str(name) for name in (names.values() if isinstance(names, dict) else names)),
            stride=max(int(self.model.stride.max()), 32),
            imgsz=None if free and free_sides else settings.imgsz,
            batch=None if free else settings.batch,
            nms=nms and settings.nms is not None,
            precision="int8" if settings.int8 else "fp16" if settings.half else "fp32",
            command=settings.command,
            trained=self.model.imgsz,
        )


class Predictor(nn.Module):
    """The network with its predictions alone: no raw maps, no choices."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.eval()  # the wrapper too: the older ONNX exporter puts everything back into the mode it finds here

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 -> (B, M, 5 + C)."""
        return self.model(images)[0]


def write_notes(file: Path, facts: Facts) -> None:
    """Facts as JSON: inside where `file` is a folder, else beside it as `file`.json."""
    place = file / NOTES if file.is_dir() else file.with_name(f"{file.name}.json")
    place.write_text(json.dumps(facts.as_dict(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
