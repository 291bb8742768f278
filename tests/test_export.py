"""export.py as people use it: every format that can be had here, held against PyTorch; every mistake one line."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import detect
import export
import hubconf
import val
from models.backends import DetectMultiBackend
from models.backends.tools import is_there
from models.exporters import FORMATS, compare
from models.exporters.job import ExportError
from tests.lively import NAMES, images, write_lively
from tests.trained import shared_folder, trained_weights
from utils.base.options import parse
from utils.base.paths import ROOT
from utils.boxes.nms import non_max_suppression
from utils.checkpoints.checkpoint import load_checkpoint, save_checkpoint

CONFIGS = ("yolov5n.yaml", "yolov5n_BiFormer.yaml")
SIZE = 128
HERE = ("torchscript", "onnx", "openvino", "pt2", "safetensors", "yolov5")  # others: tests/test_export_foreign.py


@pytest.fixture(scope="session")
def together(tmp_path_factory):
    return shared_folder(tmp_path_factory)


@pytest.fixture(params=[(cfg, kind) for kind in ("random", "trained") for cfg in CONFIGS], ids=" ".join)
def weights(request, tmp_path, together):
    cfg, kind = request.param
    if kind == "random":
        return write_lively(tmp_path / "best.pt", cfg)
    return Path(shutil.copy(trained_weights(cfg, together)[0], tmp_path / "best.pt"))


@pytest.fixture
def plain(tmp_path):
    return write_lively(tmp_path / "best.pt", CONFIGS[0])


@pytest.fixture
def routed(tmp_path):
    return write_lively(tmp_path / "best.pt", CONFIGS[1])


@pytest.fixture(params=CONFIGS)
def trained(request, tmp_path, together):
    """Trained weights, and the data they were trained on."""
    best, data = trained_weights(request.param, together)
    return Path(shutil.copy(best, tmp_path / "best.pt")), data


def skip_without(name: str) -> None:
    missing = [module for module in FORMATS[name].modules if not is_there(module)]
    if missing:
        pytest.skip(f"{FORMATS[name].title} needs {missing[0]}, which is not installed: {FORMATS[name].install}")


def agree(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether predictions are the same but for rounding, which random weights multiply: as exporting demands it."""
    return compare.difference(expected, found, "").fits(compare.TOLERANCES["fp32"])


def test_nothing_to_export(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="--include: is empty; give text"):
        export.run(weights=write_lively(tmp_path / "a.pt", CONFIGS[0]), include=[])
    monkeypatch.setattr("utils.base.paths.ROOT", tmp_path)
    with pytest.raises(ValueError, match="no --weights"):
        export.run()


@pytest.mark.parametrize("name", HERE)
def test_format(weights, name, capsys):
    skip_without(name)
    (file,) = export.run(weights=weights, include=name, imgsz=SIZE)
    told = capsys.readouterr().err
    assert file == weights.with_name(weights.stem + FORMATS[name].ending) and file.exists()
    assert "next to PyTorch" in told and f" of {SIZE} x {SIZE}" in told
    network, reread = DetectMultiBackend(weights), DetectMultiBackend(file, trust=name in ("torchscript", "pt2"))
    assert reread.names == network.names and reread.stride == 32
    if name not in ("yolov5", "safetensors"):
        assert reread.shape == (SIZE, SIZE) and reread.metadata.batch == 1
        assert name in reread.metadata.command and reread.metadata.precision == "fp32"
    batch = images(SIZE, SIZE)  # more than the file takes at a time
    with torch.no_grad():
        expected, found = network(batch), reread(batch)
    limit = compare.TOLERANCES[reread.metadata.precision]
    assert compare.difference(expected, found, "", limit).fits(limit)
    if limit.share == 1:
        assert (expected[..., 4:] - found[..., 4:]).abs().max() < 2 * limit.score  # of all candidates, not the surest


def test_compiled_package(routed):
    """Half a minute of a C++ compiler: once, and the other networks by hand (docs/deploy.md)."""
    if shutil.which("g++") is None:
        pytest.skip("AOTInductor needs g++, which is not installed: apt install g++")
    (file,) = export.run(weights=routed, include="aoti", imgsz=64)
    model = DetectMultiBackend(file, trust=True)
    assert model.names == NAMES and model.shape == (64, 64)


@pytest.mark.parametrize("name", ["onnx", "openvino", "torchscript"])
def test_oblong_images_in_batches(routed, name):
    skip_without(name)
    (file,) = export.run(weights=routed, include=name, imgsz=[128, 192], batch_size=2)
    model = DetectMultiBackend(file, trust=True)
    assert model.shape == (128, 192) and model.metadata.batch == 2
    with torch.no_grad():
        assert model(torch.rand(3, 3, 128, 192)).shape == (3, 3 * (16 * 24 + 8 * 12 + 4 * 6), 8)
    with pytest.raises(ValueError, match="128 x 192 pixels, not 128 x 128"):
        model(torch.rand(1, 3, 128, 128))


@pytest.mark.parametrize("cfg, name", [
    (CONFIGS[0], "onnx"), (CONFIGS[1], "onnx"), (CONFIGS[1], "torchscript"),
    ("yolov5n-C3BRA-residual.yaml", "torchscript"), ("yolov5n-BiFormer-residual.yaml", "torchscript"),
])  # fmt: skip
def test_open_sizes(tmp_path, cfg, name, capsys):
    skip_without(name)
    weights = write_lively(tmp_path / "best.pt", cfg)
    (file,) = export.run(weights=weights, include=name, imgsz=SIZE, dynamic=True)
    output = capsys.readouterr().err
    assert "not their size" not in output
    assert re.search(r"1 of 64 x 128|1 of 96 x 128", output), "a rectangle is compared too"
    model, network = DetectMultiBackend(file, trust=True), DetectMultiBackend(weights)
    assert model.shape is None and model.metadata.batch is None
    for height, width in ((64, 64), (96, 160), (256, 224)):  # 2 x 2 to 8 x 7 tokens at the coarsest level
        batch = images(height, width)[:3]
        with torch.no_grad():
            assert agree(model(batch), network(batch))


@pytest.mark.parametrize("layer", [["BiLevelRoutingAttention", ["auto"]], ["BiLevelRoutingAttention", []]])
def test_routing_attention_that_keeps_its_size(tmp_path, layer, capsys):
    cfg = {
        "nc": 3,
        "depth_multiple": 0.33,
        "width_multiple": 0.125,
        "anchors": [[30, 30, 60, 60, 90, 90]],
        "backbone": [[-1, 1, "Conv", [64, 6, 2, 2]], [-1, 1, "Conv", [128, 3, 2]], [-1, 1, "Conv", [128, 3, 2]]],
        "head": [[-1, 1, *layer], [[3], 1, "Detect", ["nc", "anchors"]]],
    }
    weights = write_lively(tmp_path / "best.pt", cfg)
    (file,) = export.run(weights=weights, include="pt2", imgsz=SIZE, dynamic=True)
    assert "not their size" in capsys.readouterr().err
    model = DetectMultiBackend(file, trust=True)
    assert model.shape == (SIZE, SIZE) and model.metadata.batch is None
    batch = images(SIZE, SIZE)[:3]
    with torch.no_grad():
        assert agree(model(batch), DetectMultiBackend(weights)(batch))


@pytest.mark.parametrize("name", ["onnx", "openvino"])
@pytest.mark.parametrize("agnostic", [False, True])
def test_suppression_inside(plain, name, agnostic):
    skip_without(name)
    (file,) = export.run(weights=plain, include=name, imgsz=SIZE, nms=True, agnostic_nms=agnostic, topk_all=20)
    model = DetectMultiBackend(file, trust=True)
    batch = images(SIZE, SIZE)
    with torch.no_grad():
        inside, outside = model(batch), DetectMultiBackend(plain)(batch)
    assert inside.shape == (4, 20, 5 + len(NAMES))
    pair = (non_max_suppression(one, agnostic=agnostic, max_det=20) for one in (inside, outside))
    for found, wanted in zip(*pair, strict=True):
        assert len(wanted) and torch.allclose(found, wanted, rtol=1e-3, atol=0.05)  # boxes of 1000 pixels


def test_files_tell_what_they_were_trained_at_and_moved_ones_are_used_at_it(plain, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    save_checkpoint(plain, load_checkpoint(plain) | {"imgsz": 96})
    for file in export.run(weights=plain, include=["torchscript", "pt2", "yolov5"], dynamic=True):
        model = DetectMultiBackend(shutil.move(file, tmp_path / "elsewhere"), trust=True)
        assert model.trained == 96 and model.input_size(0) == (96, 96)
        assert model.pt or model.metadata.as_dict()["trained"] == 96


def test_a_pickled_network_says_which_classes_others_lack(plain, tmp_path, capsys):
    export.run(weights=plain, include="yolov5", imgsz=64)
    assert "names" not in capsys.readouterr().err
    weights = write_lively(tmp_path / "routed.pt", CONFIGS[1])
    export.run(weights=weights, include="yolov5", imgsz=64)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "unpickle" in line]
    assert "routed_yolov5.pt names BiLevelRoutingAttention, KVDownsample, KVGather, PointwiseLinear, QKVLinear" in line
    weights = write_lively(tmp_path / "blocks.pt", "yolov5n-C3BRA-residual.yaml")
    export.run(weights=weights, include="yolov5", imgsz=64)  # read back and compared
    assert "blocks_yolov5.pt names BiFormerBlock, BiLevelRoutingAttention, C3BRA, DropPath" in capsys.readouterr().err


@pytest.mark.parametrize("opset", [12, 17])
def test_older_opsets(plain, opset):
    skip_without("onnx")
    (file,) = export.run(weights=plain, include="onnx", imgsz=64, opset=opset, simplify=is_there("onnxslim"))
    import onnx

    assert onnx.load(file).opset_import[0].version == opset


def test_half_precision(trained):
    """In the file, and where a file of single precision is run."""
    skip_without("openvino")
    weights, _ = trained
    (file,) = export.run(weights=weights, include="openvino", imgsz=64)
    full, half = DetectMultiBackend(file, trust=True), DetectMultiBackend(file, fp16=True)
    kinds = [model.model.get_property("INFERENCE_PRECISION_HINT").to_string() for model in (full, half)]
    assert kinds[0] == "f32" and not half.fp16
    if kinds[1] != "f32":  # else this processor computes in single precision only
        batch = images(64, 64)
        with torch.no_grad():
            found = compare.difference(full(batch), half(batch), "", compare.TOLERANCES["int8"])
        assert 0 < found.box < 4 and found.score < 0.1
    (file,) = export.run(weights=weights, include="openvino", imgsz=SIZE, half=True)
    assert DetectMultiBackend(file).metadata.precision == "fp16"
    assert sum(part.stat().st_size for part in file.iterdir()) < 1.2 * weights.stat().st_size  # which is float16 too


def test_whole_numbers(trained, tmp_path):
    skip_without("openvino")
    if not is_there("nncf"):
        pytest.skip("int8 needs nncf, which is not installed: pip install 'nncf>=3.4'")
    weights, data = trained
    (whole,) = export.run(weights=weights, include="openvino", imgsz=64, int8=True, data=str(data))
    assert DetectMultiBackend(whole).metadata.precision == "int8"
    assert sum(file.stat().st_size for file in whole.iterdir()) < 0.9 * weights.stat().st_size  # of float16
    shared = {"data": str(data), "imgsz": 64, "workers": 0, "project": str(tmp_path), "device": "cpu"}
    scores = [val.run(weights=file, task="benchmark", **shared)[0] for file in (whole, weights)]
    assert abs(scores[0][2] - scores[1][2]) < 0.1


# ------------------------------------------------------------------------------------------------------- other scripts
@pytest.mark.parametrize("name", ["onnx", "openvino", "torchscript", "pt2"])
def test_val_and_detect_take_it(trained, name, tmp_path):
    skip_without(name)
    weights, data = trained
    (file,) = export.run(weights=weights, include=name, imgsz=64)
    shared = {"data": str(data), "imgsz": 64, "workers": 0, "project": str(tmp_path), "device": "cpu"}
    asked = {"weights": file, "trust": name in ("torchscript", "pt2")}
    exported, _, _ = val.run(**asked, **shared)
    network, _, _ = val.run(weights=weights, task="benchmark", **shared)
    assert network[2] > 0.3 and np.allclose(exported[:4], network[:4], atol=1e-3)
    cv2.imwrite(str(tmp_path / "a.png"), np.full((48, 90, 3), 99, np.uint8))
    folder = detect.run(**asked, source=tmp_path / "a.png", imgsz=64, project=str(tmp_path), save_txt=True)
    assert (folder / "a.png").is_file()
    with pytest.raises(ValueError, match="for .pt weights"):
        detect.run(**asked, source=tmp_path / "a.png", visualize=True, project=str(tmp_path))


def test_python_takes_it(trained):
    weights, data = trained
    (file,) = export.run(weights=weights, include="torchscript", imgsz=64)
    exported, network = (hubconf.custom(path=str(one), device="cpu", trust=True) for one in (file, weights))
    square = sorted((data.parent / "images/val").glob("*.png"))[:3]
    for found, wanted in zip(exported(square, size=64).xyxy, network(square, size=64).xyxy, strict=True):
        assert torch.allclose(found, wanted, atol=1e-2)
    oblong = np.zeros((40, 90, 3), np.uint8)
    assert exported(oblong, size=640).s == (1, 3, 64, 64), "the file's own size counts"


# ------------------------------------------------------------------------------------------------------------ mistakes
@pytest.mark.parametrize("given, message", [
    ({"include": ["onnx"], "half": True}, "--half with --include onnx needs a GPU"),
    ({"include": ["pt2"], "half": True}, "is not offered"),
    ({"include": ["pt2"], "int8": True}, "choose among openvino"),
    ({"include": ["openvino"], "half": True, "int8": True}, "exclude each other"),
    ({"train": True}, "--train"),
    ({"batch_size": 0}, "--batch-size"),
    ({"conf_thres": 2.0}, "--conf-thres"),
    ({"imgsz": [64, 64, 64]}, "one side or height and width"),
    ({"imgsz": 0}, "--imgsz 0: must be from 1 to 32736"),
    ({"weights": "nowhere.pt"}, "do not exist"),
    ({"weights": __file__}, "starts from .pt"),
    ({"wieghts": "best.pt"}, "did you mean 'weights'"),
    ({"opset": 3, "include": ["onnx"]}, "too old"),
], ids=str)  # fmt: skip
def test_mistakes(plain, given, message):
    if "opset" in given:
        skip_without("onnx")
    before = set(plain.parent.iterdir())
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        export.run(**{"weights": plain, "imgsz": 64, **given})
    assert "\n" not in str(caught.value) and set(plain.parent.iterdir()) == before


def test_nothing_is_written_over_the_weights(plain):
    skip_without("safetensors")
    (weights,) = export.run(weights=plain, include="safetensors", imgsz=64)
    before = weights.read_bytes()
    for include in (["safetensors"], ["pt2", "safetensors"]):
        with pytest.raises(ValueError, match=r"--include safetensors: would be written over .*\.safetensors; copy"):
            export.run(weights=weights, include=include, imgsz=64, half=include == ["safetensors"])
    assert weights.read_bytes() == before and not weights.with_suffix(".pt2").exists()
    assert export.run(weights=weights, include="yolov5", imgsz=64)[0].exists()


def test_a_file_that_differs_or_cannot_be_run_does_not_count(plain, monkeypatch):
    def broken(*given, **more):
        raise ZeroDivisionError("no operator\nof that name")

    failed = plain.with_name("best.pt2.failed")
    monkeypatch.setitem(compare.TOLERANCES, "fp32", compare.Tolerance(-1.0, -1.0))
    monkeypatch.setattr(compare, "OWN_ROUNDING", -1.0)
    differs = r"best.pt2: differs from PyTorch .* most in image .* detections would change; kept as best.pt2.failed$"
    gives_up = r"best.pt2: its own runtime gives up \(no operator of that name\)"
    for message in (differs, gives_up):
        with pytest.raises(ExportError, match=message) as caught:
            export.run(weights=plain, include="pt2", imgsz=64)
        assert "\n" not in str(caught.value) and not plain.with_name("best.pt2").exists() and failed.exists()
        monkeypatch.setattr(compare.DetectMultiBackend, "forward", broken)
        failed.unlink()
    assert export.main(["--weights", str(plain), "--include", "pt2", "--imgsz", "64"]) == 1


def test_command_line(plain, capfd):
    """A size that is no multiple of the stride is rounded up."""
    assert export.main(f"--weights {plain} --include pt2 --img 50".split()) == 0
    model = DetectMultiBackend(plain.with_name("best.pt2"), trust=True)
    assert "export.py --weights" in model.metadata.command and model.shape == (64, 64)
    assert "not a multiple" in capfd.readouterr().err


@pytest.mark.parametrize("flags", [
    "--data a --weights a b --imgsz 320 640 --batch-size 2 --device 0 --half --inplace --train --optimize --int8",
    "--img-size 320 --img 320 --dynamic --simplify --opset 12 --verbose --workspace 2 --nms --agnostic-nms",
    "--topk-per-class 7 --topk-all 7 --iou-thres 0.5 --conf-thres 0.5 --include onnx engine",
])  # fmt: skip
def test_flags_of_v61(flags):
    """Each changes the option of its name."""
    opt = parse(export.ExportOptions, flags.split())
    for flag in re.findall(r"--([a-z0-9-]+)", flags):
        name = "imgsz" if flag.startswith("img") else flag.replace("-", "_")
        assert getattr(opt, name) != getattr(export.ExportOptions(), name), flag
    known = "torchscript onnx openvino engine coreml saved_model pb tflite edgetpu tfjs".split()
    assert [name for name in FORMATS if name in known] == known


def test_signals_after_openvino(plain):
    """Several models that were open at the same time leave nothing behind that a signal could trip over."""
    skip_without("openvino")
    (file,) = export.run(weights=plain, include="openvino", imgsz=64)
    code = (
        "import gc, os, signal\nfrom models.backends import DetectMultiBackend\nheard = []\n"
        "signal.signal(signal.SIGUSR1, lambda *given: heard.append(given))\n"
        f"first = DetectMultiBackend({str(file)!r})\nsecond = DetectMultiBackend({str(file)!r})\n"
        "del first\ngc.collect()\ndel second\ngc.collect()\nos.kill(os.getpid(), signal.SIGUSR1)\nassert heard\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
