"""Checkpoints: nothing they say is run, nothing is lost while writing, and mistakes are told in one line."""

import os
import pathlib
import pickle
import shutil
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


def test_an_empty_mapping_is_a_checkpoint(tmp_path):
    save_checkpoint(tmp_path / "a.pt", {})
    assert load_checkpoint(tmp_path / "a.pt") == {"format": FORMAT}


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
    save_checkpoint(tmp_path / "a.pt", {"epoch": 1})
    with pytest.raises(ValueError, match=r"checkpoint\.options\.model: Linear is neither"):
        save_checkpoint(tmp_path / "a.pt", {"options": {"model": nn.Linear(1, 1)}})
    assert load_checkpoint(tmp_path / "a.pt")["epoch"] == 1


@pytest.mark.parametrize("failing", ["torch.save", "os.fsync", "os.replace"])
def test_a_full_disk_leaves_the_earlier_file(tmp_path, monkeypatch, failing):
    save_checkpoint(tmp_path / "last.pt", {"epoch": 1})

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(failing, full)
    with pytest.raises(OSError, match=r"No space left on device.*; the earlier last\.pt is unchanged"):
        save_checkpoint(tmp_path / "last.pt", {"epoch": 2})
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "last.pt")["epoch"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_an_interrupt_while_writing_leaves_no_trace(tmp_path, monkeypatch):
    def interrupted(content, file):
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path / "last.pt", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_really_full_device(tmp_path, monkeypatch):
    monkeypatch.setattr("secrets.token_hex", lambda length: "here")
    (tmp_path / ".a.pt.here.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="could not be written"):
        save_checkpoint(tmp_path / "a.pt", {"weight": torch.zeros(100_000)})
    assert not list(tmp_path.iterdir())


def test_the_folder_must_exist(tmp_path):
    with pytest.raises(OSError, match="could not be written"):
        save_checkpoint(tmp_path / "nowhere" / "a.pt", {})


@pytest.mark.parametrize(
    "attack, name",
    [
        (Attack(os.system, "exit 1"), "system"),
        (Attack(eval, "TRACES.append(1)"), "eval"),
        (Attack(shutil.rmtree, "x"), "rmtree"),
        (Attack(pickle.loads, b""), "loads"),
        (Sly(1, 1, 1), "Sly"),
    ],
)
def test_code_is_refused_by_name(tmp_path, attack, name):
    torch.save({"epoch": 1, "model": attack}, tmp_path / "evil.pt")
    text = error_of(tmp_path / "evil.pt")
    assert "refused" in text and name in text and "state_dict()" in text
    assert not TRACES


def test_allowed_classes_are_not_built_either(tmp_path, monkeypatch):
    """Even a class on the list is represented: neither its constructor nor its `__setstate__` runs."""
    torch.save({"model": nn.Sequential(nn.Conv2d(1, 1, 1))}, tmp_path / "a.pt")
    monkeypatch.setattr(nn.Conv2d, "__setstate__", lambda self, state: TRACES.append("ran"))
    state = load_checkpoint(tmp_path / "a.pt")["model"]["state_dict"]
    assert set(state) == {"0.weight", "0.bias"} and not TRACES


def test_methods_in_a_pickle_are_never_called(tmp_path):
    model = nn.Conv2d(1, 1, 1)
    model.__dict__["state_dict"] = "no method at all"
    torch.save({"model": model}, tmp_path / "a.pt")
    assert torch.equal(load_checkpoint(tmp_path / "a.pt")["model"]["state_dict"]["weight"], model.weight)


def test_further_classes_can_be_allowed(tmp_path):
    torch.save({"model": nn.Bilinear(1, 1, 1)}, tmp_path / "a.pt")
    assert "torch.nn.modules.linear.Bilinear" in error_of(tmp_path / "a.pt")
    content = load_checkpoint(tmp_path / "a.pt", classes=["torch.nn.modules.linear.Bilinear"])
    assert content["model"]["classes"] == {"": "torch.nn.modules.linear.Bilinear"}
    assert "Bilinear" in error_of(tmp_path / "a.pt"), "and only for that one call"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"", b"no checkpoint, just words", pickle.dumps({"a": 1}), b"PK\x03\x04"])
def test_foreign_files(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    assert "damaged" in error_of(tmp_path / "a.pt")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_truncated_files(tmp_path, share):
    save_checkpoint(tmp_path / "a.pt", {"weight": torch.zeros(1000)})
    whole = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(whole[: int(len(whole) * share)])
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


def test_numpy_objects_are_not_read(tmp_path):
    torch.save({"a": np.array([{}], dtype=object)}, tmp_path / "a.pt")
    assert "only plain numbers" in error_of(tmp_path / "a.pt")


def test_describing_a_model_copies_it():
    model = small_model()
    description = describe_model(model)
    nn.init.zeros_(model[0].weight)
    assert description["state_dict"]["0.weight"].any() and description["names"] == ["a", "b"]
    assert description["stride"] == [8.0] and type(description["hyp"]["box"]) is float


def test_a_pickled_model_is_described_likewise(tmp_path):
    model = small_model()
    model[0].register_buffer("anchor_grid", torch.zeros(1))
    model[0].register_buffer("passing", torch.zeros(1), persistent=False)
    torch.save({"model": model}, tmp_path / "a.pt")
    found, expected = load_checkpoint(tmp_path / "a.pt")["model"], describe_model(small_model())
    assert {key: found[key] for key in ("yaml", "nc", "stride", "hyp", "inplace")} == {
        key: expected[key] for key in ("yaml", "nc", "stride", "hyp", "inplace")
    }
    assert found["state_dict"].keys() == expected["state_dict"].keys()
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


def test_there_must_be_a_model_to_strip(tmp_path):
    save_checkpoint(tmp_path / "a.pt", {"epoch": 1})
    with pytest.raises(ValueError, match="holds no model to strip"):
        strip_optimizer(tmp_path / "a.pt")


def test_namespaces_are_not_guessed_at(tmp_path):
    with pytest.raises(ValueError, match="SimpleNamespace"):
        save_checkpoint(tmp_path / "a.pt", {"opt": SimpleNamespace(a=1)})


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


def test_a_checkpoint_that_was_zipped_again_is_the_same(good):
    assert load_checkpoint(rezipped(good))["weight"].shape == (1000,)


def test_compressed_parts_could_be_bombs(good):
    assert "compressed" in error_of(rezipped(good, zipfile.ZIP_DEFLATED))


def test_parts_of_one_name_could_be_read_one_way_and_another(good):
    with zipfile.ZipFile(good, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(archive.namelist()[0], b"N.")
    assert "two parts have the same name" in error_of(good)
    save_checkpoint(good, {"weight": torch.zeros(1000)})
    with zipfile.ZipFile(good, "a") as archive:
        archive.writestr(archive.namelist()[0].upper(), b"N.")
    assert "two parts have the same name" in error_of(good), "PyTorch does not tell large letters from small ones"


def test_numbers_that_are_not_there(good):
    assert "more than the file" in error_of(rezipped(good, data__0=bytes(3999)))
    save_checkpoint(good, {"weight": torch.zeros(1000)})
    assert "more than the file" in error_of(rezipped(good, data__0=None))


def test_a_huge_pickle_is_not_followed(good, monkeypatch):
    monkeypatch.setattr(checkpoint, "MAX_PICKLE", 10)
    assert "no pickle of at most" in error_of(good)


def test_a_torchscript_archive_is_named(tmp_path):
    torch.jit.script(nn.ReLU()).save(tmp_path / "a.pt")
    assert "a TorchScript archive" in error_of(tmp_path / "a.pt")


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
@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(1 << 20, 1 << 20),
        torch.zeros(2, 2).to_sparse(),
        torch.zeros(2, device="meta"),
    ],
    ids=["repeated", "sparse", "without numbers"],
)
def test_only_plain_tensors_are_read(tmp_path, tensor):
    torch.save({"a": tensor}, tmp_path / "a.pt")
    text = error_of(tmp_path / "a.pt")
    assert "tensor" in text or "refused" in text


def test_a_small_tensor_may_repeat_its_numbers(tmp_path):
    torch.save({"a": torch.ones(1).expand(3, 4)}, tmp_path / "a.pt")
    assert load_checkpoint(tmp_path / "a.pt")["a"].tolist() == [[1.0] * 4] * 3


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
