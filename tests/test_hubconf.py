"""Models by name."""

import inspect
import subprocess
import sys

import pytest
import torch

import hubconf
from models.api.autoshape import AutoShape
from models.yolo import Model
from tests.known_detector import NAMES, write_weights
from utils.base.log import LOGGER
from utils.base.paths import ROOT


@pytest.fixture(autouse=True)
def plain_log():
    """Hub functions set up the logger and its level for good; other tests want it back."""
    before = LOGGER.level, LOGGER.propagate, LOGGER.handlers[:]
    yield
    LOGGER.setLevel(before[0])
    LOGGER.propagate, LOGGER.handlers[:] = before[1:]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "known.pt")


def test_the_models_and_their_parameters():
    for size in "nsmlx":
        for tail in ("", "6", "_BiFormer"):
            entry = getattr(hubconf, f"yolov5{size}{tail}")
            assert entry.__name__ == f"yolov5{size}{tail}" and entry.__name__ in entry.__doc__
            names = list(inspect.signature(entry).parameters)
            assert names == ["pretrained", "channels", "classes", "autoshape", "verbose", "device"]
    assert list(inspect.signature(hubconf.custom).parameters) == ["path", "autoshape", "verbose", "device", "trust"]
    """By its own rule, as torch.hub.list itself looks at GitHub only."""
    entries = [name for name in dir(hubconf) if callable(getattr(hubconf, name)) and not name.startswith("_")]
    sizes = [f"yolov5{size}{tail}" for size in "nsmlx" for tail in ("", "6", "_BiFormer")]
    assert sorted(entries) == sorted(["custom", *sizes])


def test_without_weights_and_missing_ones(monkeypatch, tmp_path):
    model = hubconf.yolov5n(pretrained=False, classes=4, autoshape=False, verbose=False, device="cpu")
    assert isinstance(model, Model) and model.nc == 4 and not model.training
    assert model(torch.zeros(1, 3, 32, 32))[0].shape == (1, 63, 9)
    assert hubconf.yolov5n(False, 1, 2, False, False, "cpu").model[0].conv.in_channels == 1
    assert isinstance(hubconf.yolov5n_BiFormer(pretrained=False, classes=2, verbose=False, device="cpu"), AutoShape)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="yolov5n.pt") as caught:
        hubconf.yolov5n()
    message = str(caught.value)
    assert "YOLOV5_OFFLINE forbids to fetch it" in message and "pretrained=False" in message
    with pytest.raises(ValueError, match="mine.pt"):
        hubconf.custom("mine.pt")
    assert not list(tmp_path.iterdir())


def test_weights_that_fit_in_part(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "yolov5n.pt").write_bytes(weights.read_bytes())
    same = hubconf.yolov5n(classes=3, autoshape=False, verbose=False, device="cpu")
    assert same.names == NAMES and not same.model[-1].m[0].weight.any()  # the known head is empty
    other = hubconf.yolov5n(classes=5, autoshape=False, verbose=False, device="cpu")
    assert other.names == list("01234") and other.model[-1].m[0].weight.any()
    assert torch.equal(other.model[0].conv.weight, same.model[0].conv.weight)
    whole = hubconf.yolov5n(verbose=False, device="cpu")  # as many classes as are in the file
    assert whole.names == NAMES


PROGRAM = """
import sys, numpy, torch
from PIL import Image
model = torch.hub.load(sys.argv[1], "custom", sys.argv[2], source="local", verbose=False, device="cpu")
model.conf, model.classes = 0.5, [1]
red = numpy.zeros((32, 48, 3), numpy.uint8)
Image.fromarray(red).save("red.png")
results = model(["red.png", Image.open("red.png"), red, torch.from_numpy(red).permute(2, 0, 1)], size=48)
results.save(save_dir="out")
print([len(rows) for rows in results.xyxy], results.pandas().xyxy[0].name.unique().tolist(), results[0].files)
"""


def test_a_program_somewhere_else(weights, tmp_path):
    """A fresh process that knows nothing of this repository but where it is."""
    words = [sys.executable, "-W", "error::UserWarning", "-c", PROGRAM, str(ROOT), str(weights)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[32, 32, 32, 32] ['person'] ['red.jpg']"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "image2.jpg", "image3.jpg", "red-2.jpg", "red.jpg",
    ]  # fmt: skip
