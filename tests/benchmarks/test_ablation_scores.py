"""One ruler for all: the scores are val.py's, sizes are those on disk and in the input, peers are asked by lines."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import val
from benchmarks import ablation_scores
from benchmarks.ablation_scores import BY_SIZE, DETECTIONS, SCORED, costs_of, main, own_detections, score
from tests.known_detector import CONFIDENCE, NAMES, write_weights
from utils.base.config import DataConfig

PEER = """
import json, sys
print(json.dumps({"GFLOPs": 2.0, "asked": sys.argv[1:]}), flush=True)
for line in sys.stdin:
    print(flush=True)
"""


def write_data(folder: Path, images: dict[str, tuple[int, int, list[tuple[float, ...]]]]) -> Path:
    """Grey images of width and height with labels: class, centre, width and height in their pixels."""
    for place in ("images", "labels"):
        (folder / place).mkdir()
    for name, (width, height, boxes) in images.items():
        cv2.imwrite(str(folder / f"images/{name}.png"), np.full((height, width, 3), 114, np.uint8))
        size = np.array((1, width, height, width, height))
        np.savetxt(folder / f"labels/{name}.txt", np.array(boxes).reshape(-1, 5) / size, "%.9f")
    file = folder / "data.yaml"
    file.write_text(f"train: images\nval: images\nnames: {json.dumps(NAMES)}\n", encoding="utf-8")
    return file


def test_nothing_found_is_nothing_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = DataConfig.load(write_data(tmp_path, {"a": (64, 64, [(0, 20, 20, 8, 8)]), "b": (64, 64, [])}))
    scores = score({}, data, 64)
    assert scores["mAP50"] == scores["small"] == 0 and math.isnan(scores["large"])
    assert "2 of 2 images were not looked at" in capsys.readouterr().out
    with pytest.raises(ValueError, match="1 images with detections are not in .*data.yaml, such as .*c.png"):
        score({"c.png": torch.zeros(0, 6)}, data, 64)


def test_sizes_on_disk_and_as_the_network_sees_them(tmp_path: Path) -> None:
    """640 pixels become 320, and 100 become 320 too: 40 pixels are small there and 20 medium, the other way on disk."""
    images = {"wide": (640, 480, [(0, 100, 100, 40, 40)]), "tiny": (100, 60, [(1, 50, 30, 20, 20)])}
    data = DataConfig.load(write_data(tmp_path, images))
    right = torch.tensor([[80.0, 80, 120, 120, 0.9, 0]])
    wrong = torch.tensor([[0.0, 0, 20, 20, 0.9, 1]])
    scores = score({str(tmp_path / "images/wide.png"): right, str(tmp_path / "images/tiny.png"): wrong}, data, 320)
    found = {name: scores[name] for name in BY_SIZE}
    expected = {"small": 0, "medium": 100, "small seen": 100, "medium seen": 0}
    assert found == pytest.approx(expected | {"large": math.nan, "large seen": math.nan}, nan_ok=True)
    assert scores["mAP50-95"] == pytest.approx(50, abs=0.5)
    merged = torch.tensor([[40.0, 20, 60, 40, 0.9, 0]])  # of class 1
    found = {str(tmp_path / "images/tiny.png"): merged, str(tmp_path / "images/wide.png"): right}
    assert score(found, data, 320, single_cls=True)["mAP50-95"] == pytest.approx(99.5, abs=0.6)
    assert score(found, data, 320)["mAP50-95"] < 30  # otherwise it is a wrong one of class 0


def test_scores_of_our_weights_are_those_of_val(tmp_path: Path) -> None:
    weights = tmp_path / "run/weights/best.pt"
    weights.parent.mkdir(parents=True)
    write_weights(weights)
    boxes = [(1, 12, 12, 10, 13), (1, 28, 20, 9, 11), (1, 20, 50, 10, 13), (0, 44, 44, 10, 13)]
    data = write_data(tmp_path, {"a": (64, 64, boxes), "b": (64, 32, boxes[:2]), "c": (64, 64, [])})
    options = {"data": str(data), "imgsz": 64, "device": "cpu", "iou_thres": 0.3}
    found = own_detections(weights, options)
    assert len(found) == 3 and all(float(rows[:, 4].max()) == pytest.approx(CONFIDENCE) for rows in found.values())
    expected = val.run(weights=[str(weights)], workers=0, project=str(tmp_path / "val"), **options)[0]
    scores = score(found, DataConfig.load(data), 64)
    assert 1 < scores["mAP50"] < 99
    assert (scores["mAP50"], scores["mAP50-95"]) == pytest.approx((100 * expected[2], 100 * expected[3]), abs=1e-4)
    torch.save(found, tmp_path / "run" / DETECTIONS)  # as of a peer; then no weights are needed
    weights.unlink()
    main({"folder": str(tmp_path / "run"), "data": str(data), "imgsz": 64})
    stored = json.loads((tmp_path / "run" / SCORED).read_text(encoding="utf-8"))
    assert stored == pytest.approx(scores, nan_ok=True)


def test_costs_of_ours_and_of_a_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert costs_of({}) == {}
    monkeypatch.setattr(ablation_scores, "PEER", tmp_path / "peer.py")
    (tmp_path / "peer.py").write_text(PEER)
    (tmp_path / "weights").mkdir()
    write_weights(tmp_path / "weights/best.pt")
    threads = torch.get_num_threads()
    costs = costs_of({"ours": (tmp_path, 64, ""), "peer": (tmp_path, 96, sys.executable)}, rounds=3)
    assert torch.get_num_threads() == threads
    assert costs["ours"]["M parameters"] == pytest.approx(1.77, abs=0.02)
    assert costs["ours"]["GFLOPs"] == pytest.approx(4.15 * (64 / 640) ** 2, rel=0.02)  # v6.1 says 4.5 for 80 classes
    assert 0 < costs["peer"]["ms"] < 50 < 1000 * costs["ours"]["ms"] and costs["peer"]["GFLOPs"] == 2
    assert costs["peer"]["asked"] == ["cost", json.dumps({"folder": str(tmp_path), "imgsz": 96})]
    (tmp_path / "peer.py").write_text("")
    with pytest.raises(RuntimeError, match="peer.py cost .* has ended"):
        costs_of({"peer": (tmp_path, 96, sys.executable)})
