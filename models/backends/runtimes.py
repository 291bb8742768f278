"""ONNX, OpenVINO and TensorRT files in their own runtimes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.backends.base import ExportedBackend
from models.backends.facts import NOTES, Facts, read_facts
from models.backends.hush import hushed
from models.backends.tools import is_there, need
from utils.base.files import printable
from utils.base.log import LOGGER
from utils.base.paths import LARGEST_SIZE


def with_shape(facts: Facts, shape: Sequence[Any], file: object) -> Facts:
    """The facts with the batch and picture size that the file's own input asks for, whatever else is written there.

    Raises ValueError, naming the file, for an input that is no image, or larger than any that room is made for.
    """
    sides = [side if isinstance(side, int) and side > 0 else None for side in shape]
    if len(sides) != 4 or sides[1] not in (3, None) or max(side or 1 for side in sides) > LARGEST_SIZE:
        words = printable(" x ".join(map(str, shape)))[:80]
        raise ValueError(f"{file}: its input is {words or 'missing'}, not images of 3 colours; export it again")
    batch, _, *size = sides
    return replace(facts, batch=batch, imgsz=tuple(size) if all(size) else None)


class OnnxBackend(ExportedBackend):
    """`.onnx` files in ONNX Runtime."""

    def __init__(self, files: Sequence[Path], device: torch.device, fp16: bool) -> None:
        ort = need("onnxruntime", "an .onnx file", "pip install onnxruntime (or onnxruntime-gpu)")
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        settings.log_severity_level = 4  # its errors are raised too; printed, they hold names of the file as they are
        wanted = ["CPUExecutionProvider"]
        if device.type == "cuda" and "CUDAExecutionProvider" in ort.get_available_providers():
            wanted.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
        try:
            session = ort.InferenceSession(str(files[0]), settings, providers=wanted)
        except Exception as error:  # the runtime's own classes, which it does not export
            raise ValueError(f"{files[0]}: ONNX Runtime cannot open it ({printable(str(error))[:160]})") from error
        entry = next(iter(session.get_inputs()), None)
        facts = read_facts(session.get_modelmeta().custom_metadata_map, files[0])
        facts = with_shape(facts, entry.shape if entry else (), files[0])
        super().__init__(files[0], facts, device, session)
        self.entry, self.outputs = entry.name, [session.get_outputs()[0].name]
        self.kind = np.float16 if "float16" in entry.type else np.float32

    def run(self, images: Tensor) -> Tensor:
        """Float32 pictures (B, 3, H, W) -> the first output."""
        given = {self.entry: images.cpu().numpy().astype(self.kind)}
        return torch.from_numpy(self.model.run(self.outputs, given)[0])


class OpenCVBackend(ExportedBackend):
    """`.onnx` files in OpenCV's DNN module; what the file says about itself is read if the package onnx is there."""

    def __init__(self, files: Sequence[Path], device: torch.device, fp16: bool) -> None:
        import cv2

        try:
            with hushed():  # it prints names of the file as they are
                net = cv2.dnn.readNetFromONNX(str(files[0]))
        except cv2.error as error:
            raise ValueError(f"{files[0]}: OpenCV cannot run it; leave --dnn out to use ONNX Runtime") from error
        super().__init__(files[0], self._facts(files[0]), device, net)

    @staticmethod
    def _facts(file: Path) -> Facts:
        if not is_there("onnx"):
            return Facts()
        content = need("onnx", "--dnn").load(str(file), load_external_data=False)
        shape = [side.dim_value for side in content.graph.input[0].type.tensor_type.shape.dim]
        return with_shape(read_facts({pair.key: pair.value for pair in content.metadata_props}, file), shape, file)

    def run(self, images: Tensor) -> Tensor:
        """Float32 pictures (B, 3, H, W) -> the first output."""
        self.model.setInput(images.cpu().numpy())
        return torch.from_numpy(self.model.forward())


@functools.cache
def openvino_core() -> Any:
    """OpenVINO's entrance, one for as long as the process lives.

    Each one gives its thread a stack for signals, and puts back the stack that was there before when it goes. Of two
    whose lives overlap, the second puts back the first one's, which is gone: the next signal then ends the process.
    """
    return need("openvino", "an OpenVINO model").Core()


class OpenVINOBackend(ExportedBackend):
    """`_openvino_model` folders, or the .xml file in one, on the CPU.

    With `fp16` in the 16 bits that the processor computes in, if it does, bfloat16 rather than float16.
    """

    takes_half = True

    def __init__(self, files: Sequence[Path], device: torch.device, fp16: bool) -> None:
        core = openvino_core()
        found = sorted(files[0].glob("*.xml")) if files[0].is_dir() else [files[0]]
        if not found:
            raise ValueError(f"{files[0]}: there is no .xml file in this folder; export it again")
        settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
        # Left to itself the plug-in computes in bfloat16 on processors that have it, which moves boxes by pixels
        settings["INFERENCE_PRECISION_HINT"] = _sixteen_bits(core) if fp16 else "f32"
        noted = ["yolov5", "facts"]
        try:
            with hushed():  # other readers print what they make of it
                model = core.read_model(found[0])
            notes = model.get_rt_info(noted).astype(str) if model.has_rt_info(noted) else {}
            inputs = [entry.partial_shape for entry in model.inputs[:1]]
            shape = [side.get_length() if side.is_static else None for sides in inputs for side in sides]
            facts = with_shape(read_facts(notes, found[0]), shape, found[0])
            compiled = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise ValueError(f"{found[0]}: OpenVINO cannot open it; export it again") from error
        super().__init__(found[0], facts, torch.device("cpu"), compiled)

    def run(self, images: Tensor) -> Tensor:
        """Float32 pictures (B, 3, H, W) -> the first output."""
        return torch.from_numpy(self.model(images.numpy())[0].copy())


def _sixteen_bits(core: Any) -> str:
    """What OpenVINO calls the processor's 16-bit numbers; "f32", and a warning, where it has none."""
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for kind, name in (("BF16", "bf16"), ("FP16", "f16")):
        if kind in able:
            return name
    LOGGER.warning("this processor computes in single precision only; --half changes nothing")
    return "f32"


def notes_beside(file: Path) -> Facts:
    """The facts in `file`.json, for formats that have no place for them. Raises ValueError where that is missing."""
    return _notes(file.with_name(f"{file.name}.json"), file)


def notes_inside(folder: Path) -> Facts:
    """The facts in a model's folder. Raises ValueError where they are missing."""
    return _notes(folder / NOTES, folder)


def _notes(place: Path, owner: Path) -> Facts:
    if not place.is_file():
        raise ValueError(f"{owner}: {place.name}, which tells its classes and sizes, is missing; copy it along with it")
    return read_facts(place.read_bytes(), place)


class TensorRTBackend(ExportedBackend):
    """`.engine` files of TensorRT 10 and later, on the GPU they were built for."""

    def __init__(self, files: Sequence[Path], device: torch.device, fp16: bool) -> None:
        facts = notes_beside(files[0])
        trt = need("tensorrt", "a TensorRT engine", "pip install tensorrt, on a machine with an NVIDIA GPU")
        if device.type != "cuda":
            raise ValueError(f"{files[0]}: a TensorRT engine runs on a GPU; give --device 0")
        runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        engine = runtime.deserialize_cuda_engine(files[0].read_bytes())
        if engine is None:
            raise ValueError(f"{files[0]}: is damaged, or for another GPU or TensorRT; build it again here")
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self.entry = next(name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT)
        facts = with_shape(facts, engine.get_tensor_shape(self.entry), files[0])
        super().__init__(files[0], facts, device, engine)
        self.most = engine.get_tensor_profile_shape(self.entry, 0)[2][0]  # (least, best, most), each a shape
        kinds = {trt.DataType.HALF: torch.float16, trt.DataType.FLOAT: torch.float32}
        self.kinds = {name: kinds[engine.get_tensor_dtype(name)] for name in names}
        self.context, self.kept = engine.create_execution_context(), runtime

    def run(self, images: Tensor) -> Tensor:
        """Float32 pictures (B, 3, H, W) on the GPU -> the first output, in as many pieces as the engine wants."""
        return torch.cat([self._run_piece(piece.to(self.kinds[self.entry])) for piece in images.split(self.most)])

    def _run_piece(self, images: Tensor) -> Tensor:
        if not self.context.set_input_shape(self.entry, tuple(images.shape)):
            size = " x ".join(map(str, images.shape[2:]))
            raise ValueError(
                f"{self.file.name} was not built for pictures of {size} pixels; build it with such --imgsz"
            )
        given, results = images.contiguous(), {}
        for name, kind in self.kinds.items():
            if name != self.entry:
                shape = tuple(self.context.get_tensor_shape(name))
                results[name] = torch.empty(shape, dtype=kind, device=self.device)
        for name, tensor in {self.entry: given, **results}.items():
            self.context.set_tensor_address(name, tensor.data_ptr())
        stream = torch.cuda.current_stream(self.device)
        self.context.execute_async_v3(stream.cuda_stream)
        stream.synchronize()
        return next(iter(results.values()))
