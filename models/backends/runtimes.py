"""ONNX, OpenVINO and TensorRT files in their own runtimes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.backends.base import ExportedBackend
from models.backends.facts import NOTES, Facts, read_facts
from models.backends.tools import is_there, need


def with_shape(facts: Facts, shape: Sequence[Any]) -> Facts:
    """The facts with the batch and picture size that the file's own input asks for, whatever else is written there."""
    batch, _, *size = (side if isinstance(side, int) and side > 0 else None for side in shape)
    return replace(facts, batch=batch, imgsz=tuple(size) if all(size) else None)


class OnnxBackend(ExportedBackend):
    """`.onnx` files in ONNX Runtime."""

    def __init__(self, files: Sequence[Path], device: torch.device, fp16: bool) -> None:
        ort = need("onnxruntime", "an .onnx file", "pip install onnxruntime (or onnxruntime-gpu)")
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        settings.log_severity_level = 3
        wanted = ["CPUExecutionProvider"]
        if device.type == "cuda" and "CUDAExecutionProvider" in ort.get_available_providers():
            wanted.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
        try:
            session = ort.InferenceSession(str(files[0]), settings, providers=wanted)
        except Exception as error:  # the runtime's own classes, which it does not export
            raise ValueError(f"{files[0]}: ONNX Runtime cannot open it ({str(error).splitlines()[0][:160]})") from error
        entry = session.get_inputs()[0]
        facts = read_facts(session.get_modelmeta().custom_metadata_map, files[0])
        super().__init__(files[0], with_shape(facts, entry.shape), device, session)
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
        return with_shape(read_facts({pair.key: pair.value for pair in content.metadata_props}, file), shape)

    def run(self, images: Tensor) -> Tensor:
        """Float32 pictures (B, 3, H, W) -> the first output."""
        self.model.setInput(images.cpu().numpy())
        return torch.from_numpy(self.model.forward())


class OpenVINOBackend(ExportedBackend):
    """`_openvino_model` folders, or the .xml file in one, on the CPU."""

    def __init__(self, files: Sequence[Path], device: torch.device, fp16: bool) -> None:
        ov = need("openvino", "an OpenVINO model")
        found = sorted(files[0].glob("*.xml")) if files[0].is_dir() else [files[0]]
        if not found:
            raise ValueError(f"{files[0]}: there is no .xml file in this folder; export it again")
        try:
            model = ov.Core().read_model(found[0])
        except RuntimeError as error:
            raise ValueError(f"{found[0]}: OpenVINO cannot open it; export it again") from error
        facts = Facts()
        if model.has_rt_info(["yolov5", "facts"]):
            facts = read_facts(model.get_rt_info(["yolov5", "facts"]).astype(str), found[0])
        shape = [side.get_length() if side.is_static else None for side in model.inputs[0].partial_shape]
        # The plug-in would compute in bfloat16 on processors that have it, which moves boxes by pixels
        precision = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        compiled = ov.compile_model(model, "CPU", precision)
        super().__init__(found[0], with_shape(facts, shape), torch.device("cpu"), compiled)

    def run(self, images: Tensor) -> Tensor:
        """Float32 pictures (B, 3, H, W) -> the first output."""
        return torch.from_numpy(self.model(images.numpy())[0].copy())


def notes_beside(file: Path) -> Facts:
    """The facts in `file`.json, for formats that have no place for them; without one, none are known."""
    beside = file.with_name(f"{file.name}.json")
    return read_facts(json.loads(beside.read_text(encoding="utf-8")), beside) if beside.is_file() else Facts()


def notes_inside(folder: Path) -> Facts:
    """The facts in a model's folder; without a file of them, none are known."""
    inside = folder / NOTES
    return read_facts(json.loads(inside.read_text(encoding="utf-8")), inside) if inside.is_file() else Facts()


class TensorRTBackend(ExportedBackend):
    """`.engine` files of TensorRT 10 and later, on the GPU they were built for."""

    def __init__(self, files: Sequence[Path], device: torch.device, fp16: bool) -> None:
        trt = need("tensorrt", "a TensorRT engine")
        if device.type != "cuda":
            raise ValueError(f"{files[0]}: a TensorRT engine runs on a GPU; give --device 0")
        runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        engine = runtime.deserialize_cuda_engine(files[0].read_bytes())
        if engine is None:
            raise ValueError(f"{files[0]}: was built for another GPU or TensorRT; build it again here")
        super().__init__(files[0], notes_beside(files[0]), device, engine)
        self.context, self.kept = engine.create_execution_context(), runtime
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self.entry = next(name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT)
        self.outputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]

    def run(self, images: Tensor) -> Tensor:
        """Float32 pictures (B, 3, H, W) on the GPU -> the first output."""
        self.context.set_input_shape(self.entry, tuple(images.shape))
        self.context.set_tensor_address(self.entry, images.data_ptr())
        results = []
        for name in self.outputs:
            results.append(torch.empty(tuple(self.context.get_tensor_shape(name)), device=self.device))
            self.context.set_tensor_address(name, results[-1].data_ptr())
        stream = torch.cuda.current_stream(self.device)
        self.context.execute_async_v3(stream.cuda_stream)
        stream.synchronize()
        return results[0]
