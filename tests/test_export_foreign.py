"""Formats whose tools are not PyTorch's: each held against PyTorch where its tools are there, else skipped by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

import detect
import export
import val
from models.backends import DetectMultiBackend
from models.backends.metadata import NOTES, Metadata, keep_metadata, kept_metadata
from models.backends.tools import is_there, silenced
from models.exporters import FORMATS, ExportError, compare, onnx_file
from models.exporters.job import ExportJob, ExportSettings, converting
from models.exporters.programs import LITERT
from models.exporters.tensorflow import COMPILER, ONNX2TF
from tests.known_detector import known_model
from tests.lively import NAMES, images, write_lively
from tests.trained import shared_folder, trained_weights
from utils.base.paths import ROOT

CONFIGS = {"plain": "yolov5n.yaml", "routed": "yolov5n_BiFormer.yaml"}
SIZE = 128
MOBILE = ("executorch", "coreml", "ncnn", "tflite")
TENSORFLOW = ("saved_model", "pb", "tfjs")
FOREIGN = (*MOBILE, *TENSORFLOW, "edgetpu")
MODULES = {module for name in FOREIGN for module in FORMATS[name].modules}


def skip_without(name: str) -> None:
    missing = [module for module in FORMATS[name].modules if not is_there(module)]
    if missing:
        pytest.skip(f"{FORMATS[name].title} needs {missing[0]}, which is not installed: {FORMATS[name].install}")


@pytest.fixture(scope="module", params=CONFIGS)
def weights(request, tmp_path_factory):
    return write_lively(tmp_path_factory.mktemp(request.param) / "best.pt", CONFIGS[request.param])


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_lively(tmp_path_factory.mktemp("plain") / "best.pt", CONFIGS["plain"])


@pytest.fixture(scope="module")
def tensorflow_files(weights):
    """All that comes from one conversion to TensorFlow."""
    for name in TENSORFLOW:
        skip_without(name)
    return dict(zip(TENSORFLOW, export.run(weights=weights, include=list(TENSORFLOW), imgsz=SIZE), strict=True))


def agrees(weights: Path, compute: object, box: float = 0.05, score: float = 1e-3) -> bool:
    """Whether something that takes images finds what the network finds."""
    batch = images(SIZE, SIZE)[:3]  # more than the files take at a time
    with torch.no_grad():
        expected, found = DetectMultiBackend(weights)(batch), compute(batch)
    sure = expected[..., 4] > 0.25
    assert sure.sum() > 10 and found.shape == expected.shape
    scores = (expected[..., 4:] - found[..., 4:]).abs().max()
    larger = (expected[sure][:, 2:4].amax(1, keepdim=True) / 64).clamp(min=1)  # than boxes that `box` is meant for
    return bool(((expected[sure] - found[sure])[:, :4].abs() / larger).max() < 2 * box and scores < score)


# ---------------------------------------------------------------------------------------------------- tools not there
@pytest.mark.parametrize("name", FOREIGN)
def test_tools_that_are_missing_are_one_line_with_the_remedy(plain, name, monkeypatch):
    for module in MODULES:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=f"--include {name} needs the package .*pip install") as caught:
        export.run(weights=plain, include=name, imgsz=64)
    told = str(caught.value)
    assert "\n" not in told and FORMATS[name].install in told
    assert set(os.listdir(plain.parent)) == {"best.pt"}


@pytest.mark.parametrize("remedy", [LITERT, ONNX2TF])
def test_remedies_stand_in_the_documentation(remedy):
    """The commands of the message are those that were tried, whatever the line breaks."""
    text = " ".join((ROOT / "docs/deploy.md").read_text(encoding="utf-8").split())
    command = remedy.partition(": ")[2].partition(", then ")[0]
    for part in command.split(" && "):
        assert part in text


@pytest.mark.parametrize("name", ["ncnn", "edgetpu"])
def test_formats_without_operators_for_routing_attention(tmp_path, name):
    routed = write_lively(tmp_path / "best.pt", CONFIGS["routed"])
    with pytest.raises(ValueError, match="has no operators for routing attention") as caught:
        export.run(weights=routed, include=name, imgsz=64)
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------------------------- each format
@pytest.mark.parametrize("name", ["executorch", "ncnn", "tflite"])
def test_runs_here_and_agrees(weights, name, capfd):
    skip_without(name)
    if name == "ncnn" and "routed" in weights.parent.name:
        pytest.skip("ncnn takes no routing attention: test_formats_without_operators_for_routing_attention")
    (file,) = export.run(weights=weights, include=name, imgsz=SIZE)
    told = capfd.readouterr()
    assert "next to PyTorch" in told.err and "cpuinfo" not in told.err and "pass_level" not in told.out
    model = DetectMultiBackend(file, trust=True)
    assert (model.names, model.stride, model.shape, model.metadata.precision) == (NAMES, 32, (SIZE, SIZE), "fp32")
    assert agrees(weights, model)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", ["executorch", "ncnn", "tflite", "saved_model", "pb"])
def test_trained_weights_agree(name, config, tmp_path, tmp_path_factory, capfd):
    skip_without(name)
    if name == "ncnn" and config == "routed":
        pytest.skip("ncnn takes no routing attention: test_formats_without_operators_for_routing_attention")
    best, _ = trained_weights(CONFIGS[config], shared_folder(tmp_path_factory))
    weights = Path(shutil.copy(best, tmp_path / "best.pt"))
    (file,) = export.run(weights=weights, include=name, imgsz=64)  # which compares, or raises
    model, batch = DetectMultiBackend(file, trust=True), images(64, 64)
    assert model.names == ["red", "blue"] and "next to PyTorch (at most 0.05 pixels" in capfd.readouterr().err
    with torch.no_grad():
        assert compare.difference(DetectMultiBackend(weights)(batch), model(batch), "").fits(compare.TOLERANCES["fp32"])


@pytest.mark.parametrize("name", ["saved_model", "pb"])
def test_tensorflow_agrees(weights, tensorflow_files, name):
    model = DetectMultiBackend(tensorflow_files[name], trust=True)
    assert (model.names, model.stride, model.shape) == (NAMES, 32, (SIZE, SIZE))
    assert agrees(weights, model)
    folder, graph = (tensorflow_files[one] for one in ("saved_model", "pb"))  # of one conversion
    assert folder.stat().st_mtime <= graph.stat().st_mtime
    assert json.loads((folder / NOTES).read_text()) == json.loads(Path(f"{graph}.json").read_text())


def run_in_node(folder: Path, batch: torch.Tensor, work: Path) -> torch.Tensor:
    """Images (B, 3, h, w), one after the other, through TensorFlow.js on its plain JavaScript processor."""
    given, found = work / "given.bin", work / "found.bin"
    batch.permute(0, 2, 3, 1).contiguous().numpy().tofile(given)
    sides = map(str, batch.shape[2:])
    subprocess.run(["node", str(Path(__file__).with_name("web_model.cjs")), folder, given, found, *sides], check=True)
    return torch.from_numpy(np.fromfile(found, np.float32)).view(len(batch), -1, 5 + len(NAMES))


def test_tfjs_in_node_agrees(weights, tensorflow_files, tmp_path):
    if shutil.which("node") is None:
        pytest.skip("TensorFlow.js runs in node, which is not installed")
    if subprocess.run(["node", "-e", "require('@tensorflow/tfjs')"], capture_output=True, check=False).returncode:
        pytest.skip("node has no @tensorflow/tfjs: npm install @tensorflow/tfjs, and NODE_PATH=.../node_modules")
    folder = tensorflow_files["tfjs"]
    content = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    assert content["format"] == "graph-model" and content["userDefinedMetadata"]["names"] == NAMES
    assert agrees(weights, lambda batch: run_in_node(folder, batch, tmp_path))


def test_coreml_computes_the_same(weights):
    """Only macOS runs it; its operators, read back from the package, are computed by PyTorch."""
    skip_without("coreml")
    from tests.mil import run_package

    (folder,) = export.run(weights=weights, include="coreml", imgsz=SIZE)
    assert agrees(weights, lambda batch: torch.cat([run_package(folder, image[None]) for image in batch]))
    (half,) = export.run(weights=weights, include="coreml", imgsz=SIZE, half=True)
    assert sum(file.stat().st_size for file in half.rglob("*.bin")) < 0.6 * weights.stat().st_size
    if sys.platform != "darwin":
        with pytest.raises(ValueError, match="Core ML models run on macOS only"):
            DetectMultiBackend(half)


@pytest.mark.parametrize("name", ["ncnn", "tflite"])
def test_half(plain, name):
    skip_without(name)
    (file,) = export.run(weights=plain, include=name, imgsz=SIZE, half=True)
    parts = [file] if file.is_file() else list(file.glob("*.bin"))
    assert DetectMultiBackend(file, trust=True).metadata.precision == "fp16"
    assert sum(part.stat().st_size for part in parts) < 0.6 * plain.stat().st_size


def test_whole_numbers_in_tflite(plain, squares):
    skip_without("tflite")
    job = job_of(plain, int8=True)
    file = FORMATS["tflite"].write(job)
    model = DetectMultiBackend(file, trust=True)
    assert model.metadata.precision == "int8" and file.stat().st_size < 0.35 * plain.stat().st_size
    batch = images(SIZE, SIZE)[:2]
    with torch.no_grad():
        assert (model(batch)[..., 4:] - job.model(batch)[0][..., 4:]).abs().mean() < 0.1


def job_of(weights: Path, **settings: object) -> ExportJob:
    model = DetectMultiBackend(weights).model.requires_grad_(False)
    chosen = ExportSettings(imgsz=(SIZE, SIZE), **settings)
    return ExportJob(model, weights, chosen, calibration=lambda: list(images(SIZE, SIZE)[:, None]))


# ----------------------------------------------------------------------------------------------------------- Edge TPU
def put_compiler(folder, monkeypatch, script):
    (folder / COMPILER).write_text(f"#!/bin/sh\n{script}\n")
    (folder / COMPILER).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_edge_tpu_up_to_the_compiler(plain, tmp_path, monkeypatch):
    """A compiler that only copies: the file it is given computes in int8, and what it gives wants an Edge TPU."""
    skip_without("edgetpu")
    put_compiler(tmp_path, monkeypatch, 'cp "$4" "$3/$(basename "$4" .tflite)_edgetpu.tflite"')
    job = job_of(plain, int8=True)
    file = FORMATS["edgetpu"].write(job)
    whole = DetectMultiBackend(file.with_name("best_edgetpu_int8.tflite"), trust=True)
    assert (whole.metadata.precision, whole.metadata.unit, whole.names) == ("int8", SIZE, NAMES)
    assert kept_metadata(file) == whole.metadata and whole.model.get_input_details()[0]["dtype"] == np.uint8
    batch = images(SIZE, SIZE)[:2]
    with torch.no_grad():
        differences = (whole(batch) - job.model(batch)[0]).abs()
    assert differences[..., 4:].mean() < 0.1 and differences[..., :2].mean() < 0.03 * SIZE
    with pytest.raises(ValueError, match="needs an Edge TPU and its library"):
        DetectMultiBackend(file, trust=True)


def test_a_compiler_that_fails_is_quoted_and_one_that_is_missing_named(plain, tmp_path, monkeypatch):
    put_compiler(tmp_path, monkeypatch, "echo Model not quantized >&2\nexit 1")
    monkeypatch.setattr("models.exporters.tensorflow.whole_numbers", lambda job, file: Metadata())
    with pytest.raises(ValueError, match=f"{COMPILER} failed: Model not quantized"):
        FORMATS["edgetpu"].write(job_of(plain, int8=True))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=f"needs the program {COMPILER}, which is not on PATH") as caught:
        FORMATS["edgetpu"].write(job_of(plain, int8=True))
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------------- TensorRT
@pytest.fixture
def trt(monkeypatch):
    """As much of `tensorrt` as building takes."""
    fake = MagicMock()
    fake.NetworkDefinitionCreationFlag.STRONGLY_TYPED = 2
    fake.Builder.return_value.build_serialized_network.return_value = b"engine"
    fake.OnnxParser.return_value.get_error.return_value = "node 3: no such operator"
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    return fake


@pytest.fixture
def gpu_job(plain, monkeypatch):
    """A job for a GPU that never computes on one."""
    monkeypatch.setattr(onnx_file, "onnx_model", lambda job: SimpleNamespace(SerializeToString=lambda: b"onnx"))
    job = job_of(plain)
    job.settings = replace(job.settings, device=torch.device("cuda", 0), workspace=2.0)
    return job


def test_engines_need_a_gpu(plain, trt):
    with pytest.raises(ValueError, match="give --device 0"):
        FORMATS["engine"].write(job_of(plain))
    file = plain.with_name("best.engine")
    file.write_bytes(b"engine")
    keep_metadata(file, Metadata(("a",)))
    with pytest.raises(ValueError, match="runs on a GPU; give --device 0"):
        DetectMultiBackend(file, trust=True)


def test_what_tensorrt_is_asked_for(gpu_job, trt):
    file, builder = FORMATS["engine"].write(gpu_job), trt.Builder.return_value
    config, profile = builder.create_builder_config.return_value, builder.create_optimization_profile.return_value
    assert file.read_bytes() == b"engine" and json.loads(Path(f"{file}.json").read_text())["names"] == NAMES
    builder.create_network.assert_called_once_with(4)
    config.set_memory_pool_limit.assert_called_once_with(trt.MemoryPoolType.WORKSPACE, 2**31)
    config.clear_flag.assert_called_once_with(trt.BuilderFlag.TF32)
    assert not config.add_optimization_profile.called
    gpu_job.settings = replace(gpu_job.settings, dynamic=True, batch=8)
    FORMATS["engine"].write(gpu_job)
    most = (8, 3, SIZE, SIZE)
    profile.set_shape.assert_called_once_with("images", (1, 3, 32, 32), most, most)
    config.add_optimization_profile.assert_called_once_with(profile)
    builder.build_serialized_network.return_value = None
    with pytest.raises(ValueError, match="could not build"):
        FORMATS["engine"].write(gpu_job)
    trt.OnnxParser.return_value.parse.return_value = False
    with pytest.raises(ValueError, match="node 3"):
        FORMATS["engine"].write(gpu_job)


# ------------------------------------------------------------------------------------------------------- other scripts
@pytest.mark.parametrize("name", ["executorch", "ncnn", "tflite", "pb"])
def test_val_and_detect_take_it(name, squares, tmp_path):
    skip_without(name)
    from utils.checkpoints.checkpoint import describe_model, save_checkpoint

    weights, data = tmp_path / "best.pt", squares.with_name("three.yaml")
    data.write_text("train: images/train\nval: images/val\nnames: [a, b, c]\n")
    save_checkpoint(weights, {"epoch": -1, "model": describe_model(known_model()), "ema": None})
    (file,) = export.run(weights=weights, include=name, imgsz=64)
    shared = {"data": str(data), "imgsz": 64, "workers": 0, "project": str(tmp_path), "device": "cpu"}
    exported, _, _ = val.run(weights=file, trust=True, **shared)
    network, _, _ = val.run(weights=weights, **shared)
    assert np.allclose(exported[:4], network[:4], atol=1e-3)
    source = next((squares.parent / "images/val").iterdir())
    folder = detect.run(weights=file, trust=True, source=source, imgsz=64, project=str(tmp_path), save_txt=True)
    assert (folder / "labels" / f"{source.stem}.txt").is_file()


# ------------------------------------------------------------------------------------------------------- damaged files
RUNTIMES = {
    ".pte": ("executorch", [""]),
    ".tflite": ("ai_edge_litert", [""]),
    ".pb": ("tensorflow", [""]),
    "_saved_model": ("tensorflow", ["saved_model.pb", "variables/variables.data-00000-of-00001"]),
    "_ncnn_model": ("ncnn", ["model.ncnn.param", "model.ncnn.bin"]),
}


@pytest.mark.parametrize("ending", RUNTIMES)
@pytest.mark.parametrize("content", [b"", b"nothing" * 99], ids=["empty", "noise"])
def test_damaged_files_are_one_line(tmp_path, ending, content):
    module, parts = RUNTIMES[ending]
    file = tmp_path / f"a{ending}"
    for part in parts:
        place = file / part if part else file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    notes = Metadata(("猫",), imgsz=(64, 64), batch=1, unit=320)
    keep_metadata(file, notes)
    assert kept_metadata(file) == notes and (file.is_dir() or file.read_bytes().startswith(content))
    if not is_there(module):
        pytest.skip(f"*{ending} needs {module}, which is not installed")
    with pytest.raises(ValueError, match="cannot open it; export it again") as caught:
        DetectMultiBackend(file, trust=True)
    assert "\n" not in str(caught.value) and file.name in str(caught.value)


# ------------------------------------------------------------------------------------------------------------ the rest
def test_converters_are_silent_and_their_failures_one_line(capfd):
    with converting("a tool"):
        print("chatter")
        os.system("echo chatter >&2")
    message = r"a tool could not convert the network \(exit status 3\)"
    with pytest.raises(ExportError, match=message), converting("a tool"):
        raise SystemExit("exit status 3\nmore")
    with pytest.raises(ExportError, match="a tool could not convert the network .KeyError"), converting("a tool"):
        raise KeyError
    with silenced(is_loud=True):
        print("loud")
    told = capfd.readouterr()
    assert told.out == "loud\n" and told.err == ""
