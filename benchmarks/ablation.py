"""Whether a change helps: arms x data sets x seeds, trained side by side, compared seed by seed, with the spread.

    python -m benchmarks.ablation plan.yaml             train what is missing, then write the tables
    python -m benchmarks.ablation plan.yaml --report    only the tables, of what is there so far

A plan (benchmarks/plans/fine_tuning.yaml is a whole one):

    folder: runs/ablation/pcb       # every run goes to folder/DATA/ARM/SEED; what was killed goes on where it was
    seeds: [0, 1, 2]
    parallel: 2                     # runs side by side, each with one thread, so that two cores are full
    baseline: plain                 # the arm that the others are compared with
    options: {imgsz: 320, epochs: 60, workers: 0, cache: ram}      # of train.py, for every run
    data: {pcb: pcb.yaml, cars: {data: cars.yaml, imgsz: 640}}     # the latter with options that hold for it alone
    arms:              # options of train.py, and `only` (these data sets), `seeds`, `needs` (an arm that goes first)
      plain: {cfg: yolov5n.yaml}
      bra: {cfg: yolov5n_BiFormer.yaml}
      tuned: {needs: bra, weights: "{folder}/pcb/bra/0/weights/best.pt", epochs: 15}
      tta: {cfg: yolov5n.yaml, val: {augment: true}}               # `val`: options of val.py to score with
      yolo26n: {peer: yolo26n.yaml}                                # of the ultralytics package, with its defaults
      yolo26n-matched: {peer: yolo26n.yaml, nbs: 16, optimizer: AdamW, lr0: 0.003}
    peer_python: ../peer/bin/python       # the Python of an environment of its own: pip install ultralytics

All columns are points of mAP50-95 if they do not say otherwise. Every best.pt is scored by val.py's code on the same
images, with the same suppression, whoever trained it; benchmarks.ablation_scores says what small and "small seen" are.
Start, lowest and last are epochs of results.csv: the weights that training began with, the worst epoch, the final one.
When all runs are there, an image's time is taken of all arms in turns.

A peer gets those of the plan's options that it knows too (PEER_OPTIONS), and its arm's by its own names; `val` gives it
side and suppression only. It is *step-matched* with our optimiser and step size and with `nbs`, its nominal batch, as
large as the batch: it then takes as many steps, as large, on as many images. By its defaults it takes one step where
ours takes four.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import val
from benchmarks.ablation_scores import BY_SIZE, ONE_THREAD, PEER, SCORED, costs_of
from benchmarks.report import ROOT, commit, machine
from utils.base.config import DataConfig
from utils.base.paths import USUAL_SIZE, check_yaml
from utils.base.yaml import read_yaml, write_yaml
from utils.drawing.batches import read_results
from utils.prepare.converters import prepare

RESULT, COSTS, RESAMPLES = "result.json", "costs.json", 10_000
PEER_OPTIONS = {"batch_size": "batch"} | {
    name: name for name in "data imgsz epochs workers cache patience seed".split()
}
MAP, MAP50 = "metrics/mAP_0.5:0.95", "metrics/mAP_0.5"
NOT_OPTIONS = ("only", "seeds", "needs", "val", "peer")
COLUMNS = ["mAP50-95", "mAP50", *BY_SIZE, "start", "lowest", "last"]


@dataclass(frozen=True, slots=True)
class Job:
    """One training: an arm on a data set with a seed, in a folder of its own; of a `peer`'s YAML by its `python`."""

    data: str
    arm: str
    seed: int
    folder: Path
    options: dict[str, Any]
    needs: str = ""
    scoring: dict[str, Any] = field(default_factory=dict)
    peer: str = ""
    python: str = ""

    @property
    def is_done(self) -> bool:
        """Whether it was trained to its end and scored."""
        return (self.folder / RESULT).is_file() and (self.folder / SCORED).is_file()

    @property
    def imgsz(self) -> int:
        """Side of the images it is trained at, as train.py chooses it."""
        return self.options.get("imgsz") or DataConfig.load(check_yaml(self.options["data"])).imgsz or USUAL_SIZE


@dataclass(frozen=True, slots=True)
class Plan:
    """What a plan file asks for."""

    folder: Path
    seeds: list[int]
    data: dict[str, dict[str, Any]]
    arms: dict[str, dict[str, Any]]
    baseline: str
    options: dict[str, Any] = field(default_factory=dict)
    parallel: int = 2
    peer_python: str = ""

    @classmethod
    def load(cls, file: Path) -> Plan:
        """Read a plan. Raise ValueError for unknown or missing keys, and for arms and data sets that are not there."""
        content = read_yaml(file)
        known, needed = set(cls.__slots__), {"folder", "seeds", "data", "arms", "baseline"}
        if wrong := (content.keys() - known) | (needed - content.keys()):
            raise ValueError(
                f"{file}: unknown or missing {', '.join(sorted(wrong))}; known: {', '.join(cls.__slots__)}"
            )
        content["data"] = {k: v if isinstance(v, dict) else {"data": v} for k, v in content["data"].items()}
        plan = cls(**(content | {"folder": Path(content["folder"]).absolute()}))
        arms = {plan.baseline, *(arm["needs"] for arm in plan.arms.values() if "needs" in arm)} - plan.arms.keys()
        sets = {name for arm in plan.arms.values() for name in arm.get("only", ())} - plan.data.keys()
        if arms | sets:
            raise ValueError(f"{file}: there is no {', '.join(sorted(arms | sets))}; add it, or correct the name")
        if not plan.peer_python and any("peer" in arm for arm in plan.arms.values()):
            raise ValueError(f"{file}: peers need peer_python, the Python of an environment that has ultralytics")
        return plan

    def jobs(self) -> list[Job]:
        """Return every run, seed by seed, so that a first comparison is there early."""
        found = []
        seeds = sorted({*self.seeds, *(seed for arm in self.arms.values() for seed in arm.get("seeds", ()))})
        for seed in seeds:
            for data, given in self.data.items():
                for name, arm in self.arms.items():
                    if data not in arm.get("only", self.data) or seed not in arm.get("seeds", self.seeds):
                        continue
                    own = {key: value for key, value in arm.items() if key not in NOT_OPTIONS}
                    shared, peer = self.options | given, arm.get("peer", "")
                    if peer:
                        shared = {PEER_OPTIONS[key]: value for key, value in shared.items() if key in PEER_OPTIONS}
                    options = {**shared, **own, "seed": seed}
                    if "weights" in options:
                        options["weights"] = options["weights"].format(folder=self.folder, data=data, seed=seed)
                    folder = self.folder / data / name / str(seed)
                    python, scoring = os.path.abspath(self.peer_python) if peer else "", arm.get("val", {})
                    found.append(Job(data, name, seed, folder, options, arm.get("needs", ""), scoring, peer, python))
        return found


def train(job: Job) -> None:
    """Train with one thread, or go on with it, and score it. Raise RuntimeError, with the last line of its log.txt."""
    job.folder.mkdir(parents=True, exist_ok=True)
    if not (job.folder / RESULT).is_file():
        start = time.monotonic()
        if job.peer:
            ask_peer(job, "train", **job.options)
            result = {"scores": {}, "commit": (job.folder / "peer.txt").read_text(encoding="utf-8")}
        else:
            place = ["--project", str(job.folder.parent), "--name", job.folder.name]
            words = [word for key, value in job.options.items() for word in words_of(key, value)]
            run(job, [sys.executable, "train.py", "--resume", "auto", *place, *words])
            result = {"scores": scores_of(job.folder / "results.csv"), "commit": commit(ROOT)}
        result["scores"]["minutes"] = (time.monotonic() - start) / 60
        (job.folder / RESULT).write_text(json.dumps(result), encoding="utf-8")
    if job.peer:
        rule = val.ValOptions(**job.scoring)
        nms = {"conf": rule.conf_thres, "iou": rule.iou_thres, "max_det": rule.max_det}
        ask_peer(job, "detect", imgsz=rule.imgsz or job.imgsz, **nms)
    given = {"folder": str(job.folder), "data": job.options["data"], "imgsz": job.imgsz, "val": job.scoring}
    run(job, [sys.executable, "-m", "benchmarks.ablation_scores", json.dumps(given)])


def run(job: Job, command: list[str]) -> None:
    """Run a command of a job with one thread; its output goes to log.txt. Raise RuntimeError, with its last line."""
    log, environment = job.folder / "log.txt", os.environ | ONE_THREAD
    with log.open("a", encoding="utf-8") as file:
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(f"{log}: {' '.join(last)}")


def ask_peer(job: Job, task: str, **options: Any) -> None:
    """Let peer.py do a task, with a data YAML of its own: the package knows nothing of our data sets' root."""
    data, file = DataConfig.load(check_yaml(job.options["data"])), job.folder / "peer_data.yaml"
    splits = {split: [os.path.abspath(path) for path in getattr(data, split)] for split in ("train", "val")}
    write_yaml(file, splits | {"names": dict(enumerate(data.names))})
    given = options | {"folder": str(job.folder), "model": job.peer, "data": str(file)}
    run(job, [job.python, "-I", str(PEER), task, json.dumps(given)])


def words_of(option: str, value: Any) -> list[str]:
    """Return train.py's words for one option: a switch for True, nothing for False."""
    flag = "--" + option.replace("_", "-")
    if isinstance(value, bool):
        return [flag] if value else []
    return [flag, *map(str, value if isinstance(value, list) else [value])]


def scores_of(file: Path) -> dict[str, float]:
    """Return scores of a run in points: mAP50 and mAP50-95 of its best epoch, the latter of last, lowest and start."""
    table = read_results(file)
    trained, start = table[table["epoch"] >= 0], table[table["epoch"] < 0]
    best = table.loc[(0.9 * table[MAP] + 0.1 * table[MAP50]).idxmax()]  # the epoch that best.pt is of
    scores = {"mAP50": best[MAP50], "mAP50-95": best[MAP], "last": trained[MAP].iloc[-1], "lowest": trained[MAP].min()}
    scores["start"] = start[MAP].iloc[0] if len(start) else float("nan")
    return {name: 100 * float(value) for name, value in scores.items()}


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean of paired differences; nan for fewer than two."""
    values = np.asarray(differences, float)
    if len(values) < 2:
        return float("nan"), float("nan")
    means = np.random.default_rng(0).choice(values, (RESAMPLES, len(values))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def gather(jobs: Sequence[Job]) -> pd.DataFrame:
    """Return a row for each finished run: data, arm, seed, its scores and commit."""
    rows = []
    for job in filter(lambda job: job.is_done, jobs):
        result, scored = (json.loads((job.folder / name).read_text(encoding="utf-8")) for name in (RESULT, SCORED))
        names = {"data": job.data, "arm": job.arm, "seed": job.seed}
        rows.append({**names, **result["scores"], **scored, "commit": result["commit"]})
    return pd.DataFrame(rows)


def summary(results: pd.DataFrame, baseline: str, costs: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Return mean and deviation of each arm, how far it is from the baseline with the same seeds, and its costs.

    Scores that no run has are left out.
    """
    rows, known = [], [name for name in COLUMNS if name in results and not results[name].isna().all()]
    for (data, arm), group in results.groupby(["data", "arm"], sort=False):
        base = results[(results["data"] == data) & (results["arm"] == baseline)]
        gains = group.merge(base, on="seed", suffixes=("", " base")).eval("`mAP50-95` - `mAP50-95 base`")
        row = {"data": data, "arm": arm, "seeds": len(group)}
        for name in known:
            spread = f" ± {group[name].std():.1f}" if len(group) > 1 else ""
            row[name] = "-" if group[name].isna().all() else f"{group[name].mean():.1f}{spread}"
        low, high = interval(gains.tolist())
        spread = f" ({low:+.1f} to {high:+.1f})" if len(gains) > 1 else ""
        row[f"over {baseline}"] = "-" if arm == baseline or gains.empty else f"{gains.mean():+.1f}{spread}"
        row |= {name: f"{value:.3g}" for name, value in costs.get(f"{data} {arm}", {}).items()}
        row |= {"minutes": f"{group['minutes'].mean():.1f}", "commit": " ".join(sorted(set(group["commit"])))}
        rows.append(row)
    return pd.DataFrame(rows).fillna("-")


def report(plan: Plan) -> None:
    """Write results.csv, table.md and ablation.png into the plan's folder, and print the table."""
    results = gather(plan.jobs())
    if results.empty:
        print(f"nothing is finished in {plan.folder} yet")
        return
    results.to_csv(plan.folder / "results.csv", index=False)
    file = plan.folder / COSTS
    costs = json.loads(file.read_text(encoding="utf-8"))["costs"] if file.is_file() else {}
    table = summary(results, plan.baseline, costs)
    rows = [[*table.columns], ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    (plan.folder / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text, flush=True)
    draw(results, plan)


def draw(results: pd.DataFrame, plan: Plan) -> None:
    """Draw a panel for each data set: a point for each seed, the same seed joined across arms, a bar at the means."""
    from matplotlib.figure import Figure

    parts = {data: results[results["data"] == data] for data in plan.data}
    tables = {data: part.pivot_table(index="arm", columns="seed", values="mAP50-95") for data, part in parts.items()}
    figure = Figure(figsize=(1.5 + 0.9 * sum(map(len, tables.values())), 4), layout="constrained")
    ratios = [max(len(table), 1) for table in tables.values()]
    axes = np.atleast_1d(figure.subplots(1, len(tables), width_ratios=ratios))
    for axis, (data, table) in zip(axes, tables.items(), strict=True):
        points = table.reindex([arm for arm in plan.arms if arm in table.index])
        for seed in points:
            axis.plot(range(len(points)), points[seed], "o-", alpha=0.4, label=f"seed {seed}")
        axis.plot(range(len(points)), points.mean(axis=1), "_", color="black", markersize=24, label="mean")
        axis.set_xticks(range(len(points)), points.index, rotation=30, ha="right")
        axis.set(title=data, ylabel="mAP50-95, points")
        axis.legend(fontsize=7)
    figure.savefig(plan.folder / "ablation.png", dpi=120)


def measure(plan: Plan) -> None:
    """Write costs.json: what an image costs each arm, by its first run on each data set, all of them in turns."""
    runs = {f"{job.data} {job.arm}": job for job in reversed(plan.jobs()) if job.is_done}
    file = plan.folder / COSTS
    if not runs or (file.is_file() and runs.keys() <= json.loads(file.read_text(encoding="utf-8"))["costs"].keys()):
        return
    costs = costs_of({name: (job.folder, job.imgsz, job.python) for name, job in runs.items()})
    facts = machine(torch.device("cpu"), torch.float32, threads=1)
    file.write_text(json.dumps({"costs": costs, "machine": facts}, indent=1), encoding="utf-8")


def carry_out(plan: Plan) -> int:
    """Train what is missing, `parallel` runs at a time; return how many failed or had to be left out."""
    jobs = plan.jobs()
    waiting, failed = [job for job in jobs if not job.is_done], 0
    print(f"{len(jobs)} runs, {len(waiting)} to do, {plan.parallel} at a time, in {plan.folder}", flush=True)
    for given in plan.data.values():
        prepare(DataConfig.load(check_yaml(given["data"])))
    left = sorted(plan.options.keys() - PEER_OPTIONS.keys())
    if left and any(job.peer for job in waiting):
        print(f"peers go without {', '.join(left)}, which they do not know", flush=True)
    running: dict[Future[None], Job] = {}
    with ThreadPoolExecutor(plan.parallel) as pool:
        while waiting or running:
            open_arms = {job.arm for job in jobs if not job.is_done}
            ready = [job for job in waiting if job.needs not in open_arms]
            for job in ready[: plan.parallel - len(running)]:
                waiting.remove(job)
                running[pool.submit(train, job)] = job
            if not running:
                print(f"{len(waiting)} runs were left out, as they need others that failed", flush=True)
                return failed + len(waiting)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job, error = running.pop(future), future.exception()
                failed += error is not None
                print(f"{job.data} {job.arm} {job.seed}: {error or 'done'}", flush=True)
            report(plan)
    measure(plan)
    report(plan)
    return failed


def main(argv: list[str] | None = None) -> int:
    """Run the command line; exit status 1 where a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path, help="the plan, a YAML file")
    parser.add_argument("--report", action="store_true", help="write the tables of what is there, train nothing")
    options = parser.parse_args(argv)
    plan = Plan.load(options.plan)
    plan.folder.mkdir(parents=True, exist_ok=True)
    if options.report:
        report(plan)
        return 0
    return int(carry_out(plan) > 0)


if __name__ == "__main__":
    raise SystemExit(main())
