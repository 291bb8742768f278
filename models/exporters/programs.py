"""Formats that PyTorch itself writes: TorchScript, exported programs, compiled packages, pickled checkpoints."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from models.backends.facts import NOTES
from models.backends.pytorch import TORCHSCRIPT_NOTES
from models.experimental import attempt_load
from models.exporters.job import ExportJob, Predictor
from utils.base.log import LOGGER
from utils.checkpoints.checkpoint import describe_model
from utils.checkpoints.safetensors_file import save_safetensors

TALKATIVE = ("torch.onnx", "torch.export", "torch.utils.cpp_extension")  # loggers


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings of TorchScript's age, of shapes that tracing fixes, which is wanted, and of converters at work."""
    loggers = [logging.getLogger(name) for name in TALKATIVE]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning, torch.jit.TracerWarning, UserWarning):
            warnings.filterwarnings("ignore", category=category)
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def exported_program(job: ExportJob, dynamic: bool = True) -> ExportedProgram:
    """The network as a graph of operators; with `dynamic`, sizes are open where the job wants them so."""
    shapes = None
    if dynamic and job.settings.dynamic:
        open_sides = {2: Dim.DYNAMIC, 3: Dim.DYNAMIC} if job.free_sides_in_programs else {}
        shapes = {"images": {0: Dim.DYNAMIC, **open_sides}}
    with quiet(), torch.no_grad():
        return torch.export.export(Predictor(job.model), (job.example(),), dynamic_shapes=shapes, strict=False)


def export_torchscript(job: ExportJob) -> Path:
    """A traced network, which returns (predictions, raw maps) as v6.1's files do."""
    file, facts = job.file(".torchscript"), job.facts()
    with quiet(), torch.no_grad():
        traced = torch.jit.trace(job.model, job.example(), strict=False, check_trace=False)
        notes = {TORCHSCRIPT_NOTES: facts.as_json()}
        if job.settings.optimize:
            from torch.utils.mobile_optimizer import optimize_for_mobile

            optimize_for_mobile(traced)._save_for_lite_interpreter(str(file), _extra_files=notes)
        else:
            traced.save(str(file), _extra_files=notes)
    return file


def export_program(job: ExportJob) -> Path:
    """A `.pt2` file of `torch.export`."""
    file = job.file(".pt2")
    program = exported_program(job)
    with quiet():
        torch.export.save(program, file, extra_files={NOTES: job.facts(program=True).as_json()})
    return file


def export_package(job: ExportJob) -> Path:
    """Machine code by AOTInductor, for this kind of processor or GPU; needs a C++ compiler here, none where it runs."""
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++", "cl")):
        raise ValueError("aoti compiles C++ and found no compiler: install g++, or use --include pt2")
    import torch._inductor  # brings the compiler, which only this needs

    file, program = job.file("_aoti.pt2"), exported_program(job)
    notes = {"aot_inductor.metadata": job.facts(program=True).as_strings()}
    with quiet(), torch.no_grad():
        torch._inductor.aoti_compile_and_package(program, package_path=str(file), inductor_configs=notes)
    return file


def export_yolov5(job: ExportJob) -> Path:
    """A checkpoint with a pickled module as v6.1 writes it, for tools that unpickle one.

    The classes have v6.1's paths and attribute names, its head's caches among them, so v6.1's code can take the module
    over. With routing attention the reading program needs this project's `models/`.
    """
    file = job.file("_yolov5.pt")
    model = attempt_load(job.weights, fuse=False)
    head = model.model[-1]
    head.grid, head.anchor_grid = [torch.zeros(1)] * head.nl, [torch.zeros(1)] * head.nl
    for module in model.modules():
        if isinstance(module, nn.Upsample):
            module.recompute_scale_factor = None
    model = model.half() if job.settings.half else model
    content = {"epoch": -1, "best_fitness": None, "model": model, "ema": None, "updates": None, "optimizer": None}
    torch.save({**content, "wandb_id": None, "date": None, "imgsz": model.imgsz}, file)
    if own := sorted({type(module).__name__ for module in model.modules() if _is_ours_alone(type(module))}):
        LOGGER.warning(
            f"{file.name} names {', '.join(own)}, which YOLOv5 and the packages made of it do not have: only a program "
            "with this project's models/ on its path can unpickle it; for others export to onnx"
        )
    return file


def export_safetensors(job: ExportJob) -> Path:
    """Weights that any program can read without running code, and that detect, val, serve, export and train load."""
    file = job.file(".safetensors")
    model = attempt_load(job.weights, fuse=False)
    model = model.half() if job.settings.half else model
    save_safetensors(file, {"epoch": -1, "model": describe_model(model), "ema": None, "imgsz": model.imgsz})
    return file


def _is_ours_alone(kind: type) -> bool:
    """Whether a class is neither PyTorch's nor one that v6.1 has under the same path."""
    return kind.__module__.split(".")[0] == "models" and kind.__module__ not in ("models.common", "models.yolo")


def without_sizes(job: ExportJob) -> ExportJob:
    """The same job with every size fixed, for formats that know no others."""
    return replace(job, settings=replace(job.settings, dynamic=False))
