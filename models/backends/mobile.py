"""Files for phones and small boards in the runtimes that also run on a desk: ExecuTorch, ncnn, LiteRT, Core ML."""

from __future__ import annotations

import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.backends.base import ExportedBackend
from models.backends.facts import NOTES, Facts, read_facts
from models.backends.hush import hushed
from models.backends.runtimes import notes_beside, notes_inside
from models.backends.tools import is_there, need

EDGE_TPU = "libedgetpu.so.1"
NCNN_ENTRY, NCNN_EXIT = "in0", "out0"  # the names pnnx gives


class ExecuTorchBackend(ExportedBackend):
    """`.pte` files of ExecuTorch."""

    def __init__(self, files: Sequence[Path], device: torch.device, fp16: bool) -> None:
        facts = notes_beside(files[0])
        with hushed():  # the runtime tells which files about the processor it did not find
            runtime = need("executorch.runtime", "an ExecuTorch program", "pip install executorch").Runtime.get()
            try:
                self.kept = runtime.load_program(files[0])  # the method reads its memory
                method = self.kept.load_method("forward")
            except (RuntimeError, ValueError) as error:
                raise ValueError(f"{files[0]}: ExecuTorch cannot open it; export it again") from error
        super().__init__(files[0], facts, torch.device("cpu"), method)

    def run(self, images: Tensor) -> Tensor:
        """Float32 pictures (B, 3, H, W) -> the first output."""
        return self.model.execute([images])[0].clone()


class NcnnBackend(ExportedBackend):
    """`_ncnn_model` folders, one picture at a time."""

    def __init__(self, files: Sequence[Path], device: torch.device, fp16: bool) -> None:
        facts, ncnn = notes_inside(files[0]), need("ncnn", "an ncnn model")
        params = sorted(files[0].glob("*.param"))
        if not params:
            raise ValueError(f"{files[0]}: there is no .param file in this folder; export it again")
        net = ncnn.Net()
        net.opt.num_threads = torch.get_num_threads()
        net.opt.use_fp16_arithmetic = net.opt.use_fp16_storage = net.opt.use_fp16_packed = facts.precision == "fp16"
        with hushed():
            failed = net.load_param(str(params[0])) or net.load_model(str(params[0].with_suffix(".bin")))
        if failed:
            raise ValueError(f"{files[0]}: ncnn cannot open it; export it again")
        super().__init__(files[0], facts, torch.device("cpu"), net)
        self.ncnn = ncnn

    def run(self, images: Tensor) -> Tensor:
        """Float32 pictures (B, 3, H, W) -> predictions, picture after picture."""
        found = []
        for image in images.numpy():
            extractor = self.model.create_extractor()
            extractor.input(NCNN_ENTRY, self.ncnn.Mat(np.ascontiguousarray(image)).clone())
            found.append(torch.from_numpy(np.array(extractor.extract(NCNN_EXIT)[1])))
        return torch.stack(found)


class LiteRTBackend(ExportedBackend):
    """`.tflite` files, float or quantised, on the CPU; `_edgetpu.tflite` files on an Edge TPU."""

    def __init__(self, files: Sequence[Path], device: torch.device, fp16: bool) -> None:
        facts, helpers = notes_appended(files[0]), []
        module = "ai_edge_litert.interpreter" if is_there("ai_edge_litert") else "tensorflow.lite"
        lite = need(module, "a .tflite file", "pip install ai-edge-litert")
        if files[0].name.endswith("_edgetpu.tflite"):
            try:
                helpers = [lite.load_delegate(EDGE_TPU)]
            except (OSError, ValueError, RuntimeError) as error:
                raise ValueError(f"{files[0]}: needs an Edge TPU and its library {EDGE_TPU}, not found here") from error
        try:
            with hushed():
                interpreter = lite.Interpreter(
                    model_path=str(files[0]), num_threads=torch.get_num_threads(), experimental_delegates=helpers
                )
                interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{files[0]}: LiteRT cannot open it; export it again") from error
        super().__init__(files[0], facts, torch.device("cpu"), interpreter)
        self.entry, self.exit = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

    def run(self, images: Tensor) -> Tensor:
        """Float32 pictures (B, 3, H, W) -> predictions; the file may want channels last, or whole numbers."""
        array = images.numpy()
        if self.entry["shape"][-1] == 3:
            array = array.transpose(0, 2, 3, 1)
        self.model.set_tensor(self.entry["index"], _quantised(array, self.entry))
        self.model.invoke()
        found = self.model.get_tensor(self.exit["index"]).astype(np.float32)
        scale, zero = self.exit["quantization"]
        found = torch.from_numpy((found - zero) * scale if scale else found)
        found[..., :4] *= self.facts.unit
        return found


def _quantised(array: np.ndarray, detail: dict) -> np.ndarray:
    """Numbers as a tensor of this description holds them."""
    scale, zero = detail["quantization"]
    if not scale:
        return np.ascontiguousarray(array.astype(detail["dtype"]))
    limits = np.iinfo(detail["dtype"])
    return np.rint(array / scale + zero).clip(limits.min, limits.max).astype(detail["dtype"])


def append_notes(file: Path, facts: Facts) -> None:
    """Put the facts into an archive at the end of a .tflite file, where such files keep what is not the model."""
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(NOTES, facts.as_json())


def notes_appended(file: Path) -> Facts:
    """The facts in the archive at the end of a .tflite file. Raises ValueError where they are missing or damaged."""
    try:
        with zipfile.ZipFile(file) as archive:
            return read_facts(archive.read(NOTES), file)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(
            f"{file}: does not tell its classes and sizes; export it again, from the .pt weights if it is v6.1's"
        ) from error
    except (zlib.error, OSError, EOFError) as error:
        raise ValueError(f"{file}: its metadata cannot be read ({error}); export it again") from error


class CoreMLBackend(ExportedBackend):
    """`.mlpackage` folders, which macOS alone can run."""

    def __init__(self, files: Sequence[Path], device: torch.device, fp16: bool) -> None:
        if sys.platform != "darwin":
            raise ValueError(f"{files[0]}: Core ML models run on macOS only; use another format here")
        tools = need("coremltools", "a Core ML model")
        model = tools.models.MLModel(str(files[0]))
        super().__init__(files[0], read_facts(dict(model.user_defined_metadata), files[0]), torch.device("cpu"), model)
        spec = model.get_spec().description
        self.entry, self.exit = spec.input[0].name, spec.output[0].name

    def run(self, images: Tensor) -> Tensor:
        """Float32 pictures (B, 3, H, W) -> predictions."""
        return torch.from_numpy(self.model.predict({self.entry: images.numpy()})[self.exit])
