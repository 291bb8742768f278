"""Trained detectors as files for other programs: the table of formats, and the one way through all of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.backends.tools import is_there, need
from models.exporters.compare import compare_with_pytorch
from models.exporters.job import DEFAULT_OPSET, ExportError, ExportJob, ExportSettings
from models.exporters.onnx_file import export_engine, export_onnx, export_openvino
from models.exporters.programs import (
    LITERT,
    export_coreml,
    export_executorch,
    export_ncnn,
    export_package,
    export_program,
    export_safetensors,
    export_tflite,
    export_torchscript,
    export_yolov5,
)  # fmt: skip
from models.exporters.tensorflow import ONNX2TF, export_edgetpu, export_pb, export_saved_model, export_tfjs
from utils.base.log import LOGGER
from utils.base.paths import shown

__all__ = ["DEFAULT_OPSET", "FORMATS", "ExportError", "ExportJob", "ExportSettings", "export"]


@dataclass(frozen=True, slots=True)
class Format:
    """One format.

    title: for people. ending: of the file's name. write: makes it. flags: of `ExportSettings`, those it obeys; "gpu":
    is made on one, too; "cpu_half": half precision on the CPU. modules: that it needs, those of the comparison too.
    install: the command that installs them all. routes: takes routing attention. runs: can be computed on this kind of
    machine, so that it is compared.
    """

    title: str
    ending: str
    write: Callable[[ExportJob], Path]
    flags: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    install: str = ""
    routes: bool = True
    runs: bool = True


_GRAPH = ("half", "dynamic", "simplify", "opset", "nms", "gpu")
_OPEN = ("dynamic", "gpu")
_TF = (("onnx2tf", "tensorflow", "onnxslim", "onnxscript"), ONNX2TF)
_ONNX, _INTEL = ("onnx", "onnxscript"), ("cpu_half", "int8", "dynamic", "simplify", "opset", "nms")
_PIP = "pip install onnx onnxscript"

FORMATS: dict[str, Format] = {
    "torchscript": Format("TorchScript", ".torchscript", export_torchscript, ("half", "optimize", *_OPEN)),
    "onnx": Format("ONNX", ".onnx", export_onnx, _GRAPH, (*_ONNX, "onnxruntime"), f"{_PIP} onnxruntime onnxslim"),
    "openvino": Format(
        "OpenVINO", "_openvino_model", export_openvino, _INTEL, (*_ONNX, "openvino"),
        f"{_PIP} openvino onnxslim 'nncf>=3.4'",
    ),
    "engine": Format(
        "TensorRT", ".engine", export_engine, ("half", "opset", *_OPEN), (*_ONNX, "tensorrt"), f"{_PIP} tensorrt"
    ),
    "coreml": Format(
        "Core ML", ".mlpackage", export_coreml, ("cpu_half",), ("coremltools",), "pip install coremltools",
        runs=sys.platform == "darwin",
    ),
    "saved_model": Format("TensorFlow SavedModel", "_saved_model", export_saved_model, (), *_TF),
    "pb": Format("TensorFlow GraphDef", ".pb", export_pb, (), *_TF),
    "tflite": Format(
        "TensorFlow Lite", ".tflite", export_tflite, ("cpu_half", "int8"), ("litert_torch", "ai_edge_litert"), LITERT
    ),
    "edgetpu": Format("Edge TPU", "_edgetpu.tflite", export_edgetpu, ("int8",), *_TF, routes=False, runs=False),
    "tfjs": Format("TensorFlow.js", "_web_model", export_tfjs, (), *_TF, runs=False),
    "pt2": Format("torch.export", ".pt2", export_program, _OPEN),
    "aoti": Format("AOTInductor", "_aoti.pt2", export_package, _OPEN),
    "executorch": Format("ExecuTorch", ".pte", export_executorch, (), ("executorch",), "pip install executorch"),
    "ncnn": Format(
        "ncnn", "_ncnn_model", export_ncnn, ("cpu_half",), ("pnnx", "ncnn"), "pip install pnnx ncnn", routes=False
    ),
    "safetensors": Format(
        "safetensors", ".safetensors", export_safetensors, ("cpu_half",), ("safetensors",), "pip install safetensors"
    ),
    "yolov5": Format("YOLOv5 6.1 checkpoint", "_yolov5.pt", export_yolov5, ("cpu_half",)),
}  # fmt: skip


_ABLE = {flag: ", ".join(name for name in FORMATS if flag in FORMATS[name].flags) for flag in ("cpu_half", "int8")}


def check_formats(names: Sequence[str], settings: ExportSettings, routes: bool = False) -> None:
    """Raise ValueError, one line, for the first format that cannot do what is asked or lacks its tools.

    `routes`: the network has routing attention. Flags that a format passes over are logged.
    """
    for name in names:
        _check_flags(name, FORMATS[name], settings)
        if routes and not FORMATS[name].routes:
            raise ValueError(
                f"--include {name}: {FORMATS[name].title} has no operators for routing attention (topk, gather); "
                "export to onnx or openvino instead"
            )
    for name in names:
        for module in FORMATS[name].modules:
            if not is_there(module):  # importing is left to the exporter: TensorFlow takes seconds
                need(module, f"--include {name}", FORMATS[name].install)


def _check_flags(name: str, kind: Format, settings: ExportSettings) -> None:
    """Raise ValueError for what a format cannot keep; say what it passes over."""
    on_gpu = settings.device.type != "cpu"
    if on_gpu and "gpu" not in kind.flags:
        raise ValueError(f"--include {name} is made on the CPU; leave --device {settings.device} out")
    if settings.half and not {"cpu_half", "half" if on_gpu else "cpu_half"}.intersection(kind.flags):
        where = "needs a GPU: give --device 0" if "half" in kind.flags else "is not offered"
        raise ValueError(f"--half with --include {name} {where}, or choose among {_ABLE['cpu_half']}")
    if settings.int8 and "int8" not in kind.flags:
        raise ValueError(f"--int8 is not offered for {name}; choose among {_ABLE['int8']}")
    for flag in sorted({"dynamic", "simplify", "optimize", "nms"}.difference(kind.flags)):
        if getattr(settings, flag):
            LOGGER.warning(f"--{flag} does not concern {name}, which is made without it")


def export(job: ExportJob, names: Sequence[str]) -> list[Path]:
    """Write the formats named, each loaded again in its own runtime and compared; returns the files.

    Raises ValueError as `check_formats` does, and for a file that would take the place of the weights, before anything
    is written, and ExportError for a file that differs.
    """
    names = list(dict.fromkeys(names))
    check_formats(names, job.settings, bool(job.routes))
    for name in names:
        if job.file(FORMATS[name].ending) == job.weights:
            raise ValueError(f"--include {name}: would be written over {job.weights}; copy these under another name")
    files = []
    for name in names:
        kind = FORMATS[name]
        LOGGER.info(f"\n{kind.title}: writing {shown(job.file(kind.ending))}")
        files.append(kind.write(job))
        if kind.runs:
            compare_with_pytorch(job, files[-1])
        else:
            LOGGER.warning(f"{files[-1].name} was not compared: {kind.title} does not run on this machine")
    return files
