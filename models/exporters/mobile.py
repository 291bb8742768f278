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

from models.backends.tools import need
from models.exporters.job import ExportJob, Predictor, write_notes
from models.exporters.programs import exported_program, quiet

NCNN_FILES = (".ncnn.param", ".ncnn.bin")


def export_coreml(job: ExportJob) -> Path:
    """A Core ML package of fixed size; it runs on Apple's machines, and nothing here can run it to compare."""
    tools = need("coremltools", "--include coreml")
    folder, facts = job.file(".mlpackage"), job.facts(dynamic=False)
    # The tracer's graphs fail with numpy 2.4 (apple/coremltools#2633); exported programs do not
    program = exported_program(job, dynamic=False).run_decompositions({})
    precision = tools.precision.FLOAT16 if job.settings.half else tools.precision.FLOAT32
    with quiet():
        model = tools.convert(
            program, minimum_deployment_target=tools.target.iOS16, compute_precision=precision, skip_model_load=True
        )
    model.user_defined_metadata.update(facts.as_strings())
    if folder.exists():
        shutil.rmtree(folder)
    model.save(str(folder))
    return folder


def export_executorch(job: ExportJob) -> Path:
    """A `.pte` program of fixed size for ExecuTorch's CPU kernels (XNNPACK), its facts in a file beside it."""
    install = "pip install executorch"
    exir = need("executorch.exir", "--include executorch", install)
    cpu = need("executorch.backends.xnnpack.partition.xnnpack_partitioner", "--include executorch", install)
    file, program = job.file(".pte"), exported_program(job, dynamic=False)
    with quiet(), torch.no_grad():
        lowered = exir.to_edge_transform_and_lower(program, partitioner=[cpu.XnnpackPartitioner()]).to_executorch()
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
    """A folder for ncnn, made by pnnx from the traced network; its weights are in float16."""
    pnnx = need("pnnx", "--include ncnn", "pip install pnnx ncnn")
    folder = job.file("_ncnn_model")
    with tempfile.TemporaryDirectory() as work, quiet(), torch.no_grad():
        network = Predictor(job.model).float()
        with _inside(work):
            pnnx.export(network, "model.pt", (job.example(),))
        made = [Path(work) / f"model{ending}" for ending in NCNN_FILES]
        if not all(file.is_file() for file in made):
            raise ValueError("pnnx could not convert the network; see its messages above")
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        for file in made:
            shutil.copy(file, folder)
    write_notes(folder, replace(job.facts(dynamic=False), precision="fp16"))
    return folder
