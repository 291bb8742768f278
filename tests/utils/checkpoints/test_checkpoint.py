"""Checkpoints: nothing they say is run, nothing is lost while writing, and mistakes are one line."""

import os
import pathlib
import pickle
import shutil
import sys
import zipfile
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from utils.checkpoints import checkpoint
from utils.checkpoints.checkpoint import FORMAT, describe_model, load_checkpoint, save_checkpoint, strip_optimizer

TRACES = []


class Attack:
    """Its pickle says to call a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class Sly(nn.Conv2d):
    """A layer nobody has on a list; its pickle would call `__setstate__`."""

    def __setstate__(self, state):
        TRACES.append("ran")


def error_of(path):
    with pytest.raises(ValueError) as caught:
        load_checkpoint(path)
    text = str(caught.value)
    assert text.startswith(str(path)) and "\n" not in text
    return text


def small_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    model.yaml, model.nc, model.names = {"nc": 2}, 2, {0: "a", 1: "b"}
    model.stride, model.hyp, model.inplace = torch.tensor([8.0]), {"box": np.float64(1)}, True
    return model


def test_what_is_written_is_tensors_and_builtins(tmp_path):
    @dataclass
    class Options:
        name: str
        size: int

    content = {
        "fitness": np.float64(0.5), "count": np.int32(3), "array": np.arange(3.0), "path": pathlib.Path("a/b"),
        "tuple": (1, (2, np.float32(1.5))), "set": {1}, "options": Options("x", 2), "device": torch.device("cpu"),
        "nested": {0: {"weight": nn.Parameter(torch.ones(2))}}, "nothing": None, "flag": True, "dtype": torch.float16,
    }  # fmt: skip
    save_checkpoint(tmp_path / "a.pt", content)
    raw = torch.load(tmp_path / "a.pt", weights_only=True)  # no class is allowed here
    assert raw["fitness"] == 0.5 and type(raw["fitness"]) is float and raw["count"] == 3
    assert torch.equal(raw["array"], torch.tensor([0.0, 1, 2], dtype=torch.float64))
    assert raw["path"] == str(pathlib.Path("a/b")) and raw["options"] == {"name": "x", "size": 2}
    assert raw["tuple"] == (1, (2, 1.5)) and raw["set"] == [1] and raw["device"] == "cpu"
    assert type(raw["nested"][0]["weight"]) is torch.Tensor and raw["dtype"] == "torch.float16"
    assert raw["nothing"] is None and raw["flag"] is True


def test_what_has_no_plain_form_is_named_and_leaves_the_file_alone(tmp_path):
    save_checkpoint(tmp_path / "a.pt", {})
    for value in (nn.Linear(1, 1), SimpleNamespace()):
        with pytest.raises(ValueError, match=rf"checkpoint\.options\.model: {type(value).__name__} is neither"):
            save_checkpoint(tmp_path / "a.pt", {"options": {"model": value}})
    assert load_checkpoint(tmp_path / "a.pt") == {"format": FORMAT}


@pytest.mark.parametrize("failing", ["torch.save", "os.fsync", "os.replace"])
def test_a_full_disk_leaves_the_earlier_file(tmp_path, monkeypatch, failing):
    save_checkpoint(tmp_path / "last.pt", {"epoch": 1})

    def full(*args):
        raise OSError(28, "No space left on device")

    def interrupted(content, file):
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(failing, full)
    with pytest.raises(OSError, match=r"No space left on device.*; the earlier last\.pt is unchanged"):
        save_checkpoint(tmp_path / "last.pt", {"epoch": 2})
    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path / "last.pt", {"epoch": 2})
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "last.pt")["epoch"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


ATTACKS = {"system": Attack(os.system, "exit 1"), "eval": Attack(eval, "TRACES.append(1)"), "Sly": Sly(1, 1, 1)}
ATTACKS |= {"rmtree": Attack(shutil.rmtree, "x"), "loads": Attack(pickle.loads, b"")}


@pytest.mark.parametrize("name", ATTACKS)
def test_code_is_refused_by_name(tmp_path, name):
    torch.save({"epoch": 1, "model": ATTACKS[name]}, tmp_path / "evil.pt")
    text = error_of(tmp_path / "evil.pt")
    assert "refused" in text and name in text and "state_dict()" in text
    assert not TRACES


def test_nothing_of_an_allowed_class_runs(tmp_path, monkeypatch):
    """Even a class on the list is represented: neither its constructor, nor `__setstate__`, nor a method runs."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1))
    model[0].__dict__["state_dict"] = "no method at all"
    torch.save({"model": model}, tmp_path / "a.pt")
    monkeypatch.setattr(nn.Conv2d, "__setstate__", lambda self, state: TRACES.append("ran"))
    state = load_checkpoint(tmp_path / "a.pt")["model"]["state_dict"]
    assert set(state) == {"0.weight", "0.bias"} and torch.equal(state["0.weight"], model[0].weight) and not TRACES


def test_further_classes_can_be_allowed(tmp_path):
    torch.save({"model": nn.Bilinear(1, 1, 1)}, tmp_path / "a.pt")
    assert "torch.nn.modules.linear.Bilinear" in error_of(tmp_path / "a.pt")
    content = load_checkpoint(tmp_path / "a.pt", classes=["torch.nn.modules.linear.Bilinear"])
    assert content["model"]["classes"] == {"": "torch.nn.modules.linear.Bilinear"}
    assert "Bilinear" in error_of(tmp_path / "a.pt"), "and only for that one call"


@pytest.mark.parametrize("name", ["models.attention.QKVLinear", "models.pointwise.PointwiseLinear"])
def test_modules_that_were_pickled_before_their_files_moved_are_read(tmp_path, monkeypatch, name):
    where, _, kind = name.rpartition(".")
    layer = type(kind, (nn.Linear,), {"__module__": where})
    monkeypatch.setitem(sys.modules, where, SimpleNamespace(**{kind: layer}))
    torch.save({"model": layer(1, 2)}, tmp_path / "a.pt")
    assert load_checkpoint(tmp_path / "a.pt")["model"]["classes"] == {"": name}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_foreign_and_truncated_files(tmp_path):
    save_checkpoint(tmp_path / "a.pt", {"weight": torch.zeros(1000)})
    whole = (tmp_path / "a.pt").read_bytes()
    foreign = [b"", b"no checkpoint, just words", pickle.dumps({"a": 1}), b"PK\x03\x04"]
    for content in (*foreign, *(whole[: int(len(whole) * share)] for share in (0.02, 0.5, 0.99))):
        (tmp_path / "a.pt").write_bytes(content)
        assert "damaged" in error_of(tmp_path / "a.pt")


def test_missing_files_folders_and_lists(tmp_path):
    assert "no such checkpoint" in error_of(tmp_path / "a.pt")
    assert "no such checkpoint" in error_of(tmp_path)
    torch.save([1], tmp_path / "list.pt")
    assert "holds list" in error_of(tmp_path / "list.pt")


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "i8", "?", "<f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numpy_values_of_old_checkpoints_are_read(tmp_path, dtype, order):
    array = np.array([[1, 0, 1], [0, 1, 1]], dtype, order=order)
    torch.save({"a": array, "b": [array[0, 0]], "best_fitness": np.array([0.25])}, tmp_path / "a.pt")
    content = load_checkpoint(tmp_path / "a.pt")
    assert content["a"].tolist() == array.tolist() and content["b"] == [1] and content["best_fitness"] == 0.25
    content["a"].zero_()  # and is writable


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "value, says",
    [
        (np.array([{}], dtype=object), "only plain numbers"),
        (torch.zeros(1).expand(1 << 20, 1 << 20), "a tensor that repeats its numbers"),
        (torch.zeros(2, 2).to_sparse(), "refused"),
        (torch.zeros(2, device="meta"), "refused"),
    ],
    ids=["objects", "repeated", "sparse", "without numbers"],
)
def test_only_plain_numbers_are_read(tmp_path, value, says):
    torch.save({"a": value}, tmp_path / "a.pt")
    assert says in error_of(tmp_path / "a.pt")
    torch.save({"a": torch.ones(1).expand(3, 4)}, tmp_path / "a.pt")  # a small tensor may repeat its numbers
    assert load_checkpoint(tmp_path / "a.pt")["a"].tolist() == [[1.0] * 4] * 3


def test_a_model_is_copied_and_a_pickled_one_described_likewise(tmp_path):
    model = small_model()
    expected = describe_model(model)
    assert expected["names"] == ["a", "b"] and expected["stride"] == [8.0] and type(expected["hyp"]["box"]) is float
    model[0].register_buffer("anchor_grid", torch.zeros(1))
    model[0].register_buffer("passing", torch.zeros(1), persistent=False)
    torch.save({"model": model}, tmp_path / "a.pt")
    nn.init.zeros_(model[0].weight)
    found = load_checkpoint(tmp_path / "a.pt")["model"]
    assert all(found[key] == expected[key] for key in ("yaml", "nc", "stride", "hyp", "inplace"))
    assert found["state_dict"].keys() == expected["state_dict"].keys() and expected["state_dict"]["0.weight"].any()
    assert all(torch.equal(value, expected["state_dict"][key]) for key, value in found["state_dict"].items())
    assert found["classes"]["1"] == "torch.nn.modules.batchnorm.BatchNorm2d"


def test_stripping_keeps_the_average_in_half(tmp_path):
    model, average = small_model(), small_model()
    nn.init.constant_(average[0].weight, 3)
    average[1].running_var.fill_(1e6)  # more than half precision holds
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    content = {"epoch": 7, "best_fitness": 0.3, "updates": 9, "optimizer": optimizer.state_dict(), "date": "today"}
    save_checkpoint(tmp_path / "last.pt", {**content, "model": describe_model(model), "ema": describe_model(average)})
    strip_optimizer(tmp_path / "last.pt", tmp_path / "small.pt")
    assert load_checkpoint(tmp_path / "last.pt")["epoch"] == 7
    small = load_checkpoint(tmp_path / "small.pt")
    assert small["epoch"] == -1 and small["date"] == "today"
    assert all(small[key] is None for key in ("ema", "optimizer", "updates", "best_fitness"))
    state = small["model"]["state_dict"]
    assert state["0.weight"].dtype == torch.float16 and (state["0.weight"] == 3).all()
    assert (state["1.running_var"] == 1e6).all() and state["1.num_batches_tracked"].dtype == torch.int64
    strip_optimizer(tmp_path / "last.pt")
    assert load_checkpoint(tmp_path / "last.pt")["epoch"] == -1
    save_checkpoint(tmp_path / "a.pt", {"epoch": 1})
    with pytest.raises(ValueError, match="holds no model to strip"):
        strip_optimizer(tmp_path / "a.pt")


# ---- files that are sound, and mean harm
def rezipped(path, method=zipfile.ZIP_STORED, **changes):
    """A checkpoint with some of its parts changed, dropped (None) or added."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    folder = next(iter(parts)).partition("/")[0]
    parts |= {f"{folder}/{name.replace('__', '/')}": content for name, content in changes.items()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in parts.items():
            if content is not None:
                archive.writestr(name, content)
    return path


@pytest.fixture
def good(tmp_path):
    save_checkpoint(tmp_path / "a.pt", {"weight": torch.zeros(1000)})
    return tmp_path / "a.pt"


def test_a_checkpoint_that_was_zipped_again_is_the_same_but_compressed_parts_could_be_bombs(good):
    assert load_checkpoint(rezipped(good))["weight"].shape == (1000,)
    assert "compressed" in error_of(rezipped(good, zipfile.ZIP_DEFLATED))


def test_numbers_that_are_not_there_and_a_huge_pickle(good, monkeypatch):
    assert "more than the file" in error_of(rezipped(good, data__0=bytes(3999)))
    save_checkpoint(good, {"weight": torch.zeros(1000)})
    assert "more than the file" in error_of(rezipped(good, data__0=None))
    monkeypatch.setattr(checkpoint, "MAX_PICKLE", 10)
    assert "no pickle of at most" in error_of(good)
    torch.jit.script(nn.ReLU()).save(good)
    assert "a TorchScript archive" in error_of(good)


def test_the_format_before_pytorch_1_6_is_read(tmp_path):
    content = {"model": {"weight": torch.arange(3.0), "again": torch.arange(6.0)[::2]}, "epoch": 3}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    found = load_checkpoint(tmp_path / "a.pt")
    assert found["epoch"] == 3 and found["model"]["weight"].tolist() == [0, 1, 2]
    assert found["model"]["again"].tolist() == [0, 2, 4]
    whole = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(whole[:-30])
    assert "damaged" in error_of(tmp_path / "a.pt")


@pytest.mark.timeout(30)
def test_a_pickled_model_cannot_have_strides_without_end(tmp_path):
    model = nn.Conv2d(1, 1, 1)
    model.stride = torch.zeros(1).expand(1 << 40)
    torch.save({"model": model}, tmp_path / "a.pt")
    assert "strides" in error_of(tmp_path / "a.pt")


@pytest.mark.timeout(30)
@pytest.mark.parametrize("legacy", [False, True])
def test_sharing_cannot_multiply(tmp_path, legacy):
    value = [1]
    for _ in range(60):
        value = [value, value]
    torch.save({"a": value}, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    assert "shares parts again and again" in error_of(tmp_path / "a.pt")
