"""What is to be exported, and how: the one thing that every exporter is given; and converters kept quiet at work."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from models.backends.metadata import Metadata
from models.backends.tools import silenced
from models.bra.attention import BiLevelRoutingAttention
from models.yolo import Model
from utils.base.log import Fault

DEFAULT_OPSET = 18  # the least that PyTorch's present ONNX exporter writes without converting down
CPU = torch.device("cpu")


class ExportError(Fault):
    """A file was written, but it does not do what the network does; the message is one line."""


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """What a user may choose, by the names of export.py's options; batch: images at a time, workspace: GB.

    From `iou_thres` on: suppression inside the file, where `nms` is set, with so many detections of a class and in all.
    """

    imgsz: tuple[int, int] = (640, 640)
    batch: int = 1
    device: torch.device = CPU
    half: bool = False
    int8: bool = False
    dynamic: bool = False
    simplify: bool = False
    optimize: bool = False
    opset: int = DEFAULT_OPSET
    verbose: bool = False
    workspace: float = 4.0
    nms: bool = False
    iou_thres: float = 0.45
    conf_thres: float = 0.25
    topk_per_class: int = 100
    topk_all: int = 100
    agnostic_nms: bool = False
    command: str = ""


@dataclass(slots=True)
class ExportJob:
    """A network and where its files go.

    model: fused, in evaluation mode, on the device. weights: the checkpoint; files lie beside it. calibration: gives
    batches (1, 3, h, w) in 0..1 of images of the data set, for int8. routes: its routing attention.
    """

    model: Model
    weights: Path
    settings: ExportSettings
    calibration: Callable[[], list[Tensor]] = field(default=list)
    routes: list[BiLevelRoutingAttention] = field(init=False)

    def __post_init__(self) -> None:
        self.routes = [module for module in self.model.modules() if isinstance(module, BiLevelRoutingAttention)]

    def has_free_sides(self, program: bool = False) -> bool:
        """Whether height and width are left open, as the number of images is.

        With routing attention only where one formula cuts maps of every size into regions, and never in a `program` of
        `torch.export`, which also counts a region of one token's height as a case of its own.
        """
        by_formula = all(layer.cuts_by_formula for layer in self.routes)
        return self.settings.dynamic and by_formula and not (program and self.routes)

    def file(self, ending: str) -> Path:
        """Where the file of a format goes: best.pt -> best.onnx, best_openvino_model."""
        return self.weights.with_name(self.weights.stem + ending)

    def example(self) -> Tensor:
        """Images (B, 3, H, W) to trace with; two at least where their number is left open, for 1 is special."""
        settings = self.settings
        batch = max(settings.batch, 2) if settings.dynamic else settings.batch
        kind = torch.float16 if next(self.model.parameters()).dtype == torch.float16 else torch.float32
        generator = torch.Generator().manual_seed(0)
        return torch.rand(batch, 3, *settings.imgsz, generator=generator).to(settings.device, kind)

    def metadata(self, *, dynamic: bool = True, program: bool = False, nms: bool = False) -> Metadata:
        """What goes into the file.

        dynamic: it can leave sizes open. program: it is one of `torch.export`'s. nms: it can suppress by itself.
        """
        settings, names = self.settings, self.model.names
        is_free = dynamic and settings.dynamic
        return Metadata(
            names=tuple(str(name) for name in (names.values() if isinstance(names, dict) else names)),
            stride=max(int(self.model.stride.max()), 32),
            imgsz=None if is_free and self.has_free_sides(program) else settings.imgsz,
            batch=None if is_free else settings.batch,
            nms=nms and settings.nms,
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


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings of TorchScript's age, of shapes that tracing fixes, which is wanted, and of converters at work."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning, torch.jit.TracerWarning, UserWarning):
            warnings.filterwarnings("ignore", category=category)
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


@contextmanager
def converting(tool: str, is_loud: bool = False) -> Iterator[None]:
    """Around the work of a converter. Raises ExportError for whatever it raises, and where it ends the program."""
    try:
        with quiet(), silenced(is_loud):
            yield
    except (Exception, SystemExit) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ExportError(f"{tool} could not convert the network ({reason}); --verbose shows what it prints") from error


def cleared(place: Path) -> Path:
    """The path of a file or folder, gone if an earlier export left one."""
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    return place
