"""ONNX: the network, slimmed on request, with what to know about it inside, and suppression if wanted."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim

from models.backends.tools import need
from models.exporters.job import DEFAULT_OPSET, ExportJob, Predictor
from models.exporters.nms_graph import with_nms
from models.exporters.programs import quiet
from utils.base.log import LOGGER

ENTRY, EXIT = "images", "output"  # the names v6.1 gives
LEAST_OPSET = 12
LEAST_NMS_OPSET = 13  # from here on the axes of Split, Squeeze and Unsqueeze are inputs


def export_onnx(job: ExportJob) -> Path:
    """One `.onnx` file, weights inside."""
    file = job.file(".onnx")
    need("onnx", "--include onnx").save(onnx_model(job), str(file))
    return file


def onnx_model(job: ExportJob) -> Any:
    """The checked ONNX model with metadata. Raises ValueError for an opset that cannot be had."""
    onnx, settings = need("onnx", "--include onnx"), job.settings
    if settings.nms and settings.opset < LEAST_NMS_OPSET:
        raise ValueError(f"--nms needs --opset {LEAST_NMS_OPSET} or more, not {settings.opset}")
    if settings.opset < LEAST_OPSET:
        raise ValueError(f"--opset {settings.opset} is too old; give {LEAST_OPSET} or more, {DEFAULT_OPSET} by default")
    with quiet(), torch.no_grad():
        model = _exported(job) if settings.opset >= DEFAULT_OPSET else _traced(job)
    _check_opset(model, settings.opset)
    if settings.simplify:
        model = need("onnxslim", "--simplify").slim(model)
    if settings.nms:
        model = with_nms(model, settings.nms)
    _name_open_sides(model)
    del model.metadata_props[:]
    for key, value in job.facts(nms=True).as_strings().items():
        pair = model.metadata_props.add()
        pair.key, pair.value = key, value
    model.producer_name = "yolov5"
    onnx.checker.check_model(model)
    return model


def _exported(job: ExportJob) -> Any:
    """By `torch.export`."""
    need("onnxscript", "--include onnx")
    shapes = None
    if job.settings.dynamic:
        shapes = ({0: Dim.DYNAMIC, **({2: Dim.DYNAMIC, 3: Dim.DYNAMIC} if job.free_sides else {})},)
    try:
        program = torch.onnx.export(
            Predictor(job.model),
            (job.example(),),
            dynamo=True,
            dynamic_shapes=shapes,
            opset_version=job.settings.opset,
            input_names=[ENTRY],
            output_names=[EXIT],
            verbose=job.settings.verbose,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ValueError(f"PyTorch's ONNX exporter gave up ({_first_line(error)}); try --opset 17") from error
    return program.model_proto


def _traced(job: ExportJob) -> Any:
    """By the older exporter, which alone writes opsets below 18."""
    axes = None
    if job.settings.dynamic:
        sides = {2: "height", 3: "width"} if job.free_sides else {}
        axes = {ENTRY: {0: "batch", **sides}, EXIT: {0: "batch", **({1: "candidates"} if sides else {})}}
    buffer = io.BytesIO()
    try:
        torch.onnx.export(
            Predictor(job.model),
            (job.example(),),
            buffer,
            dynamo=False,
            opset_version=job.settings.opset,
            input_names=[ENTRY],
            output_names=[EXIT],
            dynamic_axes=axes,
            verbose=job.settings.verbose,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ValueError(
            f"--opset {job.settings.opset} cannot hold this network ({_first_line(error)}); try --opset {DEFAULT_OPSET}"
        ) from error
    return need("onnx", "--include onnx").load_from_string(buffer.getvalue())


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:120]


def _check_opset(model: Any, wanted: int) -> None:
    """Raise ValueError if the exporter quietly wrote another opset than was asked for."""
    found = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if found != wanted:
        raise ValueError(f"--opset {wanted} cannot be written, the exporter made {found}; leave --opset out")
    LOGGER.info(f"ONNX opset {found}")


def _name_open_sides(model: Any) -> None:
    """Give the open sides of input and outputs names that people know."""
    for value, names in [(model.graph.input[0], ("batch", "", "height", "width"))] + [
        (output, ("batch", "candidates", "")) for output in model.graph.output
    ]:
        for side, name in zip(value.type.tensor_type.shape.dim, names, strict=True):
            if name and not side.dim_value:
                side.dim_param = name
