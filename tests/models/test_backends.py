"""Weights in, predictions out."""

import pytest
import torch

from models import common
from models.backends import BACKENDS, DetectMultiBackend, find_weights
from tests.known_detector import CONFIDENCE, NAMES, by_rows, expected_boxes, known_model, write_weights
from utils.nms import non_max_suppression


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
    assert name in str(caught.value) and set(BACKENDS) == {".pt"}


def test_missing_weights_say_where_they_were_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="nowhere.pt") as caught:
        DetectMultiBackend("nowhere.pt")
    assert str(tmp_path / "nowhere.pt") in str(caught.value) and "\n" not in str(caught.value)
    (tmp_path / "here.pt").touch()
    assert find_weights("here.pt").is_file()


def test_broken_weights_are_one_line(tmp_path):
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="broken.pt") as caught:
        DetectMultiBackend(tmp_path / "broken.pt")
    assert "\n" not in str(caught.value)


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_half_precision_on_a_gpu(weights):
    model = DetectMultiBackend(weights, device="0", fp16=True)
    model.warmup((1, 3, 64, 64))
    with torch.no_grad():
        found = non_max_suppression(model(torch.zeros(1, 3, 32, 32, device=model.device)))
    assert model.fp16 and len(found[0]) == 16
