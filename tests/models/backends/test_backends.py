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
from models.backends import BACKENDS, DetectMultiBackend, _names_from, kind_of
from models.backends.base import ExportedBackend, as_candidates
from models.backends.facts import Facts, read_facts
from models.backends.runtimes import with_shape
from models.backends.tools import is_there, need
from models.experimental import attempt_load
from tests.known_detector import CONFIDENCE, NAMES, by_rows, expected_boxes, known_model, write_weights
from utils.base.paths import find_weights
from utils.boxes.nms import non_max_suppression
from utils.checkpoints.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "known.pt")


@pytest.fixture(scope="module")
def backend(weights):
    return DetectMultiBackend(weights)


def test_no_weights():
    with pytest.raises(ValueError, match="no weights"):
        DetectMultiBackend([])


@pytest.mark.parametrize("name", ["a.h5", "weights", "a.pt.zip"])
def test_unknown_formats_name_what_is_readable(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"cannot read weights .*readable: .*\.pt") as caught:
        DetectMultiBackend(tmp_path / name)
    assert name in str(caught.value) and all(ending in str(caught.value) for ending in BACKENDS)


def test_missing_weights_say_where_they_were_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="nowhere.pt") as caught:
        DetectMultiBackend("nowhere.pt")
    assert str(tmp_path / "nowhere.pt") in str(caught.value) and "\n" not in str(caught.value)
    (tmp_path / "here.pt").touch()
    assert find_weights("here.pt").is_file()


@pytest.mark.parametrize(
    "told, size",
    [
        ({}, 640),
        ({"imgsz": 96}, 96),
        ({"options": {"imgsz": 128}}, 128),  # before checkpoints said it themselves
        ({"imgsz": 96, "options": {"imgsz": 100}}, 96),
        ({"imgsz": 10**9}, 640),
        ({"imgsz": "wide", "options": [1]}, 640),
    ],
)
def test_weights_know_the_size_of_their_training(weights, tmp_path, told, size):
    content = load_checkpoint(weights)
    save_checkpoint(tmp_path / "moved.pt", content | told)
    model = DetectMultiBackend(tmp_path / "moved.pt")
    assert model.trained == size and model.picture_size(0) == model.picture_size([]) == (size, size)
    assert model.picture_size(64) == (64, 64) and AutoShape(model).trained == size
    seen = AutoShape(model)(np.zeros((10, 20, 3), np.uint8))
    assert seen.s[-1] == size
    both = attempt_load([tmp_path / "moved.pt", weights])
    assert both.imgsz == (size if size != 640 else 0)


def test_the_runs_folder_tells_the_size_of_older_weights(weights, tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "opt.yaml").write_text("imgsz: 160")
    shutil.copy(weights, tmp_path / "weights/best.pt")
    assert DetectMultiBackend(tmp_path / "weights/best.pt").trained == 160


def test_broken_weights_are_one_line(tmp_path):
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="broken.pt") as caught:
        DetectMultiBackend(tmp_path / "broken.pt")
    assert str(caught.value).isprintable()


def test_attributes(backend, weights):
    assert (backend.pt, backend.fp16, backend.stride, backend.names) == (True, False, 32, NAMES)
    assert backend.device == torch.device("cpu") and len(backend.model.model) == 25
    assert common.DetectMultiBackend is DetectMultiBackend


def test_predictions_are_those_of_the_model(backend):
    pictures = torch.rand(2, 3, 32, 64)
    with torch.no_grad():
        alone, both = backend(pictures), backend(pictures, val=True)
        expected = known_model()(pictures)
    assert isinstance(alone, torch.Tensor) and torch.allclose(alone, expected[0], atol=1e-3)
    assert len(both[1]) == 3 and all(torch.allclose(a, b, atol=1e-3) for a, b in zip(both[1], expected[1], strict=True))


def test_the_known_detector_is_known(backend):
    with torch.no_grad():
        (found,) = non_max_suppression(backend(torch.zeros(1, 3, 32, 32)))
    assert len(found) == 16 and set(found[:, 5].tolist()) == {1.0}
    assert torch.allclose(found[:, 4], torch.tensor(CONFIDENCE), atol=1e-4)
    assert torch.allclose(by_rows(found[:, :4].clamp(0, 32)), expected_boxes(), atol=1e-2)


def test_ensembles_pool_their_candidates(weights):
    pictures = torch.rand(1, 3, 32, 32)
    both = DetectMultiBackend([weights, weights])
    with torch.no_grad():
        predictions, raw = both(pictures, val=True)
        single = DetectMultiBackend(weights)(pictures)
    assert raw == [] and torch.equal(predictions, torch.cat([single, single], 1))
    assert both.names == NAMES and both.stride == 32


def test_only_pt_files_are_pooled(weights, tmp_path, monkeypatch):
    monkeypatch.setitem(BACKENDS, ".onnx", object)
    with pytest.raises(ValueError, match="pooled"):
        DetectMultiBackend([weights, "a.onnx"])


def test_half_precision_is_a_warning_on_a_cpu(weights, caplog):
    model = DetectMultiBackend(weights, device="cpu", fp16=True, dnn=True)
    assert not model.fp16 and len(caplog.records) == 2
    assert next(model.parameters()).dtype == torch.float32


def test_augment_and_warmup(backend):
    backend.warmup((1, 3, 64, 64))
    with torch.no_grad():
        assert backend(torch.rand(1, 3, 64, 64), augment=True).shape[1] > backend(torch.rand(1, 3, 64, 64)).shape[1]


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_half_precision_on_a_gpu(weights):
    model = DetectMultiBackend(weights, device="0", fp16=True)
    model.warmup((1, 3, 64, 64))
    with torch.no_grad():
        found = non_max_suppression(model(torch.zeros(1, 3, 32, 32, device=model.device)))
    assert model.fp16 and len(found[0]) == 16


# --------------------------------------------------------------------------------------- what a file says about itself
def test_no_facts():
    assert read_facts({}, "a.onnx") == read_facts("{}", "a.onnx") == Facts()
    assert Facts().letterbox == "dynamic" and Facts().nc == 0


@pytest.mark.parametrize("imgsz", [None, (64, 96)])
@pytest.mark.parametrize("batch", [None, 4])
def test_facts_come_back_as_they_went(imgsz, batch):
    facts = Facts(("cup", "猫", 'it\'s "odd"'), 64, imgsz, batch, True, "int8", "export.py --nms")
    assert read_facts(facts.as_json(), "") == read_facts(facts.as_strings(), "") == facts
    assert facts.letterbox == ("fixed" if imgsz else "dynamic")


@pytest.mark.parametrize(
    "given, facts",
    [
        (
            '{"shape": [1, 3, 320, 640], "stride": 32, "names": ["a", "b"]}',
            Facts(("a", "b"), 32, (320, 640), 1),
        ),  # v6.1
        ({"stride": "32", "names": "{0: 'a', 1: 'b'}"}, Facts(("a", "b"))),  # later releases, in .onnx files
        ({"stride": "16", "names": '["1e5"]', "author": "somebody"}, Facts(("1e5",))),
        ({"stride": "[8, 16, 64]", "imgsz": "640", "batch": "2"}, Facts((), 64, (640, 640), 2)),
    ],
)
def test_facts_of_other_releases(given, facts):
    assert read_facts(given, "a.onnx") == facts


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
def test_damaged_facts_are_one_line(given):
    with pytest.raises(ValueError, match=r"a\.onnx: its metadata") as caught:
        read_facts(given, "a.onnx")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, kind",
    [
        ("a.pt", ".pt"),
        ("a.pt.onnx", ".onnx"),
        ("A.ONNX", ".onnx"),
        ("runs/best_openvino_model/", "_openvino_model"),
        ("best_openvino_model/best.xml", ".xml"),
        ("best_aoti.pt2", "_aoti.pt2"),
        ("best.pt2", ".pt2"),
    ],
)
def test_kinds(name, kind):
    assert kind_of([name]) == kind


class Doubling(ExportedBackend):
    """Returns its pictures' first row, twice as large; counts its calls."""

    calls = 0

    def run(self, images):
        self.calls += 1
        assert self.facts.batch in (None, len(images))
        return images[:, 0, :1] * 2


@pytest.mark.parametrize("batch, calls", [(None, 1), (1, 5), (2, 3), (7, 1)])
def test_any_number_of_pictures_goes_through_a_fixed_batch(tmp_path, batch, calls):
    backend = Doubling(tmp_path / "a.onnx", Facts(("a", "b", "c"), batch=batch), torch.device("cpu"), None)
    pictures = torch.rand(5, 3, 8, 8)
    found, raw = backend(pictures)
    assert raw is None and torch.equal(found, pictures[:, 0, :1] * 2) and backend.calls == calls


def test_what_only_networks_can_do_is_refused(tmp_path):
    backend = Doubling(tmp_path / "a.onnx", Facts(("a",), imgsz=(8, 16)), torch.device("cpu"), None)
    with pytest.raises(ValueError, match="--augment needs .*a.onnx"):
        backend(torch.rand(1, 3, 8, 16), augment=True)
    with pytest.raises(ValueError, match="8 x 16 pixels, not 8 x 8"):
        backend(torch.rand(1, 3, 8, 8))


def test_detections_as_candidates():
    assert as_candidates(torch.zeros(2, 0, 6), 3).shape == (2, 0, 8)
    rows = torch.tensor([[[10.0, 20, 30, 60, 0.9, 2], [0, 0, 0, 0, 0, 0]]])
    (found,) = non_max_suppression(as_candidates(rows, 3))
    assert torch.allclose(found, rows[0, :1])


def test_tools_that_are_missing():
    assert is_there("torch.nn") and not is_there("no_such_package.part")
    with pytest.raises(ValueError, match="--this needs the package no_such_package, which is not installed: pip"):
        need("no_such_package.part", "--this")


@pytest.mark.parametrize(
    "name",
    ["a.torchscript", "a.pt2", "a.onnx", "a_openvino_model", "a.xml", "a.pte", "a.tflite"],
)
def test_damaged_files_are_one_line(tmp_path, name):
    tools = {"a.onnx": "onnxruntime", "a_openvino_model": "openvino", "a.xml": "openvino"}
    tools |= {"a.pte": "executorch", "a.tflite": "ai_edge_litert"}
    if name in tools and not is_there(tools[name]):
        pytest.skip(f"{name} needs {tools[name]}, which is not installed")
    file = tmp_path / name
    file.mkdir() if name.endswith("_model") else file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=name.replace(".", r"\.")) as caught:
        DetectMultiBackend(file, trust=True)
    assert "\n" not in str(caught.value)


def test_torchscript_of_v61(tmp_path):
    """Traced with the raw maps behind the predictions, and shape, stride and names in config.txt."""
    model = known_model().fuse()
    notes = {"config.txt": json.dumps({"shape": [1, 3, 64, 64], "stride": 32, "names": NAMES})}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(model, torch.zeros(1, 3, 64, 64), strict=False).save(
            str(tmp_path / "a.torchscript"), _extra_files=notes
        )
    backend = DetectMultiBackend(tmp_path / "a.torchscript", trust=True)
    assert backend.names == NAMES and backend.shape == (64, 64) and backend.picture_size(640) == (64, 64)
    with torch.no_grad():
        assert torch.allclose(backend(torch.zeros(2, 3, 64, 64)), model(torch.zeros(2, 3, 64, 64))[0], atol=1e-3)


def test_onnx_of_v61(tmp_path):
    """No metadata, four outputs of which the first counts: names come from the data set."""
    onnx = pytest.importorskip("onnx", reason="needs onnx, which is not installed")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime, which is not installed")
    sides = [1, 3, "height", "width"]
    given = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, sides)
    kinds = {"output": ["images", "rows", 64], "345": sides}
    outputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, kind) for name, kind in kinds.items()]
    rows = onnx.helper.make_tensor("rows", onnx.TensorProto.INT64, (3,), [0, -1, 64])
    nodes = [onnx.helper.make_node("Reshape", ["images", "rows"], ["output"])]
    nodes.append(onnx.helper.make_node("Identity", ["images"], ["345"]))
    graph = onnx.helper.make_graph(nodes, "v6.1", [given], outputs, [rows])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 12)], ir_version=8)
    onnx.save(model, tmp_path / "a.onnx")
    (tmp_path / "data.yaml").write_text("names: {0: a, 1: b}")
    backend = DetectMultiBackend(tmp_path / "a.onnx", data=tmp_path / "data.yaml")
    pictures = torch.rand(2, 3, 32, 64)
    assert backend.names == ["a", "b"] and backend.shape is None and backend.stride == 32
    assert torch.equal(backend(pictures), pictures.flatten(1, 2))


class Failing(ExportedBackend):
    """Returns or raises what it is given."""

    def run(self, images):
        if isinstance(self.model, Exception):
            raise self.model
        return self.model


@pytest.mark.parametrize(
    "found, match",
    [
        (torch.zeros(2, 10, 7), None),
        (torch.zeros(2, 0, 7), None),
        (torch.zeros(1, 10, 7), "returns 1 x 10 x 7 for 2 pictures"),
        (torch.zeros(70), "returns 70 for 2 pictures"),
        (torch.tensor(0.0), "returns no table"),
        ([], "returns no table"),
        (RuntimeError("node '\033[31m\n' fails"), r"cannot be run \(node '\\x1b\[31m\\n' fails\)"),
        (TypeError(), "cannot be run .TypeError"),
        (ValueError("one line"), "^one line$"),
    ],
)
def test_what_a_file_returns_is_looked_at(tmp_path, found, match):
    backend = Failing(tmp_path / "a.onnx", Facts(("a", "b")), torch.device("cpu"), found)
    if match is None:
        assert torch.equal(backend(torch.rand(2, 3, 8, 8))[0], found)
        return
    with pytest.raises(ValueError, match=match) as caught:
        backend(torch.rand(2, 3, 8, 8))
    assert str(caught.value).isprintable()


def test_detections_have_six_columns(tmp_path):
    for found in (torch.zeros(1, 4, 7), torch.zeros(1, 6)):
        with pytest.raises(ValueError, match="for 1 pictures"):
            Failing(tmp_path / "a.onnx", Facts(("a",), nms=True), torch.device("cpu"), found)(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize("names", ["5", "null", "2024-01-01", "abc"])
def test_names_of_a_data_set_are_a_list(tmp_path, names):
    (tmp_path / "data.yaml").write_text(f"names: {names}")
    with pytest.raises(ValueError, match=r"data\.yaml: names must be a list"):
        _names_from(tmp_path / "data.yaml")


def test_names_of_weights_are_shown_as_escapes(tmp_path, weights):
    content = load_checkpoint(weights)
    content["model"]["state_dict"]["\033[31m"] = torch.zeros(1)
    save_checkpoint(tmp_path / "a.pt", content)
    with pytest.raises(ValueError, match="do not fit its description") as caught:
        DetectMultiBackend(tmp_path / "a.pt")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("shape", [(), (3, 8, 8), (1, 17, 8, 8), (1, 3, 1 << 40, 8), (1, 3, "\033[31m", 1 << 40)])
def test_inputs_that_are_no_images_are_one_line(shape):
    with pytest.raises(ValueError, match=r"a\.onnx: its input is .*, not images of 3 colours") as caught:
        with_shape(Facts(), shape, "a.onnx")
    assert str(caught.value).isprintable()


def test_an_onnx_file_prints_nothing_of_its_own(tmp_path, capfd):
    """Names in it are anybody's, and the runtimes would print them as they are."""
    onnx = pytest.importorskip("onnx", reason="needs onnx, which is not installed")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime, which is not installed")
    given = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [1, 3, 64, 64])
    output = onnx.helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, None)
    size = onnx.helper.make_tensor("size", onnx.TensorProto.INT64, (3,), [1, 10, 7])
    node = onnx.helper.make_node("Reshape", ["images", "size"], ["output"], name="\033[31m\nq")
    graph = onnx.helper.make_graph([node], "g", [given], [output], [size])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "a.onnx")
    for dnn in (False, True):
        with pytest.raises(ValueError, match="cannot (be )?run") as caught:
            DetectMultiBackend(tmp_path / "a.onnx", dnn=dnn)(torch.zeros(1, 3, 64, 64))
        assert str(caught.value).isprintable()
    assert capfd.readouterr() == ("", "")


def test_weights_are_files(tmp_path):
    os.mkfifo(tmp_path / "a.onnx")
    (tmp_path / "b.pt").symlink_to("/dev/zero")
    for name in ("a.onnx", "b.pt"):
        with pytest.raises(ValueError, match="is a pipe or device, not a file"):
            DetectMultiBackend(tmp_path / name)
