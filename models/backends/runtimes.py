"""ONNX, OpenVINO and TensorRT files in their own runtimes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.backends.base import ExportedBackend
from models.backends.metadata import Metadata, kept_metadata, read_metadata, with_shape
from models.backends.tools import is_there, need, silenced
from utils.base.files import printable
from utils.base.log import LOGGER


def open_onnx(files: Sequence[Path], device: torch.device, fp16: bool) -> ExportedBackend:
    """`.onnx` files in ONNX Runtime."""
    ort = need("onnxruntime", "an .onnx file", "pip install onnxruntime (or onnxruntime-gpu)")
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 4  # its errors are raised too; printed, they hold names of the file as they are
    wanted: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda" and "CUDAExecutionProvider" in ort.get_available_providers():
        wanted.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
    try:
        session = ort.InferenceSession(str(files[0]), settings, providers=wanted)
    except Exception as error:  # the runtime's own classes, which it does not export
        raise ValueError(f"{files[0]}: ONNX Runtime cannot open it ({printable(str(error))[:160]})") from error
    inputs, outputs = session.get_inputs(), [session.get_outputs()[0].name]
    metadata = read_metadata(session.get_modelmeta().custom_metadata_map, files[0])
    metadata = with_shape(metadata, inputs[0].shape if inputs else (), files[0])
    kind = np.float16 if "float16" in inputs[0].type else np.float32
    entry = inputs[0].name
    return ExportedBackend(
        files[0], metadata, device, session,
        lambda images: torch.from_numpy(session.run(outputs, {entry: images.cpu().numpy().astype(kind)})[0]),
    )  # fmt: skip


def open_opencv(files: Sequence[Path], device: torch.device, fp16: bool) -> ExportedBackend:
    """`.onnx` files in OpenCV's DNN module; what the file says about itself is read if the package onnx is there."""
    import cv2

    try:
        with silenced():  # it prints names of the file as they are
            net = cv2.dnn.readNetFromONNX(str(files[0]))
    except cv2.error as error:
        raise ValueError(f"{files[0]}: OpenCV cannot run it; leave --dnn out to use ONNX Runtime") from error
    metadata = Metadata()
    if is_there("onnx"):
        content = need("onnx", "--dnn").load(str(files[0]), load_external_data=False)
        shape = [side.dim_value for side in content.graph.input[0].type.tensor_type.shape.dim]
        found = read_metadata({pair.key: pair.value for pair in content.metadata_props}, files[0])
        metadata = with_shape(found, shape, files[0])

    def run(images: Tensor) -> Tensor:
        net.setInput(images.cpu().numpy())
        return torch.from_numpy(net.forward())

    return ExportedBackend(files[0], metadata, device, net, run)


@functools.cache
def openvino_core() -> Any:
    """OpenVINO's entrance, one for as long as the process lives.

    Each one gives its thread a stack for signals, and puts back the stack that was there before when it goes. Of two
    whose lives overlap, the second puts back the first one's, which is gone: the next signal then ends the process.
    """
    return need("openvino", "an OpenVINO model").Core()


def open_openvino(files: Sequence[Path], device: torch.device, fp16: bool) -> ExportedBackend:
    """`_openvino_model` folders, or the .xml file in one, on the CPU.

    With `fp16` in the 16 bits that the processor computes in, if it does, bfloat16 rather than float16.
    """
    core = openvino_core()
    found = sorted(files[0].glob("*.xml")) if files[0].is_dir() else files
    if not found:
        raise ValueError(f"{files[0]}: there is no .xml file in this folder; export it again")
    file = found[0]
    # Left to itself the plug-in computes in bfloat16 on processors that have it, which moves boxes by pixels
    precision = "f32"
    if fp16:
        able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        precision = next((name for kind, name in (("BF16", "bf16"), ("FP16", "f16")) if kind in able), "f32")
        if precision == "f32":
            LOGGER.warning("this processor computes in single precision only; --half changes nothing")
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": precision}
    place = ["yolov5", "facts"]
    try:
        with silenced():  # other readers print what they make of it
            model = core.read_model(file)
        notes = model.get_rt_info(place).astype(str) if model.has_rt_info(place) else {}
        # False for sides that are open
        shape = [side.is_static and side.get_length() for entry in model.inputs[:1] for side in entry.partial_shape]
        metadata = with_shape(read_metadata(notes, file), shape, file)
        compiled = core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise ValueError(f"{file}: OpenVINO cannot open it; export it again") from error
    return ExportedBackend(
        file, metadata, "cpu", compiled, lambda images: torch.from_numpy(compiled(images.numpy())[0].copy())
    )


def open_engine(files: Sequence[Path], device: torch.device, fp16: bool) -> ExportedBackend:
    """`.engine` files of TensorRT 10 and later, on the GPU they were built for."""
    metadata = kept_metadata(files[0])
    trt = need("tensorrt", "a TensorRT engine", "pip install tensorrt, on a machine with an NVIDIA GPU")
    if device.type != "cuda":
        raise ValueError(f"{files[0]}: a TensorRT engine runs on a GPU; give --device 0")
    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    engine = runtime.deserialize_cuda_engine(files[0].read_bytes())
    if engine is None:
        raise ValueError(f"{files[0]}: is damaged, or for another GPU or TensorRT; build it again here")
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    entry = next(name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT)
    metadata = with_shape(metadata, engine.get_tensor_shape(entry), files[0])
    most = engine.get_tensor_profile_shape(entry, 0)[2][0]  # (least, best, most), each a shape
    known = {trt.DataType.HALF: torch.float16, trt.DataType.FLOAT: torch.float32}
    kinds = {name: known[engine.get_tensor_dtype(name)] for name in names}
    context = engine.create_execution_context()

    def run_piece(images: Tensor) -> Tensor:
        """As many images as the engine wants."""
        if not context.set_input_shape(entry, tuple(images.shape)):
            size = " x ".join(map(str, images.shape[2:]))
            raise RuntimeError(f"it was not built for images of {size} pixels: give such --imgsz")
        shapes = {name: tuple(context.get_tensor_shape(name)) for name in names if name != entry}
        results = {name: torch.empty(shape, dtype=kinds[name], device=device) for name, shape in shapes.items()}
        given = images.to(kinds[entry]).contiguous()
        for name, tensor in {entry: given, **results}.items():
            context.set_tensor_address(name, tensor.data_ptr())
        stream = torch.cuda.current_stream(device)
        context.execute_async_v3(stream.cuda_stream)
        stream.synchronize()
        return next(iter(results.values()))

    return ExportedBackend(
        files[0], metadata, device, (runtime, engine),
        lambda images: torch.cat([run_piece(piece) for piece in images.split(most)]),
    )  # fmt: skip
