"""Formats that PyTorch itself writes, and those for phones and small boards that are made from its programs."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from models.backends.metadata import NOTES, keep_metadata
from models.backends.pytorch import TORCHSCRIPT_NOTES
from models.backends.tools import need, silenced
from models.experimental import attempt_load
from models.exporters.job import ExportError, ExportJob, Predictor, cleared, converting, quiet
from utils.base.log import LOGGER
from utils.checkpoints.checkpoint import describe_model
from utils.checkpoints.safetensors_file import save_safetensors

NCNN_FILES = (".ncnn.param", ".ncnn.bin")
LITERT = (
    "it wants an environment of its own: python3 -m venv litert && litert/bin/pip install -r requirements.txt "
    "litert-torch, then litert/bin/python export.py"
)


def exported_program(job: ExportJob, dynamic: bool = True) -> ExportedProgram:
    """The network as a graph of operators; with `dynamic`, sizes are open where the job wants them so."""
    shapes = None
    if dynamic and job.settings.dynamic:
        shapes = {"images": dict.fromkeys((0, 2, 3) if job.has_free_sides(program=True) else (0,), Dim.DYNAMIC)}
    with quiet(), torch.no_grad():
        return torch.export.export(Predictor(job.model), (job.example(),), dynamic_shapes=shapes, strict=False)


def export_torchscript(job: ExportJob) -> Path:
    """A traced network, which returns (predictions, raw maps) as v6.1's files do."""
    file, notes = job.file(".torchscript"), {TORCHSCRIPT_NOTES: job.metadata().as_json()}
    with quiet(), torch.no_grad():
        traced = torch.jit.trace(job.model, job.example(), strict=False, check_trace=False)
        if job.settings.optimize:
            from torch.utils.mobile_optimizer import optimize_for_mobile

            optimize_for_mobile(traced)._save_for_lite_interpreter(str(file), _extra_files=notes)
        else:
            traced.save(str(file), _extra_files=notes)
    return file


def export_program(job: ExportJob) -> Path:
    """A `.pt2` file of `torch.export`."""
    file, program = job.file(".pt2"), exported_program(job)
    with quiet():
        torch.export.save(program, file, extra_files={NOTES: job.metadata(program=True).as_json()})
    return file


def export_package(job: ExportJob) -> Path:
    """Machine code by AOTInductor, for this kind of processor or GPU; needs a C++ compiler here, none where it runs."""
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++", "cl")):
        raise ValueError("aoti compiles C++ and found no compiler: install g++, or use --include pt2")
    import torch._inductor  # brings the compiler, which only this needs

    file, program = job.file("_aoti.pt2"), exported_program(job)
    notes = {"aot_inductor.metadata": job.metadata(program=True).as_strings()}
    with quiet(), torch.no_grad():
        torch._inductor.aoti_compile_and_package(program, package_path=str(file), inductor_configs=notes)
    return file


def export_yolov5(job: ExportJob) -> Path:
    """A checkpoint with a pickled module as v6.1 writes it, for tools that unpickle one.

    The classes have v6.1's paths and attribute names, its head's caches among them, so v6.1's code can take the module
    over. With routing attention the reading program needs this project's `models/`.
    """
    file = job.file("_yolov5.pt")
    model: Any = attempt_load(job.weights, fuse=False)
    head = model.model[-1]
    head.grid, head.anchor_grid = [torch.zeros(1)] * head.nl, [torch.zeros(1)] * head.nl
    for module in model.modules():
        if isinstance(module, nn.Upsample):
            module.recompute_scale_factor = None
    model = model.half() if job.settings.half else model
    content = {"epoch": -1, "best_fitness": None, "model": model, "ema": None, "updates": None, "optimizer": None}
    torch.save({**content, "wandb_id": None, "date": None, "imgsz": model.imgsz}, file)
    kinds, shared = {type(module) for module in model.modules()}, ("models.common", "models.yolo")  # with v6.1
    own = [kind for kind in kinds if kind.__module__.startswith("models.") and kind.__module__ not in shared]
    if own:
        LOGGER.warning(
            f"{file.name} names {', '.join(sorted(kind.__name__ for kind in own))}, which YOLOv5 and the packages made "
            "of it do not have: only a program with this project's models/ on its path can unpickle it; for others "
            "export to onnx"
        )
    return file


def export_safetensors(job: ExportJob) -> Path:
    """Weights that any program can read without running code, and that detect, val, serve, export and train load."""
    file = job.file(".safetensors")
    model: Any = attempt_load(job.weights, fuse=False)
    model = model.half() if job.settings.half else model
    save_safetensors(file, {"epoch": -1, "model": describe_model(model), "ema": None, "imgsz": model.imgsz})
    return file


def export_coreml(job: ExportJob) -> Path:
    """A Core ML package of fixed size, float16 with `half`; it runs on Apple's machines alone.

    Raises ExportError where what was saved does not ask for such images or does not say what it has to.
    """
    with silenced():
        tools = need("coremltools", "--include coreml")
    folder, notes = job.file(".mlpackage"), job.metadata(dynamic=False).as_strings()
    # The tracer's graphs fail with numpy 2.4 (apple/coremltools#2633); exported programs do not
    program = exported_program(job, dynamic=False).run_decompositions({})
    precision = tools.precision.FLOAT16 if job.settings.half else tools.precision.FLOAT32
    with converting("coremltools", job.settings.verbose):
        model = tools.convert(
            program, minimum_deployment_target=tools.target.iOS16, compute_precision=precision, skip_model_load=True
        )
        model.user_defined_metadata.update(notes)
        model.save(str(cleared(folder)))
        saved = tools.models.MLModel(str(folder), skip_model_load=True).get_spec().description
    found = saved.metadata.userDefined
    is_noted = all(found.get(key) == value for key, value in notes.items())
    if not is_noted or list(saved.input[0].type.multiArrayType.shape) != list(job.example().shape):
        raise ExportError(f"{folder.name}: was saved with another input or other metadata than it was made with")
    return folder


def export_executorch(job: ExportJob) -> Path:
    """A `.pte` program of fixed size for ExecuTorch's CPU kernels (XNNPACK), its metadata in a file beside it."""
    install = "pip install executorch"
    with converting("ExecuTorch", job.settings.verbose), torch.no_grad():
        exir = need("executorch.exir", "--include executorch", install)
        cpu = need("executorch.backends.xnnpack.partition.xnnpack_partitioner", "--include executorch", install)
        program = exported_program(job, dynamic=False)
        lowered = exir.to_edge_transform_and_lower(program, partitioner=[cpu.XnnpackPartitioner()]).to_executorch()
    file = job.file(".pte")
    file.write_bytes(lowered.buffer)
    keep_metadata(file, job.metadata(dynamic=False))
    return file


def export_ncnn(job: ExportJob) -> Path:
    """A folder for ncnn, made by pnnx from the traced network, one image at a time; float16 with `half`."""
    pnnx = need("pnnx", "--include ncnn", "pip install pnnx ncnn")
    if job.settings.batch > 1:
        LOGGER.warning("--batch-size does not concern ncnn, which takes one image at a time")
    job = replace(job, settings=replace(job.settings, batch=1, dynamic=False))
    folder = job.file("_ncnn_model")
    with tempfile.TemporaryDirectory() as work, converting("pnnx", job.settings.verbose), torch.no_grad():
        with contextlib.chdir(work):  # it leaves files where it is started
            pnnx.export(Predictor(job.model), "model.pt", (job.example(),), fp16=job.settings.half)
        cleared(folder).mkdir()
        for ending in NCNN_FILES:
            shutil.copy(Path(work) / f"model{ending}", folder)
    keep_metadata(folder, job.metadata())
    return folder


def export_tflite(job: ExportJob) -> Path:
    """A `.tflite` file, channels first: float32, float16 weights (`half`) or int8 convolutions (`int8`).

    Its metadata is in an archive at its end.
    """
    file, settings = job.file(".tflite"), replace(job.settings, dynamic=False)
    with silenced(settings.verbose):
        litert = need("litert_torch", "--include tflite", LITERT)
    with converting("LiteRT", settings.verbose):
        litert.convert(Predictor(job.model), (replace(job, settings=settings).example(),)).export(str(file))
    if settings.half or settings.int8:
        need("ai_edge_quantizer", "--include tflite --half or --int8", LITERT)
        tools = need("ai_edge_quantizer.quantizer", "--include tflite --half or --int8", LITERT)
        images = job.calibration() if settings.int8 else None
        with converting("LiteRT's quantiser"):
            content = _quantised(tools, tools.Quantizer(str(file)), images)
        file.write_bytes(content)
    keep_metadata(file, job.metadata(dynamic=False))
    return file


def _quantised(tools: Any, model: Any, images: list[torch.Tensor] | None) -> bytes:
    """The model with weights in float16, computed with in float32; with `images` its convolutions in int8.

    The head's arithmetic is in pixels and routes are compared, so both stay in floats.
    """
    kinds = tools.qtyping
    if images is not None:
        model.add_static_config(".*", kinds.TFLOperationName.CONV_2D, 8, 8)
        samples = {"serving_default": [{"args_0": image.numpy()} for image in images]}
        ranges = model.calibrate(samples, num_threads=torch.get_num_threads())
        return bytes(model.quantize(ranges).quantized_model)
    weights = kinds.TensorQuantizationConfig(num_bits=16, dtype=kinds.TensorDataType.FLOAT)
    how = kinds.OpQuantizationConfig(
        weight_tensor_config=weights, compute_precision=kinds.ComputePrecision.FLOAT, explicit_dequantize=True
    )
    for operator in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
        model.update_quantization_recipe(
            ".*", kinds.TFLOperationName(operator), how, tools.algorithm_manager.AlgorithmName.FLOAT_CASTING
        )
    return bytes(model.quantize().quantized_model)
