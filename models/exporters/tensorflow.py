"""TensorFlow's formats, by converters that want an environment of their own (see docs/deploy.md)."""

from __future__ import annotations

import copy
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from models.backends.facts import NOTES, Facts, read_facts
from models.backends.mobile import append_notes
from models.backends.runtimes import notes_inside
from models.backends.tensorflow import channels_last, load_tensorflow
from models.backends.tools import need
from models.exporters.converting import cleared, converting
from models.exporters.job import ExportJob, write_notes
from models.exporters.onnx_file import onnx_model
from models.exporters.tfjs import write_graph_model

ONNX2TF = (
    "it wants an environment of its own: python3.12 -m venv tf && tf/bin/pip install -r requirements.txt "
    "'onnx2tf[tensorflow]==2.6.9' onnxslim, then tf/bin/python export.py"
)
COMPILER = "edgetpu_compiler"


def saved_model_for(job: ExportJob, folder: Path) -> Path:
    """Write the network as a SavedModel of fixed size, channels last, by onnx2tf from an ONNX model."""
    settings = replace(job.settings, dynamic=False, simplify=True, nms=None, half=False, int8=False)
    model = onnx_model(replace(job, settings=settings))
    load_tensorflow("TensorFlow's formats", ONNX2TF)
    with tempfile.TemporaryDirectory() as work, converting("onnx2tf", job.settings.verbose):
        converter, onnx = (need(name, "TensorFlow's formats", ONNX2TF) for name in ("onnx2tf", "onnx"))
        source, made = Path(work) / "model.onnx", Path(work) / "made"
        onnx.save(model, str(source))
        converter.convert(
            input_onnx_file_path=str(source),
            output_folder_path=str(made),
            output_signaturedefs=True,
            tflite_backend="tf_converter",
            non_verbose=not job.settings.verbose,
        )
        cleared(folder).mkdir()
        for part in ("saved_model.pb", "fingerprint.pb"):
            shutil.copy(made / part, folder)
        shutil.copytree(made / "variables", folder / "variables")
    write_notes(folder, job.facts(dynamic=False))
    return folder


def export_saved_model(job: ExportJob) -> Path:
    """A SavedModel, channels last."""
    return saved_model_for(job, job.file("_saved_model"))


def _saved_model(job: ExportJob) -> Path:
    """The SavedModel beside the weights, made anew unless this very command has just made it."""
    folder = job.file("_saved_model")
    is_ours = (folder / NOTES).is_file() and notes_inside(folder) == job.facts(dynamic=False)
    is_new = is_ours and folder.stat().st_mtime > job.weights.stat().st_mtime
    return folder if is_new else export_saved_model(job)


def frozen_graph(folder: Path) -> Any:
    """A SavedModel's function with its weights as constants inside, for which TensorFlow has a private module only."""
    tf = load_tensorflow("TensorFlow's formats", ONNX2TF)
    freezer = need("tensorflow.python.framework.convert_to_constants", "TensorFlow's formats", ONNX2TF)
    with converting("TensorFlow"):
        call = tf.saved_model.load(str(folder)).signatures["serving_default"]
        return freezer.convert_variables_to_constants_v2(call)


def export_pb(job: ExportJob) -> Path:
    """A frozen GraphDef, made from the SavedModel, its facts in a file beside it."""
    file = job.file(".pb")
    file.write_bytes(frozen_graph(_saved_model(job)).graph.as_graph_def().SerializeToString())
    write_notes(file, job.facts(dynamic=False))
    return file


def export_tfjs(job: ExportJob) -> Path:
    """A folder for TensorFlow.js, made from the SavedModel: a graph in JSON, weights beside it."""
    frozen, folder = frozen_graph(_saved_model(job)), cleared(job.file("_web_model"))
    facts = job.facts(dynamic=False)
    write_graph_model(folder, frozen, facts.as_dict())
    write_notes(folder, facts)
    return folder


def export_edgetpu(job: ExportJob) -> Path:
    """An int8 `.tflite` file compiled for the Edge TPU by Google's compiler. Raises ValueError where that is missing.

    The file that the compiler was given is kept as `*_edgetpu_int8.tflite`; it runs on CPUs too.
    """
    compiler = shutil.which(COMPILER)
    if compiler is None:
        raise ValueError(
            f"--include edgetpu needs the program {COMPILER}, which is not on PATH: it is a Debian package of "
            "Google's Coral project, for 64-bit Intel machines"
        )
    source, target = job.file("_edgetpu_int8.tflite"), job.file("_edgetpu.tflite")
    facts = whole_numbers(job, source)
    with tempfile.TemporaryDirectory() as work:
        done = subprocess.run([compiler, "-s", "-o", work, str(source)], capture_output=True, text=True, check=False)
        made = Path(work) / f"{source.stem}_edgetpu.tflite"
        if done.returncode or not made.is_file():
            said = (done.stderr or done.stdout).strip().splitlines()
            raise ValueError(f"{COMPILER} failed: {said[-1] if said else f'exit status {done.returncode}'}")
        shutil.copy(made, target)
    append_notes(source, facts)
    append_notes(target, facts)
    return target


def whole_numbers(job: ExportJob, file: Path) -> Facts:
    """Write a `.tflite` file that computes in int8 alone and takes and gives uint8, calibrated; returns its facts.

    One scale holds for all that a tensor of whole numbers contains, so boxes are given in sides of the picture, as
    small as the scores; `unit` in the facts brings them back to pixels.
    """
    tf = load_tensorflow("--include edgetpu", ONNX2TF)
    side = max(job.settings.imgsz)
    model = copy.deepcopy(job.model)
    model.model[-1].stride = model.model[-1].stride / side
    pictures = job.calibration_pictures()
    with tempfile.TemporaryDirectory() as work:
        folder = saved_model_for(replace(job, model=model), Path(work) / "saved_model")
        with converting("TensorFlow Lite", job.settings.verbose):
            lite = tf.lite.TFLiteConverter.from_saved_model(str(folder))
            lite.optimizations = [tf.lite.Optimize.DEFAULT]
            lite.representative_dataset = lambda: ([channels_last(picture)] for picture in pictures)
            lite.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            lite.inference_input_type = lite.inference_output_type = tf.uint8
            file.write_bytes(lite.convert())
    return read_facts(job.facts(dynamic=False).as_dict() | {"precision": "int8", "unit": side}, file)
