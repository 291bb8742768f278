"""The comparison of formats, with replaced tools and with val.py itself."""

from __future__ import annotations

import csv
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

import val
from benchmarks import formats
from benchmarks.formats import PYTORCH, FormatOptions, Outcome, Tools, compare, complete, main, plot, tabulate
from models.backends import DetectMultiBackend
from models.yolo import Model
from utils.checkpoints.checkpoint import describe_model, save_checkpoint

SECONDS = {".pt": 0.004, ".onnx": 0.002, ".folder": 0.008}
KNOWN = ("onnx", "folder", "engine", "broken", "mute", "silent", "mac", "wrong")


def fake_export(weights: str, include: list[str], **settings: Any) -> list[Path]:
    """Some formats work; the others fail in one of the ways there are."""
    (name,) = include
    assert settings == {"data": "shapes.yaml", "imgsz": [64, 64], "batch_size": 2, "device": "cpu"}
    if name == "engine":
        raise ValueError("engine needs TensorRT:\npip install tensorrt")
    if name == "silent":
        return []
    if name == "wrong":
        raise RuntimeError("boxes differ by 7 pixels")
    target = Path(weights).with_suffix(f".{name}")
    if name == "folder":
        target.mkdir()
        (target / "inner").mkdir()
        (target / "inner/a.bin").write_bytes(b"0" * 3_000_000)
    else:
        target.write_bytes(b"0" * 500_000)
    return [target]


def fake_score(weights: str, **settings: Any) -> tuple[tuple[float, ...], list[float], tuple[float, ...]]:
    assert settings["data"] == "shapes.yaml" and settings["imgsz"] == 64 and settings["batch_size"] == 2
    assert settings["task"] == "benchmark" and settings["project"] == str(Path(weights).parent)
    if weights.endswith(".broken"):
        raise RuntimeError("the runtime says\nno")
    if weights.endswith(".mac"):
        raise ValueError("runs on a Mac only")
    worth = {".pt": 0.5, ".onnx": 0.4999}.get(Path(weights).suffix, 0.48)
    return (0, 0, 0, worth, 0, 0, 0), [], (0, 0, 0)


def fake_open(file: Path, device: str) -> Callable[[torch.Tensor], object]:
    if file.suffix == ".mute":
        raise OSError(5, "Input/output error", str(file))

    def run(batch: torch.Tensor) -> None:
        assert batch.shape == (2, 3, 64, 64)
        time.sleep(SECONDS[file.suffix])

    return run


FAKES = Tools(KNOWN, fake_export, fake_score, fake_open)


@pytest.fixture
def opt(tmp_path: Path) -> FormatOptions:
    weights = tmp_path / "given/best.pt"
    weights.parent.mkdir()
    weights.write_bytes(b"0" * 2_000_000)
    return FormatOptions(str(weights), imgsz=64, batch_size=2, rounds=5, project=str(tmp_path / "runs"))


# ---- nothing
def test_an_empty_table_has_no_plot(tmp_path: Path) -> None:
    table = tabulate([Outcome(PYTORCH)], 1)
    assert table.rows == [dict.fromkeys(table.widths) | {"format": PYTORCH, "note": ""}]
    assert plot(table, tmp_path / "none.png") is None and not list(tmp_path.iterdir())


# ---- options
@pytest.mark.parametrize(
    "given, words",
    [
        ({"weights": ""}, "--weights"),
        ({"weights": "nowhere.pt"}, "nowhere.pt"),
        ({"imgsz": 100}, "--imgsz 100"),
        ({"imgsz": -32}, "multiple of 32"),
        ({"batch_size": 0}, "--batch-size"),
        ({"rounds": 0}, "--rounds"),
        ({"seconds": 0.0}, "--seconds"),
        ({"include": ["onxx"]}, "did you mean 'onnx'"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    opt: FormatOptions, tmp_path: Path, given: dict[str, Any], words: str
) -> None:
    for name, value in given.items():
        setattr(opt, name, value)
    with pytest.raises(ValueError, match=words) as caught:
        compare(opt, FAKES)
    assert "\n" not in str(caught.value) and not (tmp_path / "runs").exists()


def test_what_is_not_given_is_that_of_the_training(tmp_path: Path) -> None:
    run = tmp_path / "exp"
    (run / "weights").mkdir(parents=True)
    (run / "weights/best.pt").touch()
    opt = FormatOptions(str(run / "weights/best.pt"))
    assert (complete(opt, KNOWN).imgsz, complete(opt, KNOWN).data) == (640, "shapes.yaml")
    (run / "opt.yaml").write_text("imgsz: 96\ndata: mine.yaml\n")
    filled = complete(opt, KNOWN)
    assert (filled.imgsz, filled.data, filled.include) == (96, "mine.yaml", list(KNOWN))
    assert complete(FormatOptions(opt.weights, "x.yaml", 32, include=["onnx"]), KNOWN).include == ["onnx"]


# ---- with replaced tools
def test_every_format_has_its_row(opt: FormatOptions, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes, folder = compare(opt, FAKES)
    found = {outcome.format: outcome for outcome in outcomes}
    assert list(found) == [PYTORCH, *KNOWN]
    assert found["engine"].note == "skipped: engine needs TensorRT: pip install tensorrt"
    assert found["silent"].note == "skipped: the export wrote nothing"
    assert found["mac"].note == "not run: runs on a Mac only" and found["mac"].megabytes == 0.5
    assert found["wrong"].note == "failed: boxes differ by 7 pixels" and found["wrong"].megabytes is None
    assert found["broken"].note == "failed: the runtime says no"
    assert found["mute"].note.startswith("failed: ") and "mute: Input/output error" in found["mute"].note
    assert [found[name].megabytes for name in (PYTORCH, "onnx", "folder", "engine")] == [2, 0.5, 3, None]
    assert [len(found[name].seconds) for name in (PYTORCH, "onnx", "folder", "broken", "mute")] == [5, 5, 5, 0, 0]
    with open(folder / "formats.csv", encoding="utf-8") as file:
        rows = {row["format"]: row for row in csv.DictReader(line for line in file if line[0] != "#")}
    assert list(rows) == [PYTORCH, *KNOWN] and rows["engine"]["ms"] == ""
    assert (rows[PYTORCH]["mAP50-95"], rows["onnx"]["mAP50-95"], rows["folder"]["mAP50-95"]) == (
        "0.5",
        "0.4999",
        "0.48",
    )
    batch = statistics.median(found[PYTORCH].seconds)  # of two images, which take 4 ms or more
    assert batch > 0.003 and float(rows[PYTORCH]["ms"]) == pytest.approx(1000 * batch / 2, rel=1e-3)
    assert float(rows[PYTORCH]["faster"]) == 1
    assert float(rows["onnx"]["faster"]) > 1 > float(rows["folder"]["faster"])
    text = (folder / "formats.md").read_text(encoding="utf-8")
    assert "best.pt, 64 px, 2 at a time, 5 rounds in turns; mAP on shapes.yaml" in text and "| skipped: engine" in text
    assert "skipped: engine needs TensorRT" in capsys.readouterr().out
    picture = cv2.imread(str(folder / "formats.png"))
    assert picture is not None and (picture < 200).any()
    assert [path.name for path in Path(opt.weights).parent.iterdir()] == ["best.pt"]  # nothing beside the user's


def test_a_wrong_baseline_ends_it(opt: FormatOptions) -> None:
    def refuse(**given: Any) -> Any:
        raise ValueError("the data does not fit")

    with pytest.raises(ValueError, match="does not fit"):
        compare(opt, Tools(KNOWN, fake_export, refuse, fake_open))


def test_mistakes_of_ours_are_not_hidden(opt: FormatOptions) -> None:
    def wrong(**given: Any) -> Any:
        raise TypeError("a mistake in the exporter")

    with pytest.raises(TypeError):
        compare(opt, Tools(KNOWN, wrong, fake_score, fake_open))


@pytest.mark.parametrize("include, status", [(["engine", "mac"], 0), (["broken"], 1), (["wrong"], 1), (["onxx"], 1)])
def test_the_command(opt: FormatOptions, include: list[str], status: int) -> None:
    words = ["--weights", opt.weights, "--img", "64", "--batch", "2", "--rounds", "1", "--project", opt.project]
    assert main([*words, "--include", *include], FAKES) == status


# ---- with val.py
def test_with_val_itself(squares: Path, tiny_cfg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An "export" that is a copy has the mAP of its original."""
    torch.manual_seed(0)
    model = Model(tiny_cfg, verbose=False).eval()
    save_checkpoint(tmp_path / "tiny.pt", {"epoch": -1, "model": describe_model(model), "ema": None})

    def export_copy(weights: str, include: list[str], **settings: Any) -> list[str]:
        return [shutil.copy2(weights, Path(weights).with_name("copy.pt"))]

    def open_file(file: Path, device: str) -> Callable[[torch.Tensor], object]:
        return DetectMultiBackend(file, device=device)

    shapes: set[tuple[int, ...]] = set()
    look = DetectMultiBackend.forward

    def noting(self: DetectMultiBackend, im: torch.Tensor, **settings: Any) -> Any:
        shapes.add(tuple(im.shape))
        return look(self, im, **settings)

    monkeypatch.setattr(DetectMultiBackend, "forward", noting)
    monkeypatch.setattr(formats, "our_tools", lambda: Tools(("copy",), export_copy, val.run, open_file))
    words = f"--weights {tmp_path}/tiny.pt --data {squares} --img 64 --rounds 2 --project {tmp_path}/runs --device cpu"
    assert main(words.split()) == 0
    with open(tmp_path / "runs/exp/formats.csv", encoding="utf-8") as file:
        first, second = csv.DictReader(line for line in file if line[0] != "#")
    assert (first["format"], second["format"]) == (PYTORCH, "copy")
    assert first["mAP50-95"] == second["mAP50-95"] != "" and float(second["ms"]) > 0
    assert shapes == {(1, 3, 64, 64)}  # by itself, val.py would add a border
    assert {"val_PyTorch", "val_copy"} <= {path.name for path in (tmp_path / "runs/exp").iterdir()}
