"""Whole commands, start-up and saving included, of this project and of the ultralytics package, in turns.

    python -m benchmarks.end_to_end --peer-python ../peer/bin/python          embedded set, nano models, 320 pixels
    python -m benchmarks.end_to_end --peer-python ../peer/bin/python --imgsz 640 --tasks val detect --rounds 5

The peer lives in an environment of its own (`pip install ultralytics`). Both train on the same images from scratch,
with the same size, batch and number of worker processes, everything else at its default; an epoch, with its
validation, is the difference between a longer and a shorter training, divided by the epochs between. `val` and `detect`
take the weights of the first training. A ratio is the median over rounds of the peer's seconds over ours of the same
round: above 1 we are faster.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.report import ROOT, Table, machine, save
from utils.base.config import DataConfig
from utils.base.options import Parser
from utils.base.paths import check_yaml
from utils.base.yaml import write_yaml
from utils.prepare.converters import prepare

TASKS = ("train", "val", "detect")
PEER = {
    "train": "YOLO({model!r}).train(data={data!r}, imgsz={imgsz}, epochs={epochs}, batch={batch}, workers={workers}, "
    "device='cpu', project={project!r}, name='run', exist_ok=True, pretrained=False)",
    "val": "YOLO({weights!r}).val(data={data!r}, imgsz={imgsz}, batch={batch}, workers={workers}, device='cpu')",
    "detect": "YOLO({weights!r}).predict({source!r}, imgsz={imgsz}, device='cpu', save=True, project={project!r})",
}


class Contest:
    """The commands of both sides on one data set, each in a process and a folder of its own."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        data = DataConfig.load(check_yaml(options.data))
        prepare(data)
        self.source = str(data.val[0])
        self.data = folder / "data.yaml"  # the peer knows nothing of our data sets' root
        splits = {name: str(getattr(data, name)[0]) for name in ("train", "val")}
        write_yaml(self.data, {**splits, "names": dict(enumerate(data.names))})

    def ours(self, task: str, epochs: int = 0, cfg: str = "") -> float:
        """Seconds of one of our scripts."""
        common = ["--imgsz", str(self.options.imgsz), "--device", "cpu", "--project", str(self.folder / (cfg or task))]
        batches = ["--data", str(self.data), "--batch-size", str(self.options.batch), "--workers", self.workers]
        weights = ["--weights", str(self.folder / self.options.cfg[0] / "run/weights/best.pt")]
        words = {
            "train": [*batches, "--cfg", cfg, "--epochs", str(epochs), "--name", "run", "--exist-ok"],
            "val": [*batches, *weights],
            "detect": ["--source", self.source, *weights],
        }[task]
        return self._seconds([sys.executable, f"{task}.py", *common, *words], ROOT)

    def peer(self, task: str, epochs: int = 0) -> float:
        """Seconds of the same with the peer."""
        options, project = self.options, str(self.folder / "peer")
        weights = str(self.folder / "peer/run/weights/best.pt")
        facts = {"model": options.peer_model, "data": str(self.data), "imgsz": options.imgsz, "epochs": epochs}
        facts |= {"batch": options.batch, "workers": options.workers, "project": project, "weights": weights}
        call = PEER[task].format(**facts, source=self.source)
        return self._seconds([options.peer_python, "-c", f"from ultralytics import YOLO; {call}"], self.folder)

    @property
    def workers(self) -> str:
        """Worker processes of a loader."""
        return str(self.options.workers)

    def _seconds(self, command: list[str], place: Path) -> float:
        """Run a command to its end. Raise RuntimeError, with what it said last, where it fails."""
        environment = {**os.environ, "YOLO_OFFLINE": "true", "OMP_NUM_THREADS": str(self.options.threads)}
        start = time.perf_counter()
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)[:200]} failed: {(done.stderr or done.stdout).strip()[-400:]}")
        return time.perf_counter() - start

    def epoch(self, run: Callable[..., float]) -> float:
        """Seconds of an epoch, start and end of the training left out."""
        short, long = self.options.epochs
        return (run("train", epochs=long) - run("train", epochs=short)) / (long - short)


def rows(contest: Contest, tasks: list[str], cfgs: list[str]) -> dict[str, tuple[Callable, Callable]]:
    """For each row of the table what times us and what times the peer."""
    found: dict[str, tuple[Callable, Callable]] = {}
    for cfg in cfgs if "train" in tasks else ():
        found[f"epoch, {Path(cfg).stem}"] = (
            lambda cfg=cfg: contest.epoch(lambda task, epochs: contest.ours(task, epochs, cfg)),
            lambda: contest.epoch(contest.peer),
        )
    for task in ("val", "detect"):
        if task in tasks:
            found[f"{task}, {Path(cfgs[0]).stem}"] = (
                lambda task=task: contest.ours(task),
                lambda task=task: contest.peer(task),
            )
    return found


def main(argv: list[str] | None = None) -> None:
    """Print, and save on request, a row for each task."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True, help="the interpreter that has ultralytics")
    parser.add_argument("--peer-model", default="yolo26n.yaml")
    parser.add_argument("--cfg", nargs="+", default=["yolov5n_BiFormer.yaml", "yolov5n.yaml"])
    parser.add_argument("--data", default="shapes.yaml")
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, nargs=2, default=[1, 4], metavar=("SHORT", "LONG"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--save", type=Path)
    options = parser.parse_args(argv)
    options.peer_python = str(Path(options.peer_python).absolute())
    table = Table({"what": 28, "ours (s)": 9, "peer (s)": 9, "times faster": 12, "least": 6, "most": 6})
    with tempfile.TemporaryDirectory() as folder:
        contest = Contest(options, Path(folder))
        contest.ours("train", 1, options.cfg[0])  # weights for val and detect, and warm caches
        contest.peer("train", 1)
        for what, (ours, peer) in rows(contest, options.tasks, options.cfg).items():
            pairs = [(ours(), peer()) if number % 2 else (peer(), ours())[::-1] for number in range(options.rounds)]
            ratios = [theirs / mine for mine, theirs in pairs]
            figures = {"ours (s)": statistics.median(mine for mine, _ in pairs)}
            figures |= {"peer (s)": statistics.median(theirs for _, theirs in pairs)}
            figures |= {"times faster": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
            table.add(what=what, **figures)
    if options.save:
        about = f"peer: {options.peer_model}; {options.data}, {options.imgsz} pixels, batch {options.batch}"
        save(options.save, table, machine(torch.device("cpu"), torch.float32, options.threads), [about])


if __name__ == "__main__":
    main()
