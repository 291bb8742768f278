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
from models.backends.facts import NOTES, SMALLEST_STRIDE, Facts, read_facts
from models.backends.operators import NotListed, Program
from models.experimental import attempt_load
from utils.base.files import printable

TORCHSCRIPT_NOTES = "config.txt"  # the entry v6.1 writes and reads
DAMAGE = (  # what comes of a file that is not what it says
    RuntimeError, ValueError, OSError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError,
    MemoryError, struct.error,
)  # fmt: skip


class PyTorchBackend(nn.Module):
    """`.pt` checkpoints, ours and v6.1's; several become an ensemble that pools its candidates."""

    def __init__(self, files: Sequence[Path], device: torch.device, fp16: bool) -> None:
        super().__init__()
        model = attempt_load([str(file) for file in files], device=device).eval()
        self.model = model.half() if fp16 else model.float()
        self.stride = max(int(torch.as_tensor(model.stride).max()), SMALLEST_STRIDE)
        self.names: list[str] = list(model.names.values() if isinstance(model.names, dict) else model.names)
        self.facts = Facts(tuple(self.names), self.stride, trained=model.imgsz)  # any size, any number of images

    def forward(self, im: Tensor, augment: bool = False, visualize: Path | str | None = None) -> tuple[Tensor, Any]:
        """(B, 3, H, W) in 0..1 -> (B, M, 5 + C) cx cy w h in pixels, objectness, classes; and the raw maps or None."""
        return self.model(im, augment=augment, visualize=visualize or False)


class TorchScriptBackend(ExportedBackend):
    """`.torchscript` files, ours and v6.1's."""

    def __init__(self, files: Sequence[Path], device: torch.device, fp16: bool) -> None:
        notes = {TORCHSCRIPT_NOTES: ""}
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*torch.jit.*", category=Warning)
                model = torch.jit.load(str(files[0]), map_location=device, _extra_files=notes).eval()
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{files[0]}: is no TorchScript file, or a damaged one; export it again") from error
        facts = read_facts(notes[TORCHSCRIPT_NOTES] or {}, files[0])
        super().__init__(files[0], facts, device, model)
        self.dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)

    def run(self, images: Tensor) -> Tensor:
        """Float32 pictures (B, 3, H, W) -> predictions."""
        found = self.model(images.to(self.dtype))
        return found if isinstance(found, Tensor) else found[0]


class ProgramBackend(ExportedBackend):
    """`.pt2` files of `torch.export`, as far as they consist of numbers and of operators on a list."""

    def __init__(self, files: Sequence[Path], device: torch.device, fp16: bool) -> None:
        try:
            program = Program(files[0], device)
        except NotListed:
            raise
        except DAMAGE as error:
            raise ValueError(f"{files[0]}: is no exported program, or a damaged one; export it again") from error
        super().__init__(files[0], read_facts(program.notes or {}, files[0]), device, program)

    def run(self, images: Tensor) -> Tensor:
        """Float32 pictures (B, 3, H, W) -> predictions."""
        try:
            return self.model(images)
        except DAMAGE as error:
            reason = printable(str(error).partition("\n")[0])[:200]
            raise ValueError(f"{self.file}: its operators cannot compute this ({reason}); export it again") from error


class ForeignProgramBackend(ExportedBackend):
    """The same files read by PyTorch itself, which does whatever they say."""

    def __init__(self, files: Sequence[Path], device: torch.device, fp16: bool) -> None:
        notes = {NOTES: ""}
        try:
            program = torch.export.load(files[0], extra_files=notes)
        except (*DAMAGE, zipfile.BadZipFile) as error:
            raise ValueError(f"{files[0]}: is no exported program, or a damaged one; export it again") from error
        facts = read_facts(notes[NOTES] or {}, files[0])
        super().__init__(files[0], facts, device, program.module().to(device))

    def run(self, images: Tensor) -> Tensor:
        """Float32 pictures (B, 3, H, W) -> predictions."""
        return self.model(images)


class PackageBackend(ExportedBackend):
    """`_aoti.pt2` files of AOTInductor: machine code, so open only what you made yourself."""

    def __init__(self, files: Sequence[Path], device: torch.device, fp16: bool) -> None:
        import torch._inductor  # brings the compiler, which only this needs

        try:
            model = torch._inductor.aoti_load_package(str(files[0]))
        except (RuntimeError, ValueError, OSError, AttributeError) as error:
            raise ValueError(
                f"{files[0]}: is no package for this machine, or a damaged one; export it again"
            ) from error
        found = model.get_metadata()
        facts = read_facts({key: value for key, value in found.items() if not key.startswith("AOTI_")}, files[0])
        super().__init__(files[0], facts, torch.device(found.get("AOTI_DEVICE_KEY", "cpu")), model)

    def run(self, images: Tensor) -> Tensor:
        """Float32 pictures (B, 3, H, W) -> predictions."""
        found = self.model(images)
        return found if isinstance(found, Tensor) else found[0]
