"""A peer in benchmarks.ablation: trains, detects and is timed by the Python that has the ultralytics package.

    ../peer/bin/python -I benchmarks/peer.py TASK JSON      as benchmarks.ablation calls it; nothing of ours is imported

train   a model YAML with the package's own options into `folder`, one thread; goes on where it was killed, at the end
        of the last whole epoch and from weights that the package rounds to 16 bits
detect  what best.pt finds in the validation images -> detections.pt: {path: (n, 6) xyxy in its pixels, score, class}
cost    a line of JSON with the fused network's size, then for each line read another one, after a look at an image
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch


def train(folder: Path, model: str, **options: Any) -> None:
    """Train to the end, from the start, or from the epoch that was saved last."""
    import ultralytics

    lock = (folder / "peer.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)  # where the runner was killed alone, its peer may be at it still: wait for its end
    last = folder / "weights/last.pt"
    begun = ultralytics.YOLO(last) if zipfile.is_zipfile(last) else None  # a file that was cut off is no archive
    place = {"project": str(folder.parent), "name": folder.name, "exist_ok": True, "device": "cpu", "plots": False}
    if begun is None:
        ultralytics.YOLO(model, task="detect").train(pretrained=False, **place, **options)
    elif begun.ckpt["epoch"] >= 0:  # -1: it came to its end
        begun.train(resume=True, **place, **options)
    (folder / "peer.txt").write_text(f"ultralytics {ultralytics.__version__}", encoding="utf-8")


def detect(folder: Path, model: str, **options: Any) -> None:
    """Validate as the package does, and keep what it finds."""
    from ultralytics import YOLO
    from ultralytics.models.yolo.detect import DetectionValidator

    found: dict[str, torch.Tensor] = {}

    class Keeper(DetectionValidator):
        def update_metrics(self, preds: list[dict[str, torch.Tensor]], batch: dict[str, Any]) -> None:
            for index, pred in enumerate(preds):
                image = self._prepare_batch(index, batch)
                rows = self.scale_preds(self._prepare_pred(pred), image)
                found[image["im_file"]] = torch.cat((rows["bboxes"], rows["conf"][:, None], rows["cls"][:, None]), 1)
            super().update_metrics(preds, batch)

    place = {"project": str(folder), "name": "val", "exist_ok": True, "device": "cpu", "plots": False}
    YOLO(folder / "weights/best.pt").val(validator=Keeper, workers=0, **place, **options)
    torch.save(found, folder / "detections.pt")


def cost(folder: Path, imgsz: int) -> None:
    """Answer every line on stdin with one on stdout, as soon as an image has been looked at."""
    answers, sys.stdout = sys.stdout, sys.stderr  # the package logs to stdout
    from torch.utils.flop_counter import FlopCounterMode
    from ultralytics import YOLO

    network = YOLO(folder / "weights/best.pt").model.float().eval().fuse(verbose=False)
    network.to(memory_format=torch.channels_last)
    image = torch.rand(1, 3, imgsz, imgsz)
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            network(image)
        size = {"M parameters": sum(p.numel() for p in network.parameters()) / 1e6}
        print(json.dumps(size | {"GFLOPs": counter.get_total_flops() / 1e9}), file=answers, flush=True)
        for _ in sys.stdin:
            network(image)
            print(file=answers, flush=True)


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    given["folder"] = Path(given["folder"])
    os.environ["YOLO_CONFIG_DIR"] = str(given["folder"])  # the package's defaults, not somebody's settings
    {"train": train, "detect": detect, "cost": cost}[sys.argv[1]](**given)
