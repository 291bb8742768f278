"""Weights in, predictions out."""

import json
import os
import shutil
import warnings

import numpy as np
import pytest
import torch

from models import common
from models.api.autoshape import AutoShape
from models.backends import ACTS, BACKENDS, DetectMultiBackend, _names_from, kind_of
from models.backends.base import ExportedBackend
from models.backends.metadata import Metadata, keep_metadata, kept_metadata, read_metadata, with_shape
from models.backends.tools import is_there, need
from models.experimental import attempt_load
from tests.known_detector import CONFIDENCE, NAMES, by_rows, expected_boxes, known_model, write_weights
from utils.boxes.nms import non_max_suppression
from utils.checkpoints.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "known.pt")


@pytest.fixture(scope="module")
def backend(weights):
    return DetectMultiBackend(weights)


def test_no_weights_unknown_ones_and_missing_ones(tmp_path):
    with pytest.raises(ValueError, match="no weights"):
        DetectMultiBackend([])
    for name in ("a.h5", "weights", "a.pt.zip"):
        with pytest.raises(ValueError, match=rf"cannot read weights .*{name}.*readable: .*\.pt") as caught:
            DetectMultiBackend(tmp_path / name)
        assert all(ending in str(caught.value) for ending in BACKENDS)
    with pytest.raises(ValueError, match=rf"{tmp_path / 'nowhere.pt'}") as caught:
        DetectMultiBackend(tmp_path / "nowhere.pt")
    assert "\n" not in str(caught.value)


def test_weights_are_files_and_their_names_are_escaped(tmp_path, weights):
    os.mkfifo(tmp_path / "a.onnx")
    (tmp_path / "b.pt").symlink_to("/dev/zero")
    (tmp_path / "c.pt").write_bytes(b"nothing")
    content = load_checkpoint(weights)
    content["model"]["state_dict"]["\033[31m"] = torch.zeros(1)
    save_checkpoint(tmp_path / "d.pt", content)
    reasons = {"a.onnx": "is a pipe or device", "b.pt": "is a pipe or device", "c.pt": "c.pt", "d.pt": "do not fit"}
    for name, reason in reasons.items():
        with pytest.raises(ValueError, match=reason) as caught:
            DetectMultiBackend(tmp_path / name)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("given, size", [
    ({}, 640),
    ({"imgsz": 96}, 96),
    ({"options": {"imgsz": 128}}, 128),  # before checkpoints said it themselves
    ({"imgsz": 96, "options": {"imgsz": 100}}, 96),
    ({"imgsz": 10**9}, 640),
    ({"imgsz": "wide", "options": [1]}, 640),
])  # fmt: skip
def test_weights_know_the_size_of_their_training(weights, tmp_path, given, size):
    content = load_checkpoint(weights)
    save_checkpoint(tmp_path / "moved.pt", content | given)
    model = DetectMultiBackend(tmp_path / "moved.pt")
    assert model.trained == size and model.input_size(0) == model.input_size([]) == (size, size)
    assert model.input_size(64) == (64, 64) and AutoShape(model).trained == size
    assert AutoShape(model)(np.zeros((10, 20, 3), np.uint8)).s[-1] == size
    assert attempt_load([tmp_path / "moved.pt", weights]).imgsz == (size if size != 640 else 0)
    (tmp_path / "weights").mkdir()
    (tmp_path / "opt.yaml").write_text("imgsz: 160")  # the run's folder knows it of older weights
    shutil.copy(weights, tmp_path / "weights/best.pt")
    assert DetectMultiBackend(tmp_path / "weights/best.pt").trained == 160


def test_attributes(backend, weights):
    assert (backend.pt, backend.fp16, backend.stride, backend.names) == (True, False, 32, NAMES)
    assert backend.device == torch.device("cpu") and len(backend.model.model) == 25
    assert common.DetectMultiBackend is DetectMultiBackend


def test_predictions_are_those_of_the_model(backend):
    images = torch.rand(2, 3, 32, 64)
    with torch.no_grad():
        alone, both, more = backend(images), backend(images, val=True), backend(images, augment=True)
        expected = known_model()(images)
    assert isinstance(alone, torch.Tensor) and torch.allclose(alone, expected[0], atol=1e-3)
    assert len(both[1]) == 3 and all(torch.allclose(a, b, atol=1e-3) for a, b in zip(both[1], expected[1], strict=True))
    assert more.shape[1] > alone.shape[1]
    with torch.no_grad():
        (found,) = non_max_suppression(backend(torch.zeros(1, 3, 32, 32)))
    assert len(found) == 16 and set(found[:, 5].tolist()) == {1.0}
    assert torch.allclose(found[:, 4], torch.tensor(CONFIDENCE), atol=1e-4)
    assert torch.allclose(by_rows(found[:, :4].clamp(0, 32)), expected_boxes(), atol=1e-2)


def test_ensembles_pool_their_candidates(weights):
    images = torch.rand(1, 3, 32, 32)
    both = DetectMultiBackend([weights, weights])
    with torch.no_grad():
        predictions, raw = both(images, val=True)
        single = DetectMultiBackend(weights)(images)
    assert raw == [] and torch.equal(predictions, torch.cat([single, single], 1))
    assert both.names == NAMES and both.stride == 32
    with pytest.raises(ValueError, match="pooled"):
        DetectMultiBackend([weights, "a.onnx"])


def test_half_precision_is_a_warning_on_a_cpu(weights, caplog):
    model = DetectMultiBackend(weights, device="cpu", fp16=True, dnn=True)
    assert not model.fp16 and len(caplog.records) == 2
    assert next(model.parameters()).dtype == torch.float32


def test_feature_maps(backend, tmp_path):
    with torch.no_grad():
        backend(torch.rand(1, 3, 64, 64), visualize=tmp_path / "maps")
    names = {path.name for path in (tmp_path / "maps").iterdir()}
    assert {"stage0_Conv_features.png", "stage0_Conv_features.npy", "stage23_C3_features.png"} <= names
    assert not any("Detect" in name for name in names)


def test_names_of_formats_that_carry_none(monkeypatch, tmp_path):
    class Nameless(torch.nn.Module):
        stride, names, model = 32, (), None

        def __init__(self, files, device, fp16):
            super().__init__()

    monkeypatch.setitem(BACKENDS, ".xyz", Nameless)
    (tmp_path / "a.xyz").touch()
    (tmp_path / "data.yaml").write_text("names: {0: a, 1: b}")
    assert DetectMultiBackend(tmp_path / "a.xyz", data=tmp_path / "data.yaml").names == ["a", "b"]
    assert DetectMultiBackend(tmp_path / "a.xyz").names[999] == "class999"
    monkeypatch.setattr(Nameless, "names", ["\x1b]0;own\x07", "a\u202eb"])
    assert DetectMultiBackend(tmp_path / "a.xyz").names == [r"\x1b]0;own\x07", r"a\u202eb"]
    for names in ("5", "null", "2024-01-01", "abc"):
        (tmp_path / "data.yaml").write_text(f"names: {names}")
        with pytest.raises(ValueError, match=r"data\.yaml: names must be a list"):
            _names_from(tmp_path / "data.yaml")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_half_precision_on_a_gpu(weights):
    model = DetectMultiBackend(weights, device="0", fp16=True)
    model.warmup((1, 3, 64, 64))
    with torch.no_grad():
        found = non_max_suppression(model(torch.zeros(1, 3, 32, 32, device=model.device)))
    assert model.fp16 and len(found[0]) == 16


# --------------------------------------------------------------------------------------- what a file says about itself
@pytest.mark.parametrize("imgsz", [None, (64, 96)])
@pytest.mark.parametrize("batch", [None, 4])
def test_metadata_comes_back_as_it_went(imgsz, batch):
    metadata = Metadata(("cup", "猫", 'it\'s "odd"'), 64, imgsz, batch, True, "int8", "export.py --nms")
    assert read_metadata(metadata.as_json(), "") == read_metadata(metadata.as_strings(), "") == metadata
    assert metadata.as_dict()["letterbox"] == ("fixed" if imgsz else "dynamic") and metadata.as_dict()["nc"] == 3


@pytest.mark.parametrize("name", ["a.pte", "a_ncnn_model", "a.tflite", "A.TFLITE"])
def test_metadata_lies_beside_a_file_in_a_folder_or_at_the_end(tmp_path, name):
    file, metadata = tmp_path / name, Metadata(("cup", "猫"), 64, (64, 96), 1, precision="int8", unit=96)
    file.mkdir() if name == "a_ncnn_model" else file.write_bytes(b"model" * 99)
    keep_metadata(file, metadata)
    assert kept_metadata(file) == metadata
    assert file.is_dir() or file.read_bytes().startswith(b"model" * 99)
    beside = {"a.pte": ["a.pte", "a.pte.json"]}.get(name, [name])
    assert sorted(path.name for path in tmp_path.iterdir()) == beside


@pytest.mark.parametrize("given, metadata", [
    ({}, Metadata()),
    ("{}", Metadata()),
    ('{"shape": [1, 3, 320, 640], "stride": 32, "names": ["a", "b"]}', Metadata(("a", "b"), 32, (320, 640), 1)),  # v6.1
    ({"stride": "32", "names": "{0: 'a', 1: 'b'}"}, Metadata(("a", "b"))),  # later releases, in .onnx files
    ({"stride": "16", "names": '["1e5"]', "author": "somebody"}, Metadata(("1e5",))),
    ({"stride": "[8, 16, 64]", "imgsz": "640", "batch": "2"}, Metadata((), 64, (640, 640), 2)),
])  # fmt: skip
def test_metadata_of_other_releases(given, metadata):
    assert read_metadata(given, "a.onnx") == metadata


@pytest.mark.parametrize(
    "given",
    [
        *("{", "[1]", {"stride": "wide"}, {"imgsz": "[1, 2, 3]"}, {"names": "3"}, {"shape": "x"}),
        *("[" * 100_000, '{"stride": Infinity}', {"stride": "1e400"}, {"trained": float("inf")}),
        *({"stride": 1_000_000}, {"imgsz": 1_000_000}, {"shape": [1, 3, 1e99, 5]}, {"imgsz": [640, 0]}),
        *({"batch": 0}, {"batch": 1_000_000}, {"unit": 0}, {"unit": float("inf")}, {"stride": "\033[31m"}),
    ],
    ids=lambda given: str(given)[:20],
)
def test_damaged_metadata_is_one_line(given):
    with pytest.raises(ValueError, match=r"a\.onnx: its metadata") as caught:
        read_metadata(given, "a.onnx")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(), (3, 8, 8), (1, 17, 8, 8), (1, 3, 1 << 40, 8), (1, 3, "\033[31m", 1 << 40)])
def test_inputs_that_are_no_images_are_one_line(shape):
    with pytest.raises(ValueError, match=r"a\.onnx: its input is .*, not images of 3 colours") as caught:
        with_shape(Metadata(), shape, "a.onnx")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name, kind", [
    ("a.pt", ".pt"),
    ("a.pt.onnx", ".onnx"),
    ("A.ONNX", ".onnx"),
    ("runs/best_openvino_model/", "_openvino_model"),
    ("best_openvino_model/best.xml", ".xml"),
    ("best_aoti.pt2", "_aoti.pt2"),
    ("best.pt2", ".pt2"),
])  # fmt: skip
def test_kinds(name, kind):
    assert kind_of([name]) == kind


def exported(tmp_path, metadata, run):
    return ExportedBackend(tmp_path / "a.onnx", metadata, "cpu", None, run)


def raising(error):
    def run(images):
        raise error

    return run


@pytest.mark.parametrize("batch, sizes", [(None, [5]), (1, [1] * 5), (2, [2] * 3), (7, [7])])
def test_any_number_of_images_goes_through_a_fixed_batch(tmp_path, batch, sizes):
    seen = []
    run = lambda images: seen.append(len(images)) or images[:, 0, :1] * 2  # noqa: E731 - as the runtimes' are
    images = torch.rand(5, 3, 8, 8)
    found, raw = exported(tmp_path, Metadata(("a", "b", "c"), batch=batch), run)(images)
    assert raw is None and torch.equal(found, images[:, 0, :1] * 2) and seen == sizes
    fixed = exported(tmp_path, Metadata(("a",), imgsz=(8, 16)), run)
    with pytest.raises(ValueError, match="--augment needs .*a.onnx"):
        fixed(torch.rand(1, 3, 8, 16), augment=True)
    with pytest.raises(ValueError, match="8 x 16 pixels, not 8 x 8"):
        fixed(images)


@pytest.mark.parametrize("run, match", [
    (lambda images: torch.zeros(2, 10, 7), None),
    (lambda images: torch.zeros(2, 0, 7), None),
    (lambda images: torch.zeros(1, 10, 7), "returns 1 x 10 x 7 for 2 images"),
    (lambda images: torch.zeros(70), "returns 70 for 2 images"),
    (lambda images: torch.tensor(0.0), "returns no table"),
    (lambda images: [], "returns no table"),
    (raising(RuntimeError("node '\033[31m\n' fails")), r"cannot be run \(node '\\x1b\[31m\\n' fails\)"),
    (raising(TypeError()), "cannot be run .TypeError"),
])  # fmt: skip
def test_what_a_file_returns_is_looked_at(tmp_path, run, match):
    backend = exported(tmp_path, Metadata(("a", "b")), run)
    if match is None:
        assert torch.equal(backend(torch.rand(2, 3, 8, 8))[0], run(None))
        return
    with pytest.raises(ValueError, match=match) as caught:
        backend(torch.rand(2, 3, 8, 8))
    assert str(caught.value).isprintable()


def test_detections_as_candidates(tmp_path):
    def candidates(rows):
        return exported(tmp_path, Metadata(("a", "b", "c"), nms=True), lambda images: rows)(torch.rand(1, 3, 8, 8))[0]

    assert candidates(torch.zeros(1, 0, 6)).shape == (1, 0, 8)
    rows = torch.tensor([[[10.0, 20, 30, 60, 0.9, 2], [0, 0, 0, 0, 0, 0]]])
    (found,) = non_max_suppression(candidates(rows))
    assert torch.allclose(found, rows[0, :1])
    for wrong in (torch.zeros(1, 4, 7), torch.zeros(1, 6)):
        with pytest.raises(ValueError, match="for 1 images"):
            candidates(wrong)


@pytest.mark.parametrize("ending", ACTS)
def test_files_that_can_act_are_opened_for_those_who_trust_them_only(tmp_path, ending, monkeypatch):
    opened = []
    monkeypatch.setitem(BACKENDS, ending, lambda files, device, fp16: opened.append(files) or Metadata(("a",)))
    (tmp_path / f"a{ending}").touch()
    with pytest.raises(
        ValueError, match=r"a\S+: is a.*; if you trust who made it, give --trust .in Python trust=True.$"
    ):
        DetectMultiBackend(tmp_path / f"a{ending}")
    assert not opened
    assert DetectMultiBackend(tmp_path / f"a{ending}", trust=True).names == ["a"] and opened


@pytest.mark.parametrize("name, tool", [
    ("a.torchscript", "torch"), ("a.pt2", "torch"), ("a.onnx", "onnxruntime"), ("a_openvino_model", "openvino"),
    ("a.xml", "openvino"), ("a.pte", "executorch"), ("a.tflite", "ai_edge_litert"),
])  # fmt: skip
def test_damaged_files_are_one_line(tmp_path, name, tool):
    if not is_there(tool):
        pytest.skip(f"{name} needs {tool}, which is not installed")
    with pytest.raises(ValueError, match="--this needs the package no_such_package, which is not installed: pip"):
        need("no_such_package.part", "--this")
    file = tmp_path / name
    file.mkdir() if name.endswith("_model") else file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=name.replace(".", r"\.")) as caught:
        DetectMultiBackend(file, trust=True)
    assert "\n" not in str(caught.value)


def test_torchscript_of_v61(tmp_path):
    """Traced with the raw maps behind the predictions, and shape, stride and names in config.txt."""
    model = known_model().fuse()
    notes = {"config.txt": json.dumps({"shape": [1, 3, 64, 64], "stride": 32, "names": NAMES})}
    file = tmp_path / "a.torchscript"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(model, torch.zeros(1, 3, 64, 64), strict=False).save(str(file), _extra_files=notes)
    backend = DetectMultiBackend(file, trust=True)
    assert backend.names == NAMES and backend.shape == (64, 64) and backend.input_size(640) == (64, 64)
    with torch.no_grad():
        assert torch.allclose(backend(torch.zeros(2, 3, 64, 64)), model(torch.zeros(2, 3, 64, 64))[0], atol=1e-3)


def write_onnx(file, sides, size, name, extra=()):
    """A graph that reshapes its images; `extra` outputs are the images."""
    onnx = pytest.importorskip("onnx", reason="needs onnx, which is not installed")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime, which is not installed")
    made, kind = onnx.helper, onnx.TensorProto.FLOAT
    outputs = [made.make_tensor_value_info(one, kind, sides if one in extra else None) for one in ("output", *extra)]
    nodes = [made.make_node("Reshape", ["images", "size"], ["output"], name=name)]
    nodes += [made.make_node("Identity", ["images"], [one]) for one in extra]
    constant = made.make_tensor("size", onnx.TensorProto.INT64, (3,), size)
    graph = made.make_graph(nodes, "g", [made.make_tensor_value_info("images", kind, sides)], outputs, [constant])
    onnx.save(made.make_model(graph, opset_imports=[made.make_opsetid("", 12)], ir_version=8), file)


def test_onnx_of_v61(tmp_path):
    """No metadata, several outputs of which the first counts: names come from the data set."""
    write_onnx(tmp_path / "a.onnx", [1, 3, "height", "width"], [0, -1, 64], "", ["345"])
    (tmp_path / "data.yaml").write_text("names: {0: a, 1: b}")
    backend = DetectMultiBackend(tmp_path / "a.onnx", data=tmp_path / "data.yaml")
    images = torch.rand(2, 3, 32, 64)
    assert backend.names == ["a", "b"] and backend.shape is None and backend.stride == 32
    assert torch.equal(backend(images), images.flatten(1, 2))


def test_an_onnx_file_prints_nothing_of_its_own(tmp_path, capfd):
    """Names in it are anybody's, and the runtimes would print them as they are."""
    write_onnx(tmp_path / "a.onnx", [1, 3, 64, 64], [1, 10, 7], "\033[31m\nq")
    for dnn in (False, True):
        with pytest.raises(ValueError, match="cannot (be )?run") as caught:
            DetectMultiBackend(tmp_path / "a.onnx", dnn=dnn)(torch.zeros(1, 3, 64, 64))
        assert str(caught.value).isprintable()
    assert capfd.readouterr() == ("", "")
