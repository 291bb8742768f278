"""What a search leaves to read: evolve.csv and hyp_evolve.yaml in YOLOv5's forms, trials.csv, and evolve.png."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml

from utils.base.files import replacing, write_whole
from utils.drawing.figures import INK, new_figure, series_colour, title
from utils.evaluation.metrics import fitness
from utils.search.space import SearchSpace
from utils.training.train_options import TrainOptions

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

TABLE, BEST_HYP, WHO = "evolve.csv", "hyp_evolve.yaml", "trials.csv"
METRICS = (
    "metrics/precision", "metrics/recall", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95",
    "val/box_loss", "val/obj_loss", "val/cls_loss",
)  # fmt: skip
WORKER, RESULTS, REASON = "worker", "results", "reason"  # user attributes of a trial
ROWS, COLUMNS = 6, 5  # panels of evolve.png


def write_tables(
    folder: Path, finished: Sequence[tuple[int, FrozenTrial]], space: SearchSpace, opt: TrainOptions
) -> str:
    """Write the three tables, each whole or not at all, from the finished trials, by number; return which is best.

    trials.csv says why one that broke down counts with fitness 0. The best is that of highest fitness among those
    trained to the end, the earliest of equals.
    """
    rows = [",".join(f"{name:>20}" for name in (*METRICS, *space.columns))]
    who = ["trial,state,fitness,seconds,host,pid,reason"]
    for number, trial in finished:
        hyp, notes = asdict(space.filled(trial.params)), trial.user_attrs
        rows.append(",".join(f"{value:20.5g}" for value in (*notes[RESULTS], *map(hyp.get, space.columns))))
        reason, seconds = notes[REASON].replace('"', "'"), (trial.duration or timedelta()).total_seconds()
        state = "failed" if reason else "pruned" if trial.state.name == "PRUNED" else "done"
        machine = f"{notes[WORKER]['host']},{notes[WORKER]['pid']}"
        quoted = f'"{reason}"' if reason else ""
        who.append(f"{number},{state},{trial.value:.5g},{seconds:.1f},{machine},{quoted}")
    whole = [(number, trial) for number, trial in finished if trial.state.name == "COMPLETE"]
    number, best = max(whole or finished, key=lambda pair: (pair[1].value, -pair[0]))
    scores = ", ".join(f"{name} {value:.5g}" for name, value in zip(METRICS, best.user_attrs[RESULTS], strict=True))
    header = (
        f"# Best of {len(finished)} trials of a search for {opt.evolve}: trial {number}, fitness {best.value:.5g}\n"
        f"# Last finished trial: {finished[-1][0]}\n# {scores}\n"
        f"# To train with them: python train.py --hyp {BEST_HYP} --optimizer {opt.optimizer} ...\n\n"
    )
    write_whole(folder / TABLE, "\n".join(rows) + "\n")
    write_whole(folder / WHO, "\n".join(who) + "\n")
    write_whole(folder / BEST_HYP, header + yaml.safe_dump(asdict(space.filled(best.params)), sort_keys=False))
    return f"trial {number} with fitness {best.value:.5g}"


def plot_evolve(evolve_csv: str | Path = "evolve.csv") -> Path:
    """Draw evolve.png beside an evolve.csv (YOLOv5's too) and return its path.

    A panel a hyper-parameter, with its best value as title: one dot a trial, light for early and dark for late ones,
    the best one ringed. The last panel is the search over time. Raise ValueError where the file is not such a table.
    """
    import pandas as pd
    from matplotlib.colors import LinearSegmentedColormap

    file, results = Path(evolve_csv), len(METRICS)
    try:
        table = pd.read_csv(file, skipinitialspace=True).rename(columns=str.strip)
        values = table.to_numpy(dtype=float)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read as a table of trials ({error})") from None
    if len(values) == 0 or values.shape[1] <= results:
        raise ValueError(f"{file}: holds no trials; expected seven columns of results, then hyper-parameters")
    scores, numbers = fitness(values), np.arange(len(values))
    best, names = int(np.argmax(scores)), list(table.columns[results:])[: ROWS * COLUMNS - 1]
    shades = LinearSegmentedColormap.from_list("time", ["#bfdbfe", "#3b82f6", "#1e3a8a"])(
        np.linspace(0, 1, len(values))
    )
    rows = -(-(len(names) + 1) // COLUMNS)
    figure, axes = new_figure(rows, COLUMNS, (16, 2.8 * rows))
    for name, column, axis in zip([*names, ""], [*values[:, results:].T[: len(names)], numbers], axes, strict=False):
        axis.locator_params(axis="x", nbins=4)
        axis.scatter(column, scores, s=22, c=shades, linewidths=0, zorder=2)
        axis.scatter(column[best], scores[best], s=110, fc="none", ec=series_colour(1), linewidths=2, zorder=3)
        title(axis, f"{name} {column[best]:.3g}")
    history = axes[len(names)]
    history.plot(numbers, np.maximum.accumulate(scores), color=INK, linewidth=1.2, drawstyle="steps-post", zorder=1)
    title(history, f"fitness {scores[best]:.3g}", x="trial")
    for axis in axes[len(names) + 1 :]:
        axis.set_visible(False)
    legend = f"Fitness of {len(values)} trials over each hyper-parameter, light dots early, dark ones late, best ringed"
    figure.suptitle(legend, x=0.01, ha="left", color=INK, fontsize=13)
    with replacing(file.with_suffix(".png")) as beside:  # two workers may finish at once
        figure.savefig(beside, format="png", dpi=100)
    return file.with_suffix(".png")
