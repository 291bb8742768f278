"""The runner of comparisons; what trainings find is in docs/results.md."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from benchmarks import ablation
from benchmarks.ablation import RESULT, Job, Plan, carry_out, interval, scores_of, summary, words_of
from benchmarks.ablation_scores import PEER, SCORED
from utils.base.config import Hyp
from utils.training.optim import Schedule, choose_recipe

ARMS = {
    "plain": {"cfg": "a.yaml"},
    "donor": {"cfg": "b.yaml", "only": ["pcb"], "seeds": [7]},
    "tuned": {"weights": "{folder}/pcb/donor/7/weights/best.pt", "needs": "donor", "only": ["cars"]},
}


def write(folder: Path, **changes: Any) -> Path:
    content = {
        "folder": str(folder / "runs"), "seeds": [0, 1], "data": {"pcb": "pcb.yaml", "cars": "cars.yaml"},
        "arms": ARMS, "baseline": "plain", "options": {"epochs": 3},
    }  # fmt: skip
    file = folder / "plan.yaml"
    file.write_text(yaml.safe_dump(content | changes, sort_keys=False))
    return file


def test_a_plan_without_arms_has_no_runs(tmp_path: Path) -> None:
    assert Plan.load(write(tmp_path, seeds=[], arms={"plain": {}})).jobs() == []


def test_runs_of_a_plan(tmp_path: Path) -> None:
    jobs = Plan.load(write(tmp_path)).jobs()
    found = [(job.seed, job.data, job.arm, job.needs) for job in jobs]
    both = [("pcb", "plain", ""), ("cars", "plain", ""), ("cars", "tuned", "donor")]
    assert found == [(seed, *one) for seed in (0, 1) for one in both] + [(7, "pcb", "donor", "")]
    weights = str(tmp_path / "runs/pcb/donor/7/weights/best.pt")
    assert jobs[2].options == {"epochs": 3, "data": "cars.yaml", "weights": weights, "seed": 0}


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"seed": 1}, "unknown or missing seed;"),
        ({"baseline": "x"}, "no x"),
        ({"arms": {"plain": {"only": ["y"]}}}, "no y"),
        ({"arms": {"plain": {"peer": "yolo26n.yaml"}}}, "peers need peer_python"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Plan.load(write(tmp_path, **changes))


def test_options_as_words() -> None:
    assert [words_of("cos_lr", value) for value in (True, False)] == [["--cos-lr"], []]
    assert words_of("freeze", [1, 2]) == ["--freeze", "1", "2"] and words_of("imgsz", 320) == ["--imgsz", "320"]


def test_scores_are_those_of_the_best_epoch_and_what_it_began_with(tmp_path: Path) -> None:
    rows = [(-1, 0.5, 0.30), (0, 0.4, 0.20), (1, 0.6, 0.45), (2, 0.8, 0.44)]
    table = pd.DataFrame(rows, columns=["epoch", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95"])
    table.to_csv(tmp_path / "results.csv", index=False)  # 0.9 * 0.45 + 0.1 * 0.6 < 0.9 * 0.44 + 0.1 * 0.8
    expected = {"mAP50": 80, "mAP50-95": 44, "last": 44, "lowest": 20, "start": 30}
    assert scores_of(tmp_path / "results.csv") == pytest.approx(expected)
    table[1:].to_csv(tmp_path / "results.csv", index=False)
    assert math.isnan(scores_of(tmp_path / "results.csv")["start"])


def test_differences_are_paired_by_seed() -> None:
    """Seeds differ by ten points, the arms by one in each of them."""
    plain = {0: 30.0, 1: 40.0, 2: 50.0}
    rows = [("plain", seed, value) for seed, value in plain.items()] + [
        ("bra", seed, plain[seed] + 1) for seed in (2, 0)
    ]
    scores = {"mAP50": 1.0, "start": float("nan"), "lowest": 0.0, "last": 0.0, "minutes": 1.0, "commit": "c"}
    results = pd.DataFrame([{"data": "pcb", "arm": arm, "seed": s, "mAP50-95": v} | scores for arm, s, v in rows])
    table = summary(results, "plain", {"pcb bra": {"GFLOPs": 4.12345, "ms": 20}}).set_index("arm")
    assert table.loc["bra", "over plain"] == "+1.0 (+1.0 to +1.0)" and table.loc["bra", "seeds"] == 2
    assert table.loc["plain", "mAP50-95"] == "40.0 ± 10.0" and "start" not in table
    assert table.loc["bra", "GFLOPs"] == "4.12" and table.loc["plain", "ms"] == "-"
    low, high = interval([1.0, 2.0, 3.0])
    assert 1.0 <= low < 1.5 and 2.5 < high <= 3.0 and math.isnan(interval([1.0])[0])


def test_what_needs_others_waits_and_is_left_out_where_these_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    order: list[str] = []

    def train(job: Job) -> None:
        order.append(job.arm)
        if job.arm == fails:
            raise RuntimeError("log.txt: no memory")
        job.folder.mkdir(parents=True)
        scores = dict.fromkeys(("mAP50", "mAP50-95", "start", "lowest", "last", "minutes"), 1.0)
        (job.folder / RESULT).write_text(json.dumps({"scores": scores, "commit": "c"}))
        (job.folder / SCORED).write_text(json.dumps({"small": 3.0}))

    measured: list[list[str]] = []
    monkeypatch.setattr(ablation, "train", train)
    monkeypatch.setattr(ablation, "prepare", lambda data: None)
    monkeypatch.setattr(ablation, "check_yaml", lambda file: shapes)
    monkeypatch.setattr(ablation, "costs_of", lambda runs: measured.append([*runs]) or {name: {} for name in runs})
    shapes = Path(ablation.ROOT) / "data/shapes.yaml"
    plan = Plan.load(write(tmp_path, seeds=[7]))
    fails = "donor"
    assert carry_out(plan) == 2 and "tuned" not in order and "1 runs were left out" in capsys.readouterr().out
    fails = ""
    assert carry_out(plan) == 0 and order[-2:] == ["donor", "tuned"]
    assert len(measured) == 1 and sorted(measured[-1]) == ["cars plain", "cars tuned", "pcb donor", "pcb plain"]
    assert (plan.folder / "ablation.png").stat().st_size > 5000
    assert len(pd.read_csv(plan.folder / "results.csv")) == 4 and carry_out(plan) == 0 and order.count("plain") == 2
    assert len(measured) == 1, "costs are there already"


def test_a_peer_is_trained_and_looks_by_its_own_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, squares: Path
) -> None:
    """It gets the plan's options by its own names, those of its arm as they are, and absolute paths of the images."""
    arms = {"plain": {}, "peer": {"peer": "yolo26n.yaml", "nbs": 16, "val": {"max_det": 9, "imgsz": 96}}}
    options = {"epochs": 3, "batch_size": 4, "cos_lr": True}
    data = {"squares": {"data": str(squares), "patience": 7}}
    changes = {"arms": arms, "options": options, "data": data, "peer_python": "p/python"}
    job = Plan.load(write(tmp_path, **changes)).jobs()[1]
    commands: list[list[str]] = []

    def run(job: Job, command: list[str]) -> None:
        commands.append(command)
        (job.folder / "peer.txt").write_text("ultralytics 8")

    monkeypatch.setattr(ablation, "run", run)
    ablation.train(job)
    words = [str(Path("p/python").absolute()), "-I", str(PEER)]
    assert [command[:4] for command in commands[:2]] == [[*words, "train"], [*words, "detect"]]
    trained, looked = (json.loads(command[4]) for command in commands[:2])
    place = {"folder": str(job.folder), "model": "yolo26n.yaml", "data": str(job.folder / "peer_data.yaml")}
    assert trained == place | {"epochs": 3, "batch": 4, "patience": 7, "nbs": 16, "seed": 0}
    assert looked == place | {"imgsz": 96, "conf": 0.001, "iou": 0.6, "max_det": 9}
    content = yaml.safe_load((job.folder / "peer_data.yaml").read_text())
    assert content == {
        "train": [str(squares.parent / "images/train")],
        "val": [str(squares.parent / "images/val")],
        "names": {0: "red", 1: "blue"},
    }
    scoring = {"folder": str(job.folder), "data": str(squares), "imgsz": 640, "val": arms["peer"]["val"]}
    assert commands[2][1:3] == ["-m", "benchmarks.ablation_scores"] and json.loads(commands[2][3]) == scoring
    ablation.train(job)  # killed before it was scored: it is not trained again
    assert [command[3] for command in commands[3:4]] == ["detect"] and len(commands) == 5


def test_the_plan_of_fine_tuning() -> None:
    plan = Plan.load(Path(ablation.ROOT) / "benchmarks/plans/fine_tuning.yaml")
    assert len(plan.jobs()) == 4 + 3 * 13 and {job.data for job in plan.jobs()} == {"a", "b", "shapes"}


def test_the_plan_of_small_sets() -> None:
    """Its peers are step-matched to what train.py does in runs of this length."""
    plan = Plan.load(Path(ablation.ROOT) / "benchmarks/plans/small_sets.yaml")
    hyp = Hyp.load(Path(ablation.ROOT) / "data/hyps/hyp.default.yaml")
    recipe = choose_recipe("auto", hyp, steps=60 * 13, total_batch=16)
    schedule = Schedule(hyp, recipe, epochs=60, batches=13, total_batch=16)
    for job in plan.jobs():
        if job.peer and not job.arm.endswith("defaults"):
            assert job.options["nbs"] == 16 * schedule.accumulate
            assert (job.options["optimizer"], job.options["lr0"]) == (recipe.optimizer, recipe.lr)
    assert len(plan.jobs()) == 3 * (3 * 6 + 2)
