"""Run a trained detector from its weights, whatever their format: one small class for each, found by the suffix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.experimental import attempt_load
from utils.config import read_yaml
from utils.log import LOGGER
from utils.paths import ROOT, check_yaml
from utils.torch_utils import select_device

SMALLEST_STRIDE = 32  # pictures are padded to at least this, as in v6.1, even for a model that asks for less


def find_weights(weights: str | Path) -> Path:
    """The weights file as given, or below the repository; ValueError naming both places when it is in neither."""
    given = Path(weights).expanduser()
    places = [given] if given.is_absolute() else [given, ROOT / given]
    for place in places:
        if place.exists():
            return place
    looked = " or ".join(str(place.absolute()) for place in dict.fromkeys(places))
    remedy = "train some, or copy them there (nothing is downloaded)"
    raise ValueError(f"weights {weights} do not exist: no {looked}; {remedy}")


class PyTorchBackend(nn.Module):
    """`.pt` checkpoints, ours and v6.1's; several become an ensemble that pools its candidates."""

    def __init__(self, files: Sequence[Path], device: torch.device, fp16: bool) -> None:
        super().__init__()
        model = attempt_load([str(file) for file in files], device=device).eval()
        self.model = model.half() if fp16 else model.float()
        self.stride = max(int(torch.as_tensor(model.stride).max()), SMALLEST_STRIDE)
        self.names: list[str] = list(model.names.values() if isinstance(model.names, dict) else model.names)

    def forward(self, im: Tensor, augment: bool = False, visualize: Path | str | None = None) -> tuple[Tensor, Any]:
        """(B, 3, H, W) in 0..1 -> (B, M, 5 + C) cx cy w h in pixels, objectness, classes; and the raw maps or None."""
        return self.model(im, augment=augment, visualize=visualize or False)


# Suffix -> the class that runs such files: made from the files, a device and fp16, it has `stride`, `names`, `model`.
BACKENDS: dict[str, type[nn.Module]] = {".pt": PyTorchBackend}


class DetectMultiBackend(nn.Module):
    """One interface to weights of any format.

    `weights` is a file, or a list of `.pt` files to pool. Attributes: `model`, `stride`, `names` (list), `device`,
    `fp16`, `pt` (PyTorch weights: pictures of any size that is a multiple of the stride are taken). `fp16` is for CUDA;
    elsewhere it is a warning. `data` is a data set YAML that names the classes where the weights do not; `dnn` asks for
    OpenCV's runtime and concerns ONNX files alone. Raises ValueError for missing files and suffixes nothing can read.
    """

    def __init__(
        self,
        weights: str | Path | Sequence[str | Path] = "yolov5s.pt",
        device: torch.device | str | None = None,
        dnn: bool = False,
        data: str | Path | None = None,
        fp16: bool = False,
    ) -> None:
        super().__init__()
        given = [weights] if isinstance(weights, (str, Path)) else list(weights)
        kind = _kind_of(given)
        files = [find_weights(file) for file in given]
        self.device = device if isinstance(device, torch.device) else select_device(device or "cpu")
        if fp16 and self.device.type == "cpu":
            LOGGER.warning("half precision is for GPUs; the CPU computes in single precision")
        if dnn and kind != ".onnx":
            LOGGER.warning(f"OpenCV's runtime (--dnn) is for .onnx files; {files[0].name} does not need it")
        self.fp16 = fp16 and self.device.type != "cpu"
        self.pt = kind == ".pt"
        self.backend = BACKENDS[kind](files, self.device, self.fp16)
        self.stride: int = self.backend.stride
        self.names: list[str] = self.backend.names or _names_from(data)

    @property
    def model(self) -> Any:
        """What the backend runs: the network itself for PyTorch weights."""
        return self.backend.model

    def forward(
        self, im: Tensor, augment: bool = False, visualize: Path | str | None = None, val: bool = False
    ) -> Tensor | tuple[Tensor, Any]:
        """Predictions (B, M, 5 + C) for pictures (B, 3, H, W) in 0..1; with `val` also the raw maps, or []."""
        predictions, raw = self.backend(im.half() if self.fp16 else im, augment=augment, visualize=visualize)
        return (predictions, raw or []) if val else predictions

    def warmup(self, imgsz: Sequence[int] = (1, 3, 640, 640)) -> None:
        """Run once on an empty batch, so that the first picture is not timed with CUDA's start; nothing on a CPU."""
        if self.device.type != "cpu":
            dtype = torch.half if self.fp16 else torch.float
            self.forward(torch.zeros(*imgsz, device=self.device, dtype=dtype))


def _kind_of(weights: Sequence[str | Path]) -> str:
    """The suffix that all the weights share and that a backend is there for."""
    known = ", ".join(sorted(BACKENDS))
    if not weights:
        raise ValueError(f"no weights given; give a file ending in {known}")
    for file in weights:
        suffix = Path(file).suffix.lower()
        if suffix not in BACKENDS:
            found = f"suffix {suffix} is not known" if suffix else "the name has no suffix"
            raise ValueError(f"cannot read weights {file}: {found}; readable: {known}")
    kinds = {Path(file).suffix.lower() for file in weights}
    if len(kinds) > 1 or (len(weights) > 1 and kinds != {".pt"}):
        raise ValueError(f"only .pt weights can be pooled, not {', '.join(str(file) for file in weights)}")
    return kinds.pop()


def _names_from(data: str | Path | None) -> list[str]:
    """Class names of a data set YAML, class0 ... class999 without one."""
    if data is None:
        return [f"class{i}" for i in range(1000)]
    names = read_yaml(check_yaml(str(data))).get("names", [])
    return [str(name) for name in (names.values() if isinstance(names, dict) else names)]
