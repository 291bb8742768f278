"""The ruler of benchmarks.ablation: scores of trained weights, whoever trained them, and what an image costs them.

    python -m benchmarks.ablation_scores '{"folder": "runs/ablation/pcb/plain/0", "data": "pcb.yaml", "imgsz": 320}'

scores the best.pt of a run by val.py, or the detections that a peer left in its folder, and writes score.json there:
mAP50 and mAP50-95, and the mAP50-95 of small, medium and large objects. COCO's borders between these, 32^2 and 96^2
pixels, are laid at an object's size in the file ("small") and at its size in the network's input ("small seen"), where
the image's longer side has been brought to `imgsz`, whatever it was.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import val
from benchmarks.pairing import interleave
from models.experimental import attempt_load
from utils.base.callbacks import Callbacks
from utils.base.config import DataConfig
from utils.base.networks import count_flops, moved
from utils.base.paths import check_yaml
from utils.boxes.convert import xywhn2xyxy
from utils.data.label_index import load_index
from utils.evaluation.by_size import SIZE_RANGES
from utils.evaluation.metrics import DetectionMetrics

SCORED, DETECTIONS, ROUNDS = "score.json", "detections.pt", 30
# of what is run beside each other; the package neither installs nor fetches anything
ONE_THREAD = {"OMP_NUM_THREADS": "1", "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
PEER = Path(__file__).with_name("peer.py")
BY_SIZE = [name + seen for seen in ("", " seen") for name in SIZE_RANGES]


def own_detections(weights: Path, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return what val.py finds in each image: (n, 6) xyxy in its pixels, confidence, class."""
    found: dict[str, Tensor] = {}
    callbacks = Callbacks()
    callbacks.register_action("on_val_image_end", callback=lambda rows, _, path, *others: found.update({path: rows}))
    place = {"project": str(weights.parents[1]), "name": "val", "exist_ok": True}
    val.run(callbacks, **{"weights": [str(weights)], "workers": 0, **place, **options})
    return found


def score(found: Mapping[str, Tensor], data: DataConfig, imgsz: int, single_cls: bool = False) -> dict[str, float]:
    """Return the scores, in points, of detections (n, 6) by image; an image without entry has none.

    Raise ValueError for images that are not in the `val` split.
    """
    names = ["item"] if single_cls else data.names
    index, on_disk, as_seen = load_index(data.val), DetectionMetrics(names), DetectionMetrics(names)
    by_path = {os.path.abspath(path): rows for path, rows in found.items()}
    places = {os.path.abspath(index.path(position)): position for position in range(len(index))}
    if foreign := by_path.keys() - places.keys():
        raise ValueError(f"{len(foreign)} images with detections are not in {data.file}, such as {min(foreign)}")
    if missing := len(places) - len(by_path):
        print(f"{missing} of {len(places)} images were not looked at: nothing is found in them")
    for file in {**by_path, **places}:  # in the order they were looked at, which decides between equal confidences
        position = places[file]
        size, labels = index.sizes[position].tolist(), torch.from_numpy(index.labels(position)).double()
        labels = torch.cat((labels[:, :1] * (not single_cls), xywhn2xyxy(labels[:, 1:], *size)), 1)
        rows = by_path.get(file, torch.zeros(0, 6)).to(torch.float64, copy=True)  # which are scaled below
        on_disk.update(rows, labels)
        rows[:, :4] *= imgsz / max(size)
        labels[:, 1:] *= imgsz / max(size)
        as_seen.update(rows, labels)
    result, seen = on_disk.compute(), as_seen.compute().by_size
    sizes = [one.map for by_size in (result.by_size, seen) for one in by_size.values()]
    scores = {"mAP50-95": result.map, "mAP50": result.map50, **dict(zip(BY_SIZE, sizes, strict=True))}
    return {name: 100 * value for name, value in scores.items()}


def costs_of(runs: Mapping[str, tuple[Path, int, str]], rounds: int = ROUNDS) -> dict[str, dict[str, float]]:
    """Return parameters (M), GFLOPs and ms of an image for the folder, image side and peer's Python ("" for ours) of
    each run: best.pt fused, batch 1, one thread, a square of noise, decoded but not suppressed; medians of rounds in
    turns.
    """
    threads, peers = torch.get_num_threads(), dict[str, subprocess.Popen[str]]()
    costs: dict[str, dict[str, float]] = {}
    rivals: dict[str, Callable[[], object]] = {}
    torch.set_num_threads(1)
    try:
        for name, (folder, imgsz, python) in runs.items():
            if python:
                peers[name] = peer = start_peer(python, "cost", folder=str(folder), imgsz=imgsz)
                costs[name] = json.loads(line_of(peer))
                rivals[name] = lambda peer=peer: line_of(peer, "\n")
            else:
                costs[name], rivals[name] = own_cost(folder / "weights/best.pt", imgsz)
        with torch.inference_mode():
            seconds = interleave(rivals, rounds, warm_up=3)
    finally:
        torch.set_num_threads(threads)
        for peer in peers.values():
            peer.kill()
    return {name: cost | {"ms": 1000 * float(torch.tensor(seconds[name]).median())} for name, cost in costs.items()}


def own_cost(weights: Path, imgsz: int) -> tuple[dict[str, float], Callable[[], object]]:
    """Return the size of our network, and what looks at an image with it."""
    model = moved(attempt_load(weights), torch.device("cpu"))
    size = {"M parameters": sum(p.numel() for p in model.parameters()) / 1e6}
    image = torch.rand(1, 3, imgsz, imgsz)
    return size | {"GFLOPs": count_flops(model, imgsz) / 1e9}, lambda: model(image)


def start_peer(python: str, task: str, **options: Any) -> subprocess.Popen[str]:
    """Start a task of peer.py, with one thread, in the environment that has the package."""
    command, pipe = [python, "-I", str(PEER), task, json.dumps(options)], subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=os.environ | ONE_THREAD)


def line_of(peer: subprocess.Popen[str], request: str = "") -> str:
    """Return the next line of a peer, after a request. Raise RuntimeError where it has ended."""
    assert peer.stdin and peer.stdout
    peer.stdin.write(request)
    peer.stdin.flush()
    if not (line := peer.stdout.readline()):
        raise RuntimeError(f"{' '.join(map(str, peer.args))} has ended")
    return line


def main(job: Mapping[str, Any]) -> None:
    """Write the score of a run into its folder."""
    folder, options = Path(job["folder"]), dict(job.get("val", {}))
    data, imgsz = DataConfig.load(check_yaml(job["data"])), options.get("imgsz", job["imgsz"])
    if (file := folder / DETECTIONS).is_file():
        found = torch.load(file, weights_only=True)
    else:
        found = own_detections(folder / "weights/best.pt", {"data": job["data"], "imgsz": imgsz, **options})
    scores = score(found, data, imgsz, options.get("single_cls", False))
    (folder / SCORED).write_text(json.dumps(scores), encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
