"""Run a trained detector from its weights, whatever their format: one way to open each, found by the ending."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.backends.metadata import Metadata
from models.backends.mobile import open_coreml, open_executorch, open_litert, open_ncnn, open_tensorflow
from models.backends.pytorch import PyTorchBackend, open_package, open_program, open_torchscript
from models.backends.runtimes import open_engine, open_onnx, open_opencv, open_openvino
from models.backends.tools import is_there
from utils.base.config import check_img_size
from utils.base.devices import select_device
from utils.base.files import printable
from utils.base.log import LOGGER
from utils.base.options import nearest
from utils.base.paths import check_yaml, trained_size
from utils.base.yaml import read_yaml
from utils.prepare.named_weights import named_weights

__all__ = ["BACKENDS", "DetectMultiBackend"]

# Ending of the name -> what opens such files, given the files, a device and fp16: a module with `stride`, `names`,
# `model` and `metadata`. The longest ending that fits counts.
BACKENDS: dict[str, Callable[[Sequence[Path], torch.device, bool], Any]] = {
    ".pt": PyTorchBackend,
    ".safetensors": PyTorchBackend,
    ".torchscript": open_torchscript,
    ".onnx": open_onnx,
    "_openvino_model": open_openvino,
    ".xml": open_openvino,
    ".engine": open_engine,
    ".mlpackage": open_coreml,
    "_saved_model": open_tensorflow,
    ".pb": open_tensorflow,
    ".tflite": open_litert,
    ".pt2": open_program,
    "_aoti.pt2": open_package,
    ".pte": open_executorch,
    "_ncnn_model": open_ncnn,
}

# Kinds of files that are opened only for those who trust who made them -> what such a file can do (docs/deploy.md).
ACTS = {
    ".torchscript": "a TorchScript file, which can write files",
    ".engine": "a TensorRT engine, which is machine code",
    "_saved_model": "a SavedModel, which can read and write files",
    ".pb": "a TensorFlow graph, which can read and write files",
    ".pt2": "a torch.export file, which PyTorch reads as a program: it can do anything",
    "_aoti.pt2": "an AOTInductor package, which is machine code",
}


class DetectMultiBackend(nn.Module):
    """One interface to weights of any format.

    `weights` is a file, or a list of `.pt` files to pool. Attributes: `model` (what the backend runs: the network
    itself for PyTorch weights), `metadata` (what the file says about itself), `stride`, `names` (list), `device`,
    `fp16`, `pt` (PyTorch weights), `shape` ((h, w) that every image must have, None where any multiple of the stride
    goes), `trained` (side in pixels of the images that the weights were trained on, 640 where nothing says it). `fp16`
    is for `.pt` weights on CUDA and for OpenVINO; elsewhere it is a warning. `data` is a data set YAML that names the
    classes where the weights do not; `dnn` runs ONNX files in OpenCV; `trust` opens files that can run code too.
    Raises ValueError for missing files, unknown endings, damaged files, runtimes that are not installed, and files that
    would have to be trusted.
    """

    def __init__(
        self,
        weights: str | Path | Sequence[str | Path] = "yolov5s.pt",
        device: torch.device | str | None = None,
        dnn: bool = False,
        data: str | Path | None = None,
        fp16: bool = False,
        trust: bool = False,
    ) -> None:
        super().__init__()
        given = [weights] if isinstance(weights, (str, Path)) else list(weights)
        kind = kind_of(given)
        files = [named_weights(file) for file in given]
        self.device = device if isinstance(device, torch.device) else select_device(device or "cpu")
        self.pt = BACKENDS[kind] is PyTorchBackend
        opener, in_half = _chosen(kind, self.device, dnn, fp16, files[0].name)
        self.fp16 = in_half and self.pt
        self.backend: Any = _opened(opener, kind, files, self.device, in_half, trust)
        self.stride: int = self.backend.stride
        self.names: list[str] = [printable(name) for name in self.backend.names or _names_from(data)]
        self.metadata: Metadata = getattr(self.backend, "metadata", None) or Metadata(tuple(self.names), self.stride)
        self.shape = self.metadata.imgsz
        self.trained = self.metadata.trained or trained_size(files)

    @property
    def model(self) -> Any:
        """What the backend runs; not an attribute of its own, so that `parameters()` counts it once."""
        return self.backend.model

    def input_size(self, imgsz: int | Sequence[int]) -> tuple[int, int]:
        """Height and width to fit images into for an `imgsz` asked for: the file's own, where it has one.

        0, or an empty list, asks for the size of training. Others are rounded up to multiples of the stride. Raises
        ValueError for a side below 1.
        """
        imgsz = self.trained if imgsz == 0 or imgsz == [] else imgsz
        if self.shape is None:
            imgsz = check_img_size(imgsz, self.stride)
        height, width = (imgsz, imgsz) if isinstance(imgsz, int) else [*imgsz, *imgsz][:2]
        if self.shape is None:
            return height, width
        if (height, width) != self.shape:
            size = " x ".join(map(str, self.shape))
            LOGGER.info(f"images of {size} pixels, the size that these weights were exported for")
        return self.shape

    def forward(
        self, im: Tensor, augment: bool = False, visualize: Path | str | None = None, val: bool = False
    ) -> Tensor | tuple[Tensor, Any]:
        """Predictions (B, M, 5 + C) for images (B, 3, H, W) in 0..1; with `val` also the raw maps, or []."""
        predictions, raw = self.backend(im.half() if self.fp16 else im, augment=augment, visualize=visualize)
        return (predictions, raw or []) if val else predictions

    def warmup(self, imgsz: Sequence[int] = (1, 3, 640, 640)) -> None:
        """Run once on an empty batch, so that the first image is not timed with CUDA's start; nothing on a CPU."""
        if self.device.type != "cpu":
            dtype = torch.half if self.fp16 else torch.float
            self.forward(torch.zeros(*imgsz, device=self.device, dtype=dtype))


def _chosen(kind: str, device: torch.device, dnn: bool, fp16: bool, name: str) -> tuple[Callable[..., Any], bool]:
    """What opens the files, and whether it shall compute in 16 bits; flags that do nothing are warned of."""
    opener = open_opencv if dnn and kind == ".onnx" else BACKENDS[kind]
    is_able = device.type != "cpu" if opener is PyTorchBackend else opener is open_openvino
    if fp16 and not is_able:
        exported = f"the precision of {name} was chosen when it was exported; --half changes nothing"
        on_cpu = "half precision is for GPUs; the CPU computes in single precision"
        LOGGER.warning(on_cpu if opener is PyTorchBackend else exported)
    if dnn and opener is not open_opencv:
        LOGGER.warning(f"OpenCV's runtime (--dnn) is for .onnx files; {name} does not need it")
    return opener, fp16 and is_able


def _opened(
    opener: Callable[..., Any], kind: str, files: list[Path], device: torch.device, fp16: bool, trust: bool
) -> Any:
    """The files in their runtime. Raises ValueError for those that can act, unless they are trusted."""
    file, acts, ask = files[0], ACTS.get(kind), "if you trust who made it, give --trust (in Python trust=True)"
    if kind == ".tflite" and not is_there("ai_edge_litert"):  # TensorFlow's reader knows all of TensorFlow's operators
        acts = "a .tflite file that TensorFlow would read, with which it can write files (pip install ai-edge-litert)"
    if acts and not trust:
        raise ValueError(f"{file}: is {acts}; {ask}")
    return opener(files, device, fp16)


def ending_of(file: str | Path) -> str | None:
    """The longest known ending that the name has, in small letters; None for none."""
    name = Path(file).name.lower()
    return max((ending for ending in BACKENDS if name.endswith(ending)), key=len, default=None)


def kind_of(weights: Sequence[str | Path]) -> str:
    """The ending that all the weights share and that a backend is there for; ValueError where there is none."""
    known, kinds = ", ".join(sorted(BACKENDS)), set()
    if not weights:
        raise ValueError(f"no weights given; give a file ending in {known}")
    for file in weights:
        ending = ending_of(file)
        if ending is None:
            suffix = Path(file).suffix
            found = f"suffix {suffix} is not known{nearest(suffix, BACKENDS)}" if suffix else "the name has no suffix"
            raise ValueError(f"cannot read weights {file}: {found}; readable: {known}")
        kinds.add(ending)
    if len(kinds) > 1 or (len(weights) > 1 and not kinds <= {".pt", ".safetensors"}):
        raise ValueError(f"only .pt weights can be pooled, not {', '.join(str(file) for file in weights)}")
    return kinds.pop()


def _names_from(data: str | Path | None) -> list[str]:
    """Class names of a data set YAML, class0 ... class999 without one."""
    if data is None:
        return [f"class{i}" for i in range(1000)]
    names = read_yaml(check_yaml(str(data))).get("names", [])
    names = list(names.values()) if isinstance(names, dict) else names
    if not isinstance(names, list):
        raise ValueError(f"{printable(data)}: names must be a list or a mapping from number to name")
    return [str(name) for name in names]
