"""Weights as safetensors: the same detector, from a file that is only numbers and text."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import pytest
import torch

from models.experimental import attempt_load
from models.yolo import Model
from utils.checkpoints.checkpoint import describe_model, load_checkpoint, strip_optimizer
from utils.checkpoints.safetensors_file import load_safetensors, save_safetensors

pytest.importorskip("safetensors")


@pytest.fixture
def file(tmp_path: Path, tiny_cfg: Path) -> Path:
    """A tiny model with routing attention."""
    model = Model(tiny_cfg, verbose=False).eval()
    model.names = ["red", "蓝"]
    save_safetensors(path := tmp_path / "a.safetensors", {"epoch": -1, "model": describe_model(model), "imgsz": 96})
    return path


def test_it_loads_wherever_a_checkpoint_does(file: Path) -> None:
    content, model = load_checkpoint(file), attempt_load(file, fuse=False)
    assert (content["epoch"], model.imgsz, model.names) == (-1, 96, ["red", "蓝"])
    state = model.state_dict()
    assert content["model"]["state_dict"].keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in content["model"]["state_dict"].items())
    before = file.read_bytes()
    strip_optimizer(file)
    assert file.read_bytes() == before and len(list(file.parent.glob("*.safetensors"))) == 1


def header(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def described(checkpoint: str) -> bytes:
    return header(json.dumps({"__metadata__": {"checkpoint": checkpoint}}))


LARGE = '{"w": {"dtype": "F32", "shape": [1099511627776], "data_offsets": [0, 4398046511104]}}'
NONE = [b"", b"PK\3\4", header("{}"), header(LARGE), struct.pack("<Q", 1 << 60)]


@pytest.mark.parametrize("content", [*NONE, *map(described, ("{", "[1]", "[" * 100_000, '{"model": 3}'))], ids=len)
def test_what_is_no_checkpoint_is_one_line(tmp_path: Path, content: bytes) -> None:
    (path := tmp_path / "a.safetensors").write_bytes(content)
    says = r"a\.safetensors: is no checkpoint of this project, or a damaged one [^\n]*$"
    with pytest.raises(ValueError, match=says):
        load_safetensors(path)


def test_every_cut_is_noticed(file: Path) -> None:
    whole = file.read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 97)):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="or a damaged one"):
            load_checkpoint(file)


def test_a_description_without_a_model_is_refused(tmp_path: Path) -> None:
    model = {"yaml": 3, "state_dict": {"w": torch.zeros(2)}}
    save_safetensors(path := tmp_path / "a.safetensors", {"model": model})
    with pytest.raises(ValueError, match="holds no model description"):
        attempt_load(path)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("safetensors", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    (path := tmp_path / "a.safetensors").touch()
    for call in (lambda: load_checkpoint(path), lambda: save_safetensors(path, {})):
        with pytest.raises(ValueError, match="a.safetensors: needs the package safetensors.*: pip install safetensors"):
            call()
