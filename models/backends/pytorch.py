"""Files that PyTorch itself runs: checkpoints, TorchScript, exported programs and compiled packages."""

from __future__ import annotations

import struct
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.backends.base import ExportedBackend
from models.backends.metadata import NOTES, SMALLEST_STRIDE, Metadata, read_metadata
from models.experimental import attempt_load
from utils.base.networks import moved

TORCHSCRIPT_NOTES = "config.txt"  # the entry v6.1 writes and reads
DAMAGE = (  # what comes of a file that is not what it says
    RuntimeError, ValueError, OSError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError,
    MemoryError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


class PyTorchBackend(nn.Module):
    """`.pt` checkpoints, ours and v6.1's; several become an ensemble that pools its candidates."""

    def __init__(self, files: Sequence[Path], device: torch.device, fp16: bool) -> None:
        super().__init__()
        model: Any = moved(attempt_load([str(file) for file in files]).eval(), device)
        self.model = model.half() if fp16 else model.float()
        self.stride = max(int(torch.as_tensor(model.stride).max()), SMALLEST_STRIDE)
        self.names: list[str] = list(model.names.values() if isinstance(model.names, dict) else model.names)
        self.metadata = Metadata(tuple(self.names), self.stride, trained=model.imgsz)  # any size, any number of images

    def forward(self, im: Tensor, augment: bool = False, visualize: Path | str | None = None) -> tuple[Tensor, Any]:
        """(B, 3, H, W) in 0..1 -> (B, M, 5 + C) cx cy w h in pixels, objectness, classes; and the raw maps or None."""
        return self.model(im, augment=augment, visualize=visualize or False)


def _first(found: Any) -> Any:
    """The predictions of a file that may return the raw maps behind them."""
    return found if isinstance(found, Tensor) else found[0]


def open_torchscript(files: Sequence[Path], device: torch.device, fp16: bool) -> ExportedBackend:
    """`.torchscript` files, ours and v6.1's."""
    notes = {TORCHSCRIPT_NOTES: ""}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.*", category=Warning)
            model = torch.jit.load(str(files[0]), map_location=device, _extra_files=notes).eval()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{files[0]}: is no TorchScript file, or a damaged one; export it again") from error
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    metadata = read_metadata(notes[TORCHSCRIPT_NOTES] or {}, files[0])
    return ExportedBackend(files[0], metadata, device, model, lambda images: _first(model(images.to(dtype))))


def open_program(files: Sequence[Path], device: torch.device, fp16: bool) -> ExportedBackend:
    """`.pt2` files of `torch.export`, which PyTorch unpickles and evaluates: open only what you trust."""
    notes: dict[str, Any] = {NOTES: ""}
    try:
        model = torch.export.load(files[0], extra_files=notes).module().to(device)
    except DAMAGE as error:
        raise ValueError(f"{files[0]}: is no exported program, or a damaged one; export it again") from error
    metadata = read_metadata(notes[NOTES] or {}, files[0])
    return ExportedBackend(files[0], metadata, device, model, lambda images: model(images))


def open_package(files: Sequence[Path], device: torch.device, fp16: bool) -> ExportedBackend:
    """`_aoti.pt2` files of AOTInductor: machine code, so open only what you made yourself."""
    import torch._inductor  # brings the compiler, which only this needs

    try:
        model = torch._inductor.aoti_load_package(str(files[0]))
    except (RuntimeError, ValueError, OSError, AttributeError) as error:
        raise ValueError(f"{files[0]}: is no package for this machine, or a damaged one; export it again") from error
    found = model.get_metadata()
    metadata = read_metadata({key: value for key, value in found.items() if not key.startswith("AOTI_")}, files[0])
    device = torch.device(found.get("AOTI_DEVICE_KEY", "cpu"))
    return ExportedBackend(files[0], metadata, device, model, lambda images: _first(model(images)))
