"""Files for phones and small boards in the runtimes that also run on a desk, and those of TensorFlow."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.backends.base import ExportedBackend
from models.backends.metadata import kept_metadata, read_metadata
from models.backends.tools import is_there, need, silenced

EDGE_TPU = "libedgetpu.so.1"
INSTALL = "pip install tensorflow-cpu, in an environment of its own (docs/deploy.md)"
NCNN_ENTRY, NCNN_EXIT = "in0", "out0"  # the names pnnx gives


def open_executorch(files: Sequence[Path], device: torch.device, fp16: bool) -> ExportedBackend:
    """`.pte` files of ExecuTorch."""
    metadata = kept_metadata(files[0])
    with silenced():  # the runtime prints which files about the processor it did not find
        runtime = need("executorch.runtime", "an ExecuTorch program", "pip install executorch").Runtime.get()
        try:
            program = runtime.load_program(files[0])
            method = program.load_method("forward")
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{files[0]}: ExecuTorch cannot open it; export it again") from error
    # The method reads the program's memory, so both are kept
    return ExportedBackend(
        files[0], metadata, "cpu", (program, method), lambda images: method.execute([images])[0].clone()
    )


def open_ncnn(files: Sequence[Path], device: torch.device, fp16: bool) -> ExportedBackend:
    """`_ncnn_model` folders, one image at a time."""
    metadata, ncnn = kept_metadata(files[0]), need("ncnn", "an ncnn model")
    params = sorted(files[0].glob("*.param"))
    if not params:
        raise ValueError(f"{files[0]}: there is no .param file in this folder; export it again")
    net = ncnn.Net()
    net.opt.num_threads = torch.get_num_threads()
    net.opt.use_fp16_arithmetic = net.opt.use_fp16_storage = net.opt.use_fp16_packed = metadata.precision == "fp16"
    with silenced():
        failed = net.load_param(str(params[0])) or net.load_model(str(params[0].with_suffix(".bin")))
    if failed:
        raise ValueError(f"{files[0]}: ncnn cannot open it; export it again")

    def run(images: Tensor) -> Tensor:
        """One image after the other."""
        found = []
        for image in images.numpy():
            extractor = net.create_extractor()
            extractor.input(NCNN_ENTRY, ncnn.Mat(np.ascontiguousarray(image)).clone())
            found.append(torch.from_numpy(np.array(extractor.extract(NCNN_EXIT)[1])))
        return torch.stack(found)

    return ExportedBackend(files[0], metadata, "cpu", net, run)


def open_litert(files: Sequence[Path], device: torch.device, fp16: bool) -> ExportedBackend:
    """`.tflite` files, float or quantised, on the CPU; `_edgetpu.tflite` files on an Edge TPU."""
    metadata, helpers = kept_metadata(files[0]), []
    module = "ai_edge_litert.interpreter" if is_there("ai_edge_litert") else "tensorflow.lite"
    lite = need(module, "a .tflite file", "pip install ai-edge-litert")
    if files[0].name.endswith("_edgetpu.tflite"):
        try:
            helpers = [lite.load_delegate(EDGE_TPU)]
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"{files[0]}: needs an Edge TPU and its library {EDGE_TPU}, not found here") from error
    try:
        with silenced():
            interpreter = lite.Interpreter(
                model_path=str(files[0]), num_threads=torch.get_num_threads(), experimental_delegates=helpers
            )
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{files[0]}: LiteRT cannot open it; export it again") from error
    entry, exit_ = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

    def run(images: Tensor) -> Tensor:
        """The file may want channels last, or whole numbers."""
        array = images.numpy()
        if entry["shape"][-1] == 3:
            array = array.transpose(0, 2, 3, 1)
        scale, zero = entry["quantization"]
        if scale:
            limits = np.iinfo(entry["dtype"])
            array = np.rint(array / scale + zero).clip(limits.min, limits.max)
        interpreter.set_tensor(entry["index"], np.ascontiguousarray(array.astype(entry["dtype"])))
        interpreter.invoke()
        found = interpreter.get_tensor(exit_["index"]).astype(np.float32)
        scale, zero = exit_["quantization"]
        table = torch.from_numpy((found - zero) * scale if scale else found)
        table[..., :4] *= metadata.unit
        return table

    return ExportedBackend(files[0], metadata, "cpu", interpreter, run)


def open_coreml(files: Sequence[Path], device: torch.device, fp16: bool) -> ExportedBackend:
    """`.mlpackage` folders, which macOS alone can run."""
    if sys.platform != "darwin":
        raise ValueError(f"{files[0]}: Core ML models run on macOS only; use another format here")
    model = need("coremltools", "a Core ML model").models.MLModel(str(files[0]))
    metadata, spec = read_metadata(dict(model.user_defined_metadata), files[0]), model.get_spec().description
    entry, exit_ = spec.input[0].name, spec.output[0].name
    return ExportedBackend(
        files[0], metadata, "cpu", model, lambda images: torch.from_numpy(model.predict({entry: images.numpy()})[exit_])
    )


def load_tensorflow(purpose: str, install: str = INSTALL) -> Any:
    """TensorFlow, without its messages about processors. Raises ValueError where it is missing."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with silenced():
        if is_there("triton"):
            import_module("triton")  # after TensorFlow, with which it shares names of C++, it ends the program
        return need("tensorflow", purpose, install)


def channels_last(images: Tensor) -> np.ndarray:
    """(B, 3, H, W) -> (B, H, W, 3), as TensorFlow has images."""
    return np.ascontiguousarray(images.cpu().numpy().transpose(0, 2, 3, 1))


def open_tensorflow(files: Sequence[Path], device: torch.device, fp16: bool) -> ExportedBackend:
    """`_saved_model` folders, and `.pb` files, whose one placeholder is the input, the last operator the output."""
    metadata, tf = kept_metadata(files[0]), load_tensorflow("a SavedModel or a frozen graph")
    damage: tuple[type[Exception], ...] = (
        OSError,
        ValueError,
        RuntimeError,
        LookupError,
        AttributeError,
        StopIteration,
    )
    damage += (tf.errors.OpError, need("google.protobuf.message", "TensorFlow").Error)
    try:
        with silenced():
            if files[0].is_dir():
                model = tf.saved_model.load(str(files[0]))
                call = model.signatures["serving_default"]
                entry = next(iter(call.structured_input_signature[1]))
            else:
                graph = tf.Graph().as_graph_def()
                graph.ParseFromString(files[0].read_bytes())
                entry = next(node.name for node in graph.node if node.op == "Placeholder")
                ends = (f"{entry}:0", f"{graph.node[-1].name}:0")
                model = tf.compat.v1.wrap_function(lambda: tf.compat.v1.import_graph_def(graph, name=""), [])
                call = model.prune(*(model.graph.as_graph_element(name) for name in ends))
    except damage as error:
        raise ValueError(f"{files[0]}: TensorFlow cannot open it; export it again") from error

    def run(images: Tensor) -> Tensor:
        given = tf.constant(channels_last(images))
        found = next(iter(call(**{entry: given}).values())) if files[0].is_dir() else call(given)
        return torch.from_numpy(found.numpy())

    return ExportedBackend(files[0], metadata, "cpu", model, run)
