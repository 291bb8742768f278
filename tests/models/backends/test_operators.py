"""Files of torch.export: what ours say is computed, and nothing that a hostile one says is done."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models import backends
from models.backends import ACTS, DetectMultiBackend
from models.backends.metadata import NOTES, Metadata
from models.backends.operators import Graph, Program

CPU = torch.device("cpu")


class Tiny(nn.Module):
    """A little of everything that detectors are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.register_buffer("scale", torch.tensor([2.0, 3.0]), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        count, _, height, width = images.shape
        x = nn.functional.silu(self.norm(self.conv(images)))
        with torch.autocast("cpu", enabled=False):
            values, places = x.flatten(2).topk(2, -1)
        left, right = values.split([1, 1], -1)
        y = torch.cat((left * self.scale[0], right + places[..., :1].float() / (height * width)), -1)
        return torch.where(y > 0, y, -y).reshape(count, -1, 2)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    torch.manual_seed(0)
    model, file = Tiny().eval(), tmp_path_factory.mktemp("program") / "tiny.pt2"
    program = torch.export.export(model, (torch.rand(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, file, extra_files={NOTES: Metadata(("a", "b"), imgsz=(8, 8)).as_json()})
    return file, model


def rewritten(file: Path, place: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """A copy of a program with other parts, by their names below the archive's folder."""
    with zipfile.ZipFile(file) as archive:
        parts = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(parts)
    with zipfile.ZipFile(place, "w") as archive:
        for name, content in parts.items():
            archive.writestr(f"x/{name}", content)
    return place


def edited(name: str, change: Callable[[Any], None]) -> Callable[[dict[str, bytes]], None]:
    """Another content of one of the JSON parts."""

    def edit(parts: dict[str, bytes]) -> None:
        content = json.loads(parts[name])
        change(content)
        parts[name] = json.dumps(content).encode()

    return edit


def in_graph(change: Callable[[Any], None]) -> Callable[[dict[str, bytes]], None]:
    return edited("models/model.json", lambda content: change(content["graph_module"]["graph"]))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_same_numbers(saved: tuple[Path, nn.Module], count: int) -> None:
    assert Graph({"inputs": [], "outputs": [], "nodes": []}, CPU)() == ()
    file, model = saved
    batch = torch.rand(count, 3, 8, 8)
    backend = DetectMultiBackend(file)
    assert backend.names == ["a", "b"] and backend.shape == (8, 8)
    assert torch.allclose(backend(batch), model(batch), atol=1e-6)


def pickled(trace: Path) -> bytes:
    """What unpickles as a command that leaves a trace."""

    class Evil:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {trace}",)

    content = io.BytesIO()
    torch.save({"a": Evil()}, content)
    return content.getvalue()


def renamed(graph: Any, name: str) -> None:
    """The first result has a name that would be a line of the source that PyTorch makes of the graph."""
    text = json.dumps(graph)
    old = graph["nodes"][0]["name"]
    graph.update(json.loads(text.replace(json.dumps(old), json.dumps(name))))


def called(graph: Any, target: str, argument: str) -> None:
    node = {"name": "", "arg": {"as_string": argument}, "kind": 1}
    graph["nodes"].insert(0, {**graph["nodes"][0], "target": target, "inputs": [node]})


def attacks(trace: Path) -> dict[str, tuple[bool, Callable[[dict[str, bytes]], None]]]:
    """Whether the rest of the file still computes, and the attack."""
    code, evil = f"__import__('os').system('touch {trace}')", pickled(trace)

    def objects(kind: str, place: str) -> Callable[[dict[str, bytes]], None]:
        def change(content: Any) -> None:
            next(iter(content["config"].values())).update(path_name=place, use_pickle=True)

        edit = edited(f"data/{kind}/model_{kind}_config.json", change)
        return lambda parts: parts.update({f"data/{kind}/{place}": evil}) or edit(parts)

    def symbols(graph: Any) -> None:
        graph["sym_int_values"] = {key: {"as_expr": {"expr_str": code}} for key in (graph["sym_int_values"] or "x")}

    def call(target: str, argument: str) -> Callable[[dict[str, bytes]], None]:
        return in_graph(lambda graph: called(graph, target, argument))

    return {
        "example inputs": (True, lambda parts: parts.update({"data/sample_inputs/model.pt": evil})),
        "legacy weights": (True, lambda parts: parts.update({"data/weights/model.pt": evil})),
        "pickled weights": (False, objects("weights", "weight_0")),
        "pickled objects": (False, objects("constants", "opaque_obj_0")),
        "expressions": (True, in_graph(symbols)),
        "guards": (True, edited("models/model.json", lambda content: content.update(guards_code=[code]))),
        "names": (True, in_graph(lambda graph: renamed(graph, f"x = {code}\n    y"))),
        "attributes of torch": (False, call("torch.os.system", f"touch {trace}")),
        "operators of files": (False, call("torch.ops.aten.from_file.default", str(trace))),
        "attributes of operators": (False, call("torch.ops.aten.add.__class__", "x")),
        "calls": (False, call("_operator.methodcaller", "x")),
        "code of another model": (False, lambda parts: parts.update({"models/other.json": b"{}"})),
        "a second library": (True, lambda parts: parts.update({"data/aotinductor/model/x.so": b"\x7fELF"})),
    }


@pytest.mark.parametrize("name", attacks(Path("x")))
def test_nothing_is_run(saved: tuple[Path, nn.Module], tmp_path: Path, name: str) -> None:
    trace = tmp_path / "trace"
    computes, attack = attacks(trace)[name]
    file = rewritten(saved[0], tmp_path / "evil.pt2", attack)
    if computes:
        batch = torch.rand(2, 3, 8, 8)
        assert torch.allclose(DetectMultiBackend(file)(batch), saved[1](batch), atol=1e-6)
    else:
        with pytest.raises(ValueError, match="evil.pt2: needs .* give --trust") as caught:
            DetectMultiBackend(file)
        assert "\n" not in str(caught.value)
    assert not trace.exists()


def test_trust_leaves_it_to_pytorch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An operator that is not on the list, in a file that PyTorch reads."""

    class Hyperbolic(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.atanh(images)

    batch = torch.rand(1, 3, 8, 8)
    torch.export.save(torch.export.export(Hyperbolic(), (batch,)), tmp_path / "a.pt2")
    with pytest.raises(ValueError, match=r"the operator torch.ops.aten.atanh.default.*--trust"):
        DetectMultiBackend(tmp_path / "a.pt2")
    assert torch.equal(DetectMultiBackend(tmp_path / "a.pt2", trust=True)(batch), batch.atanh())
    assert "a.pt2 needs the operator torch.ops.aten.atanh.default" in caplog.text


@pytest.mark.parametrize("kind", [*ACTS, ".tflite"])
def test_other_kinds_ask_first(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "is_there", lambda module: module != "ai_edge_litert")  # TensorFlow would read it
    (tmp_path / f"best{kind}").write_bytes(b"")
    with pytest.raises(ValueError, match=rf"best\{kind}: is an? .*, (with )?which .*--trust") as caught:
        DetectMultiBackend(tmp_path / f"best{kind}")
    assert "\n" not in str(caught.value)


def signed(which: str, kind: str) -> Callable[[dict[str, bytes]], None]:
    def change(content: Any) -> None:
        content["graph_module"]["signature"][which].append({kind: {}})

    return edited("models/model.json", change)


def first_argument(value: Any) -> Callable[[dict[str, bytes]], None]:
    return in_graph(lambda graph: graph["nodes"][0]["inputs"][0].update(arg=value))


TWO = [{"as_tensor": {"name": "a"}}, {"as_tensor": {"name": "b"}}]


@pytest.mark.parametrize("change, message", [
    (lambda parts: parts.update({"models/model.json": b"[" * 99999}), "is no exported program, or a damaged one"),
    (lambda parts: parts.update({"models/model.json": b"[]"}), "is no exported program"),
    (lambda parts: parts.pop("data/weights/weight_0"), "is no exported program"),
    (lambda parts: parts.update({"data/weights/weight_0": b"123"}), "is no exported program"),
    (lambda parts: parts.update({"data/weights/weight_0": b""}), "is no exported program"),
    (in_graph(lambda graph: graph["nodes"].pop(0)), "cannot be run"),
    (in_graph(lambda graph: graph["nodes"][0].update(inputs=[])), "cannot be run"),
    (in_graph(lambda graph: graph["nodes"][-1].update(outputs=TWO)), "cannot be run"),
    (in_graph(lambda graph: graph["nodes"][0].update(target="torch.ops.aten.zeros.default")), "cannot be run"),
    (in_graph(lambda graph: graph.update(inputs=graph["inputs"][1:])), "cannot be run"),
    (in_graph(lambda graph: graph["inputs"].append({"as_custom_obj": {}})), "input or output that is no tensor"),
    (in_graph(lambda graph: graph["nodes"][0].update(outputs=[{"as_graph": {}}])), "output of the kind"),
    (first_argument({"as_operator": "x"}), "argument of the kind"),
    (first_argument({"as_scalar_type": 99}), "argument of the kind"),
    (first_argument({"as_sym_int": {"as_expr": "x"}}), "number of the kind"),
    (signed("input_specs", "user_input"), "another signature"),
    (signed("output_specs", "mutation"), "another signature"),
    (signed("input_specs", "custom_obj"), "input of the kind"),
])  # fmt: skip
def test_damaged_programs_and_what_is_not_listed(saved: Any, tmp_path: Path, change: Any, message: str) -> None:
    file = rewritten(saved[0], tmp_path / "odd.pt2", change)
    with pytest.raises(ValueError, match=rf"odd\.pt2: .*{message}") as caught:
        DetectMultiBackend(file)(torch.rand(1, 3, 8, 8))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target, given", [
    ("_operator.mul", [1 << 40, 1 << 40]), ("_operator.add", ["a", "b"]), ("_operator.mul", [[1], 1 << 40]),
])  # fmt: skip
def test_sizes_are_numbers_of_a_size(saved: tuple[Path, nn.Module], tmp_path: Path, target: str, given: list) -> None:
    kinds = {int: "as_int", str: "as_string", list: "as_ints"}
    inputs = [{"name": "", "arg": {kinds[type(value)]: value}, "kind": 1} for value in given]
    node = {"target": target, "inputs": inputs, "outputs": [{"as_sym_int": {"as_name": "n"}}], "metadata": {}}
    change = in_graph(lambda graph: graph["nodes"].insert(0, node))
    program = Program(rewritten(saved[0], tmp_path / "odd.pt2", change), CPU)
    with pytest.raises(ValueError, match="a size"):
        program(torch.rand(1, 3, 8, 8))
