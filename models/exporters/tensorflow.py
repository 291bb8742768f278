"""TensorFlow's formats, by converters that want an environment of their own (see docs/deploy.md)."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from models.backends.metadata import NOTES, Metadata, keep_metadata, kept_metadata
from models.backends.mobile import channels_last, load_tensorflow
from models.backends.tools import need
from models.exporters.job import ExportJob, cleared, converting
from models.exporters.onnx_file import onnx_model

ONNX2TF = (
    "it wants an environment of its own: python3.12 -m venv tf && tf/bin/pip install -r requirements.txt "
    "'onnx2tf[tensorflow]==2.6.9' onnxslim, then tf/bin/python export.py"
)
COMPILER = "edgetpu_compiler"
TFJS_WEIGHTS = "group1-shard1of1.bin"
TFJS_KINDS = {"float32": "float32", "float64": "float32", "int32": "int32", "int64": "int32", "bool": "bool"}


def export_saved_model(job: ExportJob, folder: Path | None = None) -> Path:
    """A SavedModel of fixed size, channels last, by onnx2tf from an ONNX model."""
    folder = folder or job.file("_saved_model")
    settings = replace(job.settings, dynamic=False, simplify=True, nms=False, half=False, int8=False)
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
    keep_metadata(folder, job.metadata(dynamic=False))
    return folder


def _frozen_graph(job: ExportJob) -> Any:
    """The SavedModel's function with its weights as constants inside, for which TensorFlow has a private module only.

    The SavedModel is made anew unless this very command has just made it.
    """
    folder = job.file("_saved_model")
    is_ours = (folder / NOTES).is_file() and kept_metadata(folder) == job.metadata(dynamic=False)
    if not is_ours or folder.stat().st_mtime <= job.weights.stat().st_mtime:
        export_saved_model(job)
    tf = load_tensorflow("TensorFlow's formats", ONNX2TF)
    freezer = need("tensorflow.python.framework.convert_to_constants", "TensorFlow's formats", ONNX2TF)
    with converting("TensorFlow"):
        call = tf.saved_model.load(str(folder)).signatures["serving_default"]
        return freezer.convert_variables_to_constants_v2(call)


def export_pb(job: ExportJob) -> Path:
    """A frozen GraphDef, made from the SavedModel, its metadata in a file beside it."""
    file = job.file(".pb")
    file.write_bytes(_frozen_graph(job).graph.as_graph_def().SerializeToString())
    keep_metadata(file, job.metadata(dynamic=False))
    return file


def export_tfjs(job: ExportJob) -> Path:
    """A folder for TensorFlow.js, made from the SavedModel: a graph in JSON, its constants' numbers in one binary file.

    Google's own converter (tensorflowjs 4.22) cannot be installed beside a TensorFlow younger than 2.19; the format,
    all that a browser reads, is small. Raises ValueError for constants that it has no kind of number for.
    """
    frozen, folder, metadata = _frozen_graph(job), cleared(job.file("_web_model")), job.metadata(dynamic=False)
    tf, proto = need("tensorflow", "--include tfjs"), need("google.protobuf.json_format", "--include tfjs")
    graph = frozen.graph.as_graph_def()
    weights, numbers = [], []
    for node in graph.node:
        if node.op != "Const":
            continue
        value = tf.make_ndarray(node.attr["value"].tensor)
        kind = TFJS_KINDS.get(value.dtype.name)
        if kind is None:
            raise ValueError(f"TensorFlow.js has no {value.dtype.name}, which the constant {node.name} is of")
        weights.append({"name": node.name, "shape": list(value.shape), "dtype": kind})
        numbers.append(np.ascontiguousarray(value.astype(kind)).tobytes())
        for field, _ in node.attr["value"].tensor.ListFields():  # it keeps its kind and shape
            if field.name not in ("dtype", "tensor_shape"):
                node.attr["value"].tensor.ClearField(field.name)
    ends = {}
    for key, tensors in (("inputs", frozen.inputs), ("outputs", frozen.outputs)):
        shapes = {one.name: {"dim": [{"size": str(side)} for side in one.shape]} for one in tensors}
        ends[key] = {name: {"name": name, "dtype": "DT_FLOAT", "tensorShape": shape} for name, shape in shapes.items()}
    content = {
        "format": "graph-model",
        "generatedBy": tf.__version__,
        "convertedBy": "YOLOv5-BiFormer",
        "signature": ends,
        "userDefinedMetadata": metadata.as_dict(),
        "modelTopology": proto.MessageToDict(graph),
        "weightsManifest": [{"paths": [TFJS_WEIGHTS], "weights": weights}],
    }
    folder.mkdir()
    (folder / "model.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    (folder / TFJS_WEIGHTS).write_bytes(b"".join(numbers))
    keep_metadata(folder, metadata)
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
    metadata = whole_numbers(job, source)
    with tempfile.TemporaryDirectory() as work:
        done = subprocess.run([compiler, "-s", "-o", work, str(source)], capture_output=True, text=True, check=False)
        made = Path(work) / f"{source.stem}_edgetpu.tflite"
        if done.returncode or not made.is_file():
            said = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
            raise ValueError(f"{COMPILER} failed: {said[-1]}")
        shutil.copy(made, target)
    keep_metadata(source, metadata)
    keep_metadata(target, metadata)
    return target


def whole_numbers(job: ExportJob, file: Path) -> Metadata:
    """Write a `.tflite` file that computes in int8 alone and takes and gives uint8, calibrated; returns its metadata.

    One scale holds for all that a tensor of whole numbers contains, so boxes are given in sides of the image, as small
    as the scores; `unit` in the metadata brings them back to pixels.
    """
    tf, side = load_tensorflow("--include edgetpu", ONNX2TF), max(job.settings.imgsz)
    model: Any = copy.deepcopy(job.model)
    model.model[-1].stride = model.model[-1].stride / side
    images = job.calibration()
    with tempfile.TemporaryDirectory() as work:
        folder = export_saved_model(replace(job, model=model), Path(work) / "saved_model")
        with converting("TensorFlow Lite", job.settings.verbose):
            lite = tf.lite.TFLiteConverter.from_saved_model(str(folder))
            lite.optimizations = [tf.lite.Optimize.DEFAULT]
            lite.representative_dataset = lambda: ([channels_last(image)] for image in images)
            lite.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            lite.inference_input_type = lite.inference_output_type = tf.uint8
            file.write_bytes(lite.convert())
    return replace(job.metadata(dynamic=False), precision="int8", unit=side)
