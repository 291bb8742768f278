"""Training that is killed at random moments and resumed each time, held against training that is left alone.

python -m benchmarks.kill_resume                      # 20 kills of a run with 2 loader processes
python -m benchmarks.kill_resume --kills 100 --workers 2 --seed 1

Every kill is SIGKILL, some at a random time after the start, most at a random time after a random one of the
checkpoints: so they fall on imports, label checking, steps, validations, half-written files and the end alike. A run
that got to its end is compared: weights, averages, optimiser, best.pt and results.csv must be those of the run that was
left alone, bit for bit; then a new one begins, until there were enough kills. After each one last.pt must be readable.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from utils.base.options import Parser
from utils.base.paths import ROOT
from utils.checkpoints.checkpoint import load_checkpoint
from utils.prepare.synthetic import draw_dataset

MODEL = """
nc: 6
depth_multiple: 0.33
width_multiple: 0.125
anchors: [[10,10, 16,16, 24,24], [30,30, 40,40, 50,50]]
backbone: [[-1, 1, Conv, [64, 6, 2, 2]], [-1, 1, Conv, [128, 3, 2]], [-1, 1, Conv, [256, 3, 2]], [-1, 1, C3, [256]]]
head:
  - [-1, 1, Conv, [512, 3, 2]]
  - [-1, 1, BiLevelRoutingAttention, []]
  - [-1, 1, C3, [512, false]]
  - [[3, 6], 1, Detect, [nc, anchors]]
"""
PROGRAM = """
import json, os, sys
os.cpu_count = lambda: 8
import torch, train
torch.set_num_threads(1)
train.run(**json.loads(sys.argv[1]))
"""
HYP = "{lr0: 0.02, momentum: 0.9, warmup_epochs: 0, nominal_batch: 8, ema_tau: 3, pooled: 1, close_mosaic: 1}"
DATA = "path: .\ntrain: images/train\nval: images/val\nnames: [disc, ring, square, triangle, cross, star]\n"


@dataclass(slots=True)
class Outcome:
    """What happened: `phases` counts where runs stood when killed, `unlike` names what differed at their ends."""

    kills: int = 0
    runs: int = 0
    unreadable: int = 0
    phases: Counter[str] = field(default_factory=Counter)
    unlike: list[str] = field(default_factory=list)
    seconds: float = 0.0
    last_phase: str = ""

    @property
    def passed(self) -> bool:
        """Did every run end as it should, and could every last.pt be read?"""
        return self.runs > 0 and not self.unlike and not self.unreadable


def make_job(folder: Path, workers: int, epochs: int = 4) -> dict[str, Any]:
    """Return options of a small training on embedded data: attention, mosaics, a checkpoint at every step."""
    draw_dataset(folder / "shapes", train=24, val=8, size=(64, 80))
    (folder / "shapes/shapes.yaml").write_text(DATA, encoding="utf-8")
    (folder / "hyp.yaml").write_text(HYP, encoding="utf-8")
    (folder / "tiny.yaml").write_text(MODEL, encoding="utf-8")
    return {
        "data": str(folder / "shapes/shapes.yaml"),
        "cfg": str(folder / "tiny.yaml"),
        "project": str(folder / "runs"),
        "imgsz": 64,
        "batch_size": 4,
        "epochs": epochs,
        "workers": workers,
        "device": "cpu",
        "save_minutes": 1e-6,
        "loggers": ["none"],
        "single_cls": True,
        "hyp": str(folder / "hyp.yaml"),
        "optimizer": "Adam",
    }


def train_once(options: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    """Start training in a process of its own, which claims eight cores, or a small machine would get no loaders."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(dict(options))],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def states(folder: Path) -> dict[str, Any]:
    """Return everything of a finished run that must not depend on how it got there."""
    found: dict[str, Any] = {"results.csv": (folder / "results.csv").read_text(encoding="utf-8")}
    for name in ("last", "best", "resume"):
        content = load_checkpoint(folder / f"weights/{name}.pt")
        for part in ("model", "ema"):
            if content.get(part):
                found |= {f"{name} {part} {key}": value for key, value in content[part]["state_dict"].items()}
        if content.get("optimizer"):
            for index, state in content["optimizer"]["state"].items():
                found |= {f"{name} optimizer {index} {key}": value for key, value in state.items()}
    return found


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return the names of what is not the same to the last bit."""
    unlike = sorted(expected.keys() ^ found.keys())
    for key in expected.keys() & found.keys():
        one, other = expected[key], found[key]
        same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
        unlike += [] if same else [key]
    return unlike


def stands_at(last: Path) -> str:
    """Return where a killed run goes on from; raise ValueError for a last.pt that cannot be read."""
    if not last.exists():
        return "before the first checkpoint"
    content = load_checkpoint(last)
    if content.get("optimizer") is None:
        return "after the end"
    epoch, batch = content["position"]["epoch"], content["position"]["batch"]
    if epoch == content["options"]["epochs"]:
        return "while finishing"
    return f"in epoch {epoch}" if batch else f"before epoch {epoch}"


def torture(
    job: Mapping[str, Any], kills: int, seed: int = 0, log: Callable[[str], None] = lambda line: None
) -> Outcome:
    """Kill and resume until there were `kills` of them and the run at hand has got to its end."""
    rng, outcome, began = random.Random(seed), Outcome(), time.monotonic()
    project = Path(job["project"])
    if code := train_once(job | {"name": "alone"}).wait():
        raise RuntimeError(f"the run that is left alone ended with exit code {code}")
    length = time.monotonic() - began
    expected = states(project / "alone")
    log(f"left alone, the run takes {length:.1f} s")
    while outcome.kills < kills:
        name = f"killed{outcome.runs}"
        while code := go_on(job | {"name": name, "resume": "auto"}, outcome, kills, rng):
            if code > 0:
                outcome.unlike.append(f"{name} ended with exit code {code}")
                return outcome
            log(f"kill {outcome.kills}: {outcome.last_phase}")
        unlike = differences(expected, states(project / name))
        outcome.unlike += [f"{name}: {key}" for key in unlike]
        outcome.runs += 1
        log(f"run {outcome.runs} got to its end: {len(unlike)} differences in {len(expected)} things")
    outcome.seconds = time.monotonic() - began
    return outcome


def go_on(job: Mapping[str, Any], outcome: Outcome, kills: int, rng: random.Random) -> int:
    """Let training begin or go on until it is killed, if more kills are wanted, or ends; return its exit code."""
    process, last = train_once(job), Path(job["project"]) / job["name"] / "weights/last.pt"
    if outcome.kills < kills:
        wait_for_a_moment(process, last, rng)
    if outcome.kills >= kills or process.poll() is not None:
        return process.wait()
    process.kill()
    code = process.wait()
    outcome.kills += 1
    try:
        outcome.last_phase = stands_at(last)
    except ValueError as error:
        outcome.last_phase, outcome.unreadable = f"unreadable: {error}", outcome.unreadable + 1
    outcome.phases[outcome.last_phase] += 1
    return code


def wait_for_a_moment(process: subprocess.Popen[bytes], last: Path, rng: random.Random) -> None:
    """Wait for some time after the start, or after the first, second ... checkpoint since then."""
    wanted, rest = rng.choice((0, 1, 1, 2, 2, 3, 4)), rng.uniform(0, 0.25)
    if not wanted:
        rest = rng.uniform(0, 6)
    before, seen = _written(last), 0
    while seen < wanted and process.poll() is None:
        time.sleep(0.002)
        if (now := _written(last)) != before:
            before, seen = now, seen + 1
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(rest)


def _written(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def main(argv: list[str] | None = None) -> int:
    """Print the outcome; return exit status 1 when anything differed or could not be read."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how many (20)")
    parser.add_argument("--workers", type=int, default=2, help="loader processes (2)")
    parser.add_argument("--epochs", type=int, default=4, help="length of a run (4)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(Path(folder), given.workers, given.epochs)
        outcome = torture(job, given.kills, given.seed, log=lambda line: print(line, flush=True))
    print(f"\n{outcome.kills} kills, {outcome.runs} runs, {outcome.seconds:.0f} s")
    print(f"last.pt unreadable {outcome.unreadable} times")
    for phase, count in sorted(outcome.phases.items()):
        print(f"  {count:4d}  {phase}")
    print("\n".join(outcome.unlike) or "every run ended as the one that was left alone, bit for bit")
    return int(not outcome.passed)


if __name__ == "__main__":
    sys.exit(main())
