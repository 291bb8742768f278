"""Trained detectors as files for other programs: a table of formats, and the one way through all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.backends.tools import need
from models.exporters.compare import compare
from models.exporters.engines import export_engine, export_openvino
from models.exporters.job import DEFAULT_OPSET, ExportError, ExportJob, ExportSettings, NmsSettings
from models.exporters.mobile import export_coreml, export_executorch, export_ncnn
from models.exporters.onnx_file import export_onnx
from models.exporters.programs import export_package, export_program, export_torchscript, export_yolov5
from models.exporters.tensorflow import (
    LITERT,
    ONNX2TF,
    export_edgetpu,
    export_pb,
    export_saved_model,
    export_tfjs,
    export_tflite,
)
from utils.log import LOGGER
from utils.options import nearest
from utils.paths import shown

__all__ = [
    "DEFAULT_OPSET",
    "FORMATS",
    "ExportError",
    "ExportJob",
    "ExportSettings",
    "Format",
    "NmsSettings",
    "check_formats",
    "export",
]

_ONNX = (("onnx", "pip install onnx"), ("onnxscript", "pip install onnxscript"))
_RUNTIME = ("onnxruntime", "pip install onnxruntime")
_OPENVINO = ("openvino", "pip install openvino")
_TENSORRT = ("tensorrt", "pip install tensorrt")


Writer = Callable[[ExportJob], Path]


@dataclass(frozen=True, slots=True)
class Format:
    """One format.

    title: for people. ending: of the file's name. write: makes it. needs: modules and how to install them, those of
    the comparison too. flags: of `ExportSettings`, those it obeys. routes: takes routing attention. runs: can be
    computed on this kind of machine, so that it is compared.
    """

    title: str
    ending: str
    write: Callable[[ExportJob], Path]
    needs: tuple[tuple[str, str], ...] = ()
    flags: frozenset[str] = frozenset()
    routes: bool = True
    runs: bool = True


def _format(
    title: str, ending: str, write: Callable[[ExportJob], Path], *needs: tuple[str, str], **more: object
) -> Format:
    flags = frozenset(str(more.pop("flags", "")).split())
    return Format(title, ending, write, needs, flags, **more)


_EXECUTORCH = ("executorch", "pip install executorch")
FORMATS: dict[str, Format] = {
    "torchscript": _format("TorchScript", ".torchscript", export_torchscript, flags="half dynamic optimize gpu"),
    "onnx": _format("ONNX", ".onnx", export_onnx, *_ONNX, _RUNTIME, flags="half dynamic simplify opset nms gpu"),
    "openvino": _format(
        "OpenVINO",
        "_openvino_model",
        export_openvino,
        *_ONNX,
        _OPENVINO,
        flags="cpu_half int8 dynamic simplify opset nms",
    ),
    "engine": _format(
        "TensorRT",
        ".engine",
        export_engine,
        *_ONNX,
        ("tensorrt", "pip install tensorrt"),
        flags="half dynamic opset gpu",
    ),
    "coreml": _format(
        "Core ML", ".mlpackage", export_coreml, ("coremltools", "pip install coremltools"), flags="cpu_half", runs=False
    ),
    "saved_model": _format("TensorFlow SavedModel", "_saved_model", export_saved_model, ("onnx2tf", ONNX2TF), *_ONNX),
    "pb": _format("TensorFlow GraphDef", ".pb", export_pb, ("onnx2tf", ONNX2TF), *_ONNX, runs=False),
    "tflite": _format(
        "TensorFlow Lite", ".tflite", export_tflite, ("litert_torch", LITERT), ("ai_edge_litert", LITERT)
    ),
    "edgetpu": _format(
        "Edge TPU", "_edgetpu.tflite", export_edgetpu, ("onnx2tf", ONNX2TF), *_ONNX, flags="int8", runs=False
    ),
    "tfjs": _format("TensorFlow.js", "_web_model", export_tfjs, ("onnx2tf", ONNX2TF), *_ONNX, runs=False),
    "pt2": _format("torch.export", ".pt2", export_program, flags="dynamic gpu"),
    "aoti": _format("AOTInductor", "_aoti.pt2", export_package, flags="dynamic gpu"),
    "executorch": _format("ExecuTorch", ".pte", export_executorch, _EXECUTORCH),
    "ncnn": _format(
        "ncnn", "_ncnn_model", export_ncnn, ("pnnx", "pip install pnnx"), ("ncnn", "pip install ncnn"), routes=False
    ),
    "yolov5": _format("YOLOv5 6.1 checkpoint", "_yolov5.pt", export_yolov5, flags="cpu_half"),
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
            need(module, f"--include {name}", install)


def _check_flags(name: str, kind: Format, settings: ExportSettings) -> None:
    on_gpu = settings.device.type != "cpu"
    if on_gpu and "gpu" not in kind.flags:
        raise ValueError(f"--include {name} is made on the CPU; leave --device {settings.device} out")
    if settings.half and "cpu_half" not in kind.flags and not (on_gpu and "half" in kind.flags):
        halves = ", ".join(other for other, one in FORMATS.items() if "cpu_half" in one.flags)
        where = "needs a GPU: give --device 0" if "half" in kind.flags else "is not offered"
        raise ValueError(f"--half with --include {name} {where}, or choose among {halves}")
    if settings.int8 and "int8" not in kind.flags:
        whole = ", ".join(other for other, one in FORMATS.items() if "int8" in one.flags)
        raise ValueError(f"--int8 is not offered for {name}; choose among {whole}")
    for flag in ("dynamic", "simplify", "optimize", "nms"):
        if getattr(settings, flag) and flag not in kind.flags:
            LOGGER.warning(f"--{flag} does not concern {name}, which is made without it")


def export(job: ExportJob, names: Sequence[str]) -> list[Path]:
    """Write the formats named, each loaded again in its own runtime and compared; returns the files.

    Raises ValueError as `check_formats` does, before anything is written, and ExportError for a file that differs.
    """
    names = list(dict.fromkeys(names))
    check_formats(names, job.settings, job.routes)
    if job.settings.dynamic and job.routes:
        LOGGER.info("--dynamic leaves the number of pictures open, not their size: routing attention cuts by it")
    files = []
    for name in names:
        kind = FORMATS[name]
        LOGGER.info(f"\n{kind.title}: writing {shown(job.file(kind.ending))}")
        files.append(kind.write(job))
        if kind.runs:
            compare(job, files[-1])
        else:
            LOGGER.warning(f"{files[-1].name} was not compared: {kind.title} does not run on this machine")
    return files
