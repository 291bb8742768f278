"""The table of formats, and whether one can be had: its flags, its operators, its tools."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.backends.tools import is_there, need
from models.exporters.engines import export_engine, export_openvino
from models.exporters.job import ExportJob, ExportSettings
from models.exporters.litert import LITERT, export_tflite
from models.exporters.mobile import export_coreml, export_executorch, export_ncnn
from models.exporters.onnx_file import export_onnx
from models.exporters.programs import (
    export_package,
    export_program,
    export_safetensors,
    export_torchscript,
    export_yolov5,
)
from models.exporters.tensorflow import ONNX2TF, export_edgetpu, export_pb, export_saved_model, export_tfjs
from utils.base.log import LOGGER
from utils.base.options import nearest

Needs = tuple[tuple[str, str], ...]  # modules, and the command that installs each


@dataclass(frozen=True, slots=True)
class Format:
    """One format.

    title: for people. ending: of the file's name. write: makes it. needs: modules and how to install them, those of
    the comparison too. flags: of `ExportSettings`, those it obeys; "gpu": is made on one, too. routes: takes routing
    attention. runs: can be computed on this kind of machine, so that it is compared.
    """

    title: str
    ending: str
    write: Callable[[ExportJob], Path]
    needs: Needs = ()
    flags: frozenset[str] = frozenset()
    routes: bool = True
    runs: bool = True


def _flags(*names: str) -> frozenset[str]:
    return frozenset(names)


def _by(install: str, *modules: str) -> Needs:
    """Modules that one command installs, with the optional ones that it names besides."""
    return tuple((module, install) for module in modules)


def _pip(*modules: str, optional: str = "") -> Needs:
    """Modules that are installed by their own names, in one command that names the `optional` ones too."""
    return _by(" ".join(("pip install", *modules, *optional.split())), *modules)


_TENSORFLOW = _by(ONNX2TF, "onnx2tf", "tensorflow", "onnxslim", "onnxscript")
_GRAPH = _flags("half", "dynamic", "simplify", "opset", "nms", "gpu")
_INTEL = _flags("cpu_half", "int8", "dynamic", "simplify", "opset", "nms")
_NVIDIA = _flags("half", "dynamic", "opset", "gpu")
_ON_A_MAC = sys.platform == "darwin"

FORMATS: dict[str, Format] = {
    "torchscript": Format(
        "TorchScript", ".torchscript", export_torchscript, (), _flags("half", "dynamic", "optimize", "gpu")
    ),
    "onnx": Format(
        "ONNX", ".onnx", export_onnx, _pip("onnx", "onnxscript", "onnxruntime", optional="onnxslim"), _GRAPH
    ),
    "openvino": Format(
        "OpenVINO",
        "_openvino_model",
        export_openvino,
        _pip("onnx", "onnxscript", "openvino", optional="onnxslim 'nncf>=3.4'"),
        _INTEL,
    ),
    "engine": Format("TensorRT", ".engine", export_engine, _pip("onnx", "onnxscript", "tensorrt"), _NVIDIA),
    "coreml": Format("Core ML", ".mlpackage", export_coreml, _pip("coremltools"), _flags("cpu_half"), runs=_ON_A_MAC),
    "saved_model": Format("TensorFlow SavedModel", "_saved_model", export_saved_model, _TENSORFLOW),
    "pb": Format("TensorFlow GraphDef", ".pb", export_pb, _TENSORFLOW),
    "tflite": Format(
        "TensorFlow Lite",
        ".tflite",
        export_tflite,
        _by(LITERT, "litert_torch", "ai_edge_litert"),
        _flags("cpu_half", "int8"),
    ),
    "edgetpu": Format(
        "Edge TPU", "_edgetpu.tflite", export_edgetpu, _TENSORFLOW, _flags("int8"), routes=False, runs=False
    ),
    "tfjs": Format("TensorFlow.js", "_web_model", export_tfjs, _TENSORFLOW, runs=False),
    "pt2": Format("torch.export", ".pt2", export_program, (), _flags("dynamic", "gpu")),
    "aoti": Format("AOTInductor", "_aoti.pt2", export_package, (), _flags("dynamic", "gpu")),
    "executorch": Format("ExecuTorch", ".pte", export_executorch, _pip("executorch")),
    "ncnn": Format("ncnn", "_ncnn_model", export_ncnn, _pip("pnnx", "ncnn"), _flags("cpu_half"), routes=False),
    "safetensors": Format("safetensors", ".safetensors", export_safetensors, _pip("safetensors"), _flags("cpu_half")),
    "yolov5": Format("YOLOv5 6.1 checkpoint", "_yolov5.pt", export_yolov5, (), _flags("cpu_half")),
}


def check_formats(names: Sequence[str], settings: ExportSettings, routes: bool = False) -> None:
    """Raise ValueError, one line, for the first format that is unknown, cannot do what is asked or lacks its tools.

    `routes`: the network has routing attention. Flags that a format passes over are logged.
    """
    if not names:
        raise ValueError(f"--include names no format; there are {', '.join(FORMATS)}")
    for name in names:
        if name not in FORMATS:
            raise ValueError(
                f"--include {name}: unknown format{nearest(name, FORMATS)}; there are {', '.join(FORMATS)}"
            )
        _check_flags(name, FORMATS[name], settings)
        if routes and not FORMATS[name].routes:
            raise ValueError(
                f"--include {name}: {FORMATS[name].title} has no operators for routing attention (topk, gather); "
                "export to onnx or openvino instead"
            )
    for name in names:
        for module, install in FORMATS[name].needs:
            if not is_there(module):  # importing is left to the exporter: TensorFlow takes seconds
                need(module, f"--include {name}", install)


def _check_flags(name: str, kind: Format, settings: ExportSettings) -> None:
    """Raise ValueError for what a format cannot keep; say what it passes over."""
    on_gpu = settings.device.type != "cpu"
    if on_gpu and "gpu" not in kind.flags:
        raise ValueError(f"--include {name} is made on the CPU; leave --device {settings.device} out")
    if settings.half and not kind.flags & {"cpu_half", "half" if on_gpu else "cpu_half"}:
        where = "needs a GPU: give --device 0" if "half" in kind.flags else "is not offered"
        raise ValueError(f"--half with --include {name} {where}, or choose among {_formats_with('cpu_half')}")
    if settings.int8 and "int8" not in kind.flags:
        raise ValueError(f"--int8 is not offered for {name}; choose among {_formats_with('int8')}")
    for flag in sorted({"dynamic", "simplify", "optimize", "nms"} - kind.flags):
        if getattr(settings, flag):
            LOGGER.warning(f"--{flag} does not concern {name}, which is made without it")


def _formats_with(flag: str) -> str:
    return ", ".join(name for name, kind in FORMATS.items() if flag in kind.flags)
