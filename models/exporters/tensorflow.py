"""TensorFlow's formats, by converters that want an environment of their own (see docs/deploy.md)."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from models.backends.facts import NOTES
from models.backends.tools import need
from models.exporters.job import ExportJob, Predictor, write_notes
from models.exporters.onnx_file import onnx_model
from models.exporters.programs import quiet, without_sizes

LITERT = "make an environment for it: python -m venv tf && tf/bin/pip install -r requirements.txt litert-torch"
ONNX2TF = (
    "make an environment for it: python3.11 -m venv tf && tf/bin/pip install -r requirements.txt "
    "onnx onnxscript onnxslim onnx2tf==1.29.24 tensorflow==2.19.* tf_keras ai-edge-litert"
)
SAMPLES = "calibration_image_sample_data_20x128x128x3_float32.npy"  # onnx2tf would download it


def export_tflite(job: ExportJob) -> Path:
    """A `.tflite` file in float32 by LiteRT's converter, channels first, facts in an archive at its end."""
    litert = need("litert_torch", "--include tflite", LITERT)
    file, fixed = job.file(".tflite"), without_sizes(job)
    with quiet():
        litert.convert(Predictor(job.model), (fixed.example(),)).export(str(file))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(NOTES, job.facts(dynamic=False).as_json())
    return file


def export_saved_model(job: ExportJob) -> Path:
    """A SavedModel by onnx2tf from an ONNX model of fixed size; channels last."""
    converter = need("onnx2tf", "--include saved_model", ONNX2TF)
    folder, fixed = job.file("_saved_model"), without_sizes(job)
    fixed = replace(fixed, settings=replace(fixed.settings, simplify=True, nms=None, half=False, int8=False))
    with tempfile.TemporaryDirectory() as work:
        source = Path(work) / "model.onnx"
        need("onnx", "--include saved_model").save(onnx_model(fixed), str(source))
        samples = np.random.default_rng(0).random((20, 128, 128, 3), dtype=np.float32)
        np.save(Path.cwd() / SAMPLES, samples)
        try:
            if folder.exists():
                shutil.rmtree(folder)
            converter.convert(
                input_onnx_file_path=str(source),
                output_folder_path=str(folder),
                output_signaturedefs=True,
                output_integer_quantized_tflite=job.settings.int8,
                non_verbose=not job.settings.verbose,
            )
        finally:
            (Path.cwd() / SAMPLES).unlink(missing_ok=True)
    write_notes(folder, job.facts(dynamic=False))
    return folder


def export_pb(job: ExportJob) -> Path:
    """A frozen GraphDef, made from the SavedModel."""
    tf = need("tensorflow", "--include pb", ONNX2TF)
    freezer = need("tensorflow.python.framework.convert_to_constants", "--include pb", ONNX2TF)
    folder, file = export_saved_model(job), job.file(".pb")
    call = tf.saved_model.load(str(folder)).signatures["serving_default"]
    frozen = freezer.convert_variables_to_constants_v2(call)
    tf.io.write_graph(frozen.graph.as_graph_def(), str(file.parent), file.name, as_text=False)
    write_notes(file, job.facts(dynamic=False))
    return file


def export_edgetpu(job: ExportJob) -> Path:
    """An int8 `.tflite` file compiled for the Edge TPU by Google's compiler."""
    compiler = shutil.which("edgetpu_compiler")
    if compiler is None:
        raise ValueError(
            "--include edgetpu needs edgetpu_compiler (Debian packages of Google's Coral project), which is not on PATH"
        )
    folder = export_saved_model(replace(job, settings=replace(job.settings, int8=True)))
    source = next(iter(sorted(folder.glob("*_full_integer_quant.tflite"))), None)
    if source is None:
        raise ValueError("onnx2tf wrote no file of whole numbers; see its messages above")
    target = job.file("_edgetpu.tflite")
    subprocess.run([compiler, "-s", "-o", str(folder), str(source)], check=True)
    shutil.copy(folder / f"{source.stem}_edgetpu.tflite", target)
    return target


def export_tfjs(job: ExportJob) -> Path:
    """A folder for TensorFlow.js, made from the SavedModel."""
    converter = shutil.which("tensorflowjs_converter")
    if converter is None:
        raise ValueError(f"--include tfjs needs tensorflowjs: {ONNX2TF} tensorflowjs")
    source, folder = export_saved_model(job), job.file("_web_model")
    arguments = ["--input_format=tf_saved_model", str(source), str(folder)]
    subprocess.run([converter, *arguments], check=True)
    write_notes(folder, job.facts(dynamic=False))
    return folder
