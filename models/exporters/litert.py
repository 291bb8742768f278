"""TensorFlow Lite by LiteRT's converter, which takes PyTorch's networks as they are, and its quantiser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from models.backends.hush import hushed
from models.backends.mobile import append_notes
from models.backends.tools import need
from models.exporters.converting import converting
from models.exporters.job import ExportJob, Predictor
from models.exporters.programs import without_sizes

LITERT = (
    "it wants an environment of its own: python3 -m venv litert && litert/bin/pip install -r requirements.txt "
    "litert-torch, then litert/bin/python export.py"
)


def export_tflite(job: ExportJob) -> Path:
    """A `.tflite` file, channels first: float32, float16 weights (`half`) or int8 convolutions (`int8`).

    Its facts are in an archive at its end.
    """
    file, settings = job.file(".tflite"), job.settings
    with hushed(settings.verbose):
        litert = need("litert_torch", "--include tflite", LITERT)
    with converting("LiteRT", settings.verbose):
        litert.convert(Predictor(job.model), (without_sizes(job).example(),)).export(str(file))
    if settings.half:
        _rewrite(file, _half)
    elif settings.int8:
        pictures = job.calibration_pictures()
        _rewrite(file, lambda tools, model: _whole(tools, model, pictures))
    append_notes(file, job.facts(dynamic=False))
    return file


def _rewrite(file: Path, change: Callable[[ModuleType, Any], bytes]) -> None:
    """Replace the file by a quantised one."""
    need("ai_edge_quantizer", "--include tflite --half or --int8", LITERT)
    tools = need("ai_edge_quantizer.quantizer", "--include tflite --half or --int8", LITERT)
    with converting("LiteRT's quantiser"):
        content = change(tools, tools.Quantizer(str(file)))
    file.write_bytes(content)


def _half(tools: ModuleType, model: Any) -> bytes:
    """Weights in float16, computed with in float32."""
    kinds = tools.qtyping
    weights = kinds.TensorQuantizationConfig(num_bits=16, dtype=kinds.TensorDataType.FLOAT)
    how = kinds.OpQuantizationConfig(
        weight_tensor_config=weights, compute_precision=kinds.ComputePrecision.FLOAT, explicit_dequantize=True
    )
    for operator in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
        model.update_quantization_recipe(
            ".*", kinds.TFLOperationName(operator), how, tools.algorithm_manager.AlgorithmName.FLOAT_CASTING
        )
    return bytes(model.quantize().quantized_model)


def _whole(tools: ModuleType, model: Any, pictures: list[torch.Tensor]) -> bytes:
    """Convolutions in int8; the head's arithmetic is in pixels and routes are compared, so both stay in floats."""
    model.add_static_config(".*", tools.qtyping.TFLOperationName.CONV_2D, 8, 8)
    samples = {"serving_default": [{"args_0": picture.numpy()} for picture in pictures]}
    ranges = model.calibrate(samples, num_threads=torch.get_num_threads())
    return bytes(model.quantize(ranges).quantized_model)
