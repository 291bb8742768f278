"""Formats for phones and small boards: Core ML, ExecuTorch, ncnn."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from models.backends.hush import hushed
from models.backends.tools import need
from models.exporters.converting import cleared, converting
from models.exporters.job import ExportError, ExportJob, Predictor, write_notes
from models.exporters.programs import exported_program
from utils.base.log import LOGGER

NCNN_FILES = (".ncnn.param", ".ncnn.bin")


def export_coreml(job: ExportJob) -> Path:
    """A Core ML package of fixed size, float16 with `half`; it runs on Apple's machines alone.

    Raises ExportError where what was saved does not ask for such pictures or does not tell what it has to.
    """
    with hushed():
        tools = need("coremltools", "--include coreml")
    folder, facts = job.file(".mlpackage"), job.facts(dynamic=False)
    # The tracer's graphs fail with numpy 2.4 (apple/coremltools#2633); exported programs do not
    program = exported_program(job, dynamic=False).run_decompositions({})
    precision = tools.precision.FLOAT16 if job.settings.half else tools.precision.FLOAT32
    with converting("coremltools", job.settings.verbose):
        model = tools.convert(
            program, minimum_deployment_target=tools.target.iOS16, compute_precision=precision, skip_model_load=True
        )
        model.user_defined_metadata.update(facts.as_strings())
        model.save(str(cleared(folder)))
        saved = tools.models.MLModel(str(folder), skip_model_load=True).get_spec().description
    entry, notes = saved.input[0], saved.metadata.userDefined
    is_told = all(notes.get(key) == value for key, value in facts.as_strings().items())
    if not is_told or list(entry.type.multiArrayType.shape) != list(job.example().shape):
        raise ExportError(f"{folder.name}: was saved with another input or other metadata than it was made with")
    return folder


def export_executorch(job: ExportJob) -> Path:
    """A `.pte` program of fixed size for ExecuTorch's CPU kernels (XNNPACK), its facts in a file beside it."""
    install = "pip install executorch"
    with converting("ExecuTorch", job.settings.verbose):
        exir = need("executorch.exir", "--include executorch", install)
        cpu = need("executorch.backends.xnnpack.partition.xnnpack_partitioner", "--include executorch", install)
        program = exported_program(job, dynamic=False)
        with torch.no_grad():
            lowered = exir.to_edge_transform_and_lower(program, partitioner=[cpu.XnnpackPartitioner()]).to_executorch()
    file = job.file(".pte")
    file.write_bytes(lowered.buffer)
    write_notes(file, job.facts(dynamic=False))
    return file


@contextlib.contextmanager
def _inside(folder: str) -> Iterator[None]:
    """Work in another folder for a while: converters leave files where they are started."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def export_ncnn(job: ExportJob) -> Path:
    """A folder for ncnn, made by pnnx from the traced network, one picture at a time; float16 with `half`."""
    pnnx = need("pnnx", "--include ncnn", "pip install pnnx ncnn")
    if job.settings.batch > 1:
        LOGGER.warning("--batch-size does not concern ncnn, which takes one picture at a time")
    job = replace(job, settings=replace(job.settings, batch=1, dynamic=False))
    folder = job.file("_ncnn_model")
    with tempfile.TemporaryDirectory() as work, converting("pnnx", job.settings.verbose), torch.no_grad():
        with _inside(work):
            pnnx.export(Predictor(job.model), "model.pt", (job.example(),), fp16=job.settings.half)
        cleared(folder).mkdir()
        for ending in NCNN_FILES:
            shutil.copy(Path(work) / f"model{ending}", folder)
    write_notes(folder, job.facts())
    return folder
