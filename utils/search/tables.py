"""What a search leaves to read: evolve.csv and hyp_evolve.yaml in YOLOv5's forms, and trials.csv, who did what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from utils.base.files import write_whole
from utils.base.paths import shown
from utils.search.space import SearchSpace
from utils.search.storage import TABLE
from utils.search.trials import REASON, RESULTS, WORKER, Ledger
from utils.training.train_options import TrainOptions

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

BEST_HYP, WHO = "hyp_evolve.yaml", "trials.csv"
METRICS = (
    "metrics/precision", "metrics/recall", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95",
    "val/box_loss", "val/obj_loss", "val/cls_loss",
)  # fmt: skip
Numbered = Sequence[tuple[int, "FrozenTrial"]]


def write_tables(folder: Path, ledger: Ledger, space: SearchSpace, opt: TrainOptions) -> None:
    """Write all three files anew from the storage, each whole or not at all, until nothing has come in meanwhile.

    Several workers may do so at once: every one writes all that is known, so nothing is torn or doubled.
    """
    written = -1
    while written != len(finished := ledger.finished()) and finished:
        written = len(finished)
        write_whole(folder / TABLE, results_table(finished, space))
        write_whole(folder / WHO, who_table(finished))
        write_whole(folder / BEST_HYP, best_hyp(finished, space, opt))


def results_table(finished: Numbered, space: SearchSpace) -> str:
    """evolve.csv: the seven results of every finished trial and its hyper-parameters, by number."""
    names = (*METRICS, *space.columns)
    rows = [[f"{name:>20}" for name in names]]
    for _, attempt in finished:
        values = [*attempt.user_attrs[RESULTS], *space.row(attempt.params)]
        rows.append([f"{value:20.5g}" for value in values])
    return "".join(",".join(row) + "\n" for row in rows)


def who_table(finished: Numbered) -> str:
    """trials.csv: how every finished trial ended, after how many seconds, and on which machine.

    `reason` is why a training that could not be finished counts with fitness 0.
    """
    lines = ["trial,state,fitness,seconds,host,pid,reason"]
    for number, attempt in finished:
        worker, reason = attempt.user_attrs.get(WORKER, {}), attempt.user_attrs.get(REASON, "")
        state = "failed" if reason else "pruned" if attempt.state.name == "PRUNED" else "done"
        seconds = attempt.duration.total_seconds() if attempt.duration else 0
        quoted = '"' + reason.replace('"', "'") + '"' if reason else ""
        who = f"{worker.get('host', '')},{worker.get('pid', '')}"
        lines.append(f"{number},{state},{attempt.value:.5g},{seconds:.1f},{who},{quoted}")
    return "\n".join(lines) + "\n"


def best_of(finished: Numbered) -> tuple[int, FrozenTrial]:
    """Number and attempt of highest fitness among those that were trained to the end, the earliest of equals."""
    whole = [(number, attempt) for number, attempt in finished if attempt.state.name == "COMPLETE"]
    return max(whole or finished, key=lambda pair: (pair[1].value, -pair[0]))


def best_hyp(finished: Numbered, space: SearchSpace, opt: TrainOptions) -> str:
    """hyp_evolve.yaml: where the best hyper-parameters come from, as comments, then all of them, for --hyp."""
    number, attempt = best_of(finished)
    header = [
        f"Best of {len(finished)} trials of a search for {opt.evolve}: trial {number}, fitness {attempt.value:.5g}",
        f"Last finished trial: {max(number for number, _ in finished)}",
        ", ".join(f"{name} {value:.5g}" for name, value in zip(METRICS, attempt.user_attrs[RESULTS], strict=True)),
        f"To train with them: python train.py --hyp {BEST_HYP} --optimizer {opt.optimizer} ...",
    ]
    values = yaml.safe_dump(asdict(space.filled(attempt.params)), sort_keys=False)
    return "".join(f"# {line}\n" for line in header) + "\n" + values


def summary(folder: Path, finished: Numbered) -> str:
    """A few lines on how a search ended."""
    number, attempt = best_of(finished)
    return (
        f"{len(finished)} trials finished; the best is trial {number} with fitness {attempt.value:.5g}\n"
        f"Results saved to {shown(folder)}; train with --hyp {shown(folder / BEST_HYP)}"
    )
