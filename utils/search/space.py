"""What a search may change: YOLOv5's 29 hyper-parameters, how far each may go, and how one set becomes the next.

A set of hyper-parameters is a mapping from name to value, here called a proposal; only what evolves is in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.random import Generator

from utils.base.config import Hyp
from utils.base.log import LOGGER

# name: (how strongly mutation moves it, lowest, highest); what mutation does not move keeps the file's value
LIMITS: dict[str, tuple[float, float, float]] = {
    "lr0": (1, 1e-5, 0.1),
    "lrf": (1, 0.01, 1.0),
    "momentum": (0.3, 0.6, 0.98),
    "weight_decay": (1, 0.0, 0.001),
    "warmup_epochs": (1, 0.0, 5.0),
    "warmup_momentum": (1, 0.0, 0.95),
    "warmup_bias_lr": (1, 0.0, 0.2),
    "box": (1, 0.02, 0.2),
    "cls": (1, 0.2, 4.0),
    "cls_pw": (1, 0.5, 2.0),
    "obj": (1, 0.2, 4.0),
    "obj_pw": (1, 0.5, 2.0),
    "iou_t": (0, 0.1, 0.7),
    "anchor_t": (1, 2.0, 8.0),
    "anchors": (2, 2.0, 10.0),
    "fl_gamma": (0, 0.0, 2.0),
    "hsv_h": (1, 0.0, 0.1),
    "hsv_s": (1, 0.0, 0.9),
    "hsv_v": (1, 0.0, 0.9),
    "degrees": (1, 0.0, 45.0),
    "translate": (1, 0.0, 0.9),
    "scale": (1, 0.0, 0.9),
    "shear": (1, 0.0, 10.0),
    "perspective": (0, 0.0, 0.001),
    "flipud": (1, 0.0, 1.0),
    "fliplr": (0, 0.0, 1.0),
    "mosaic": (1, 0.0, 1.0),
    "mixup": (1, 0.0, 1.0),
    "copy_paste": (1, 0.0, 1.0),
}
LOGARITHMIC = ("lr0",)  # spans four decades
PARENTS = 5  # the best so far, of which one is mutated
CHANCE, STRENGTH, FACTORS = 0.8, 0.2, (0.3, 3.0)  # of a mutation


def tidy(value: float) -> float:
    """Five significant digits, as many as evolve.csv shows, so that the table says exactly what was trained."""
    return float(f"{value:.5g}")


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """The hyper-parameters of a file, and which of them evolve between which limits."""

    hyp: Hyp  # as in the file, what evolves moved between its limits
    keys: tuple[str, ...]  # what evolves
    columns: tuple[str, ...]  # what evolve.csv shows, the kept ones included

    @classmethod
    def around(cls, hyp: Hyp, anchors: bool = True) -> SearchSpace:
        """The space around a file's hyper-parameters.

        What stands at 0 and may be 0 stays there: mutation multiplies, and whoever switched an augmentation off meant
        it. `anchors` evolves where the file sets a number of them and they are fitted to the labels (`anchors`);
        without that fit a number would leave placeholders, so then it is dropped. Raises ValueError when nothing is
        left.
        """
        values = asdict(hyp) | ({} if anchors else {"anchors": None})
        columns = tuple(key for key in LIMITS if values[key] is not None)
        keys = tuple(key for key in columns if LIMITS[key][0] and (values[key] or LIMITS[key][1] > 0))
        if not keys:
            raise ValueError("--evolve: every hyper-parameter that could evolve is 0 in the --hyp file")
        inside = {key: float(np.clip(values[key], *LIMITS[key][1:])) for key in keys}
        if moved := [f"{key} {values[key]:g} to {inside[key]:g}" for key in keys if inside[key] != values[key]]:
            LOGGER.warning(f"--evolve: moved between the limits of the search: {', '.join(moved)}")
        return cls(Hyp.load(values | inside), keys, columns)

    @property
    def start(self) -> dict[str, float]:
        """The file's own values of what evolves: the first trial."""
        return {key: getattr(self.hyp, key) for key in self.keys}

    @property
    def kept(self) -> tuple[str, ...]:
        """The columns that do not evolve."""
        return tuple(key for key in self.columns if key not in self.keys)

    def filled(self, proposal: Mapping[str, float]) -> Hyp:
        """All hyper-parameters of a training with this proposal."""
        return Hyp.load(asdict(self.hyp) | {key: tidy(proposal[key]) for key in self.keys})

    def row(self, proposal: Mapping[str, float]) -> list[float]:
        """A proposal as evolve.csv shows it, in the order of `columns`."""
        hyp = self.filled(proposal)
        return [getattr(hyp, key) for key in self.columns]

    def mutate(self, parent: Mapping[str, float], rng: Generator) -> dict[str, float]:
        """A proposal near its parent: most values stretched by factors around 1, all between their limits.

        Drawn again until something has changed.
        """
        values = np.array([parent[key] for key in self.keys])
        gains, low, high = np.array([LIMITS[key] for key in self.keys]).T
        while True:
            chosen = rng.random(len(values)) < CHANCE
            factors = 1 + gains * chosen * rng.standard_normal(len(values)) * rng.random() * STRENGTH
            child = {
                key: tidy(value)
                for key, value in zip(self.keys, (values * factors.clip(*FACTORS)).clip(low, high), strict=True)
            }
            if child != dict(parent):
                return child


def choose_parent(tried: Sequence[tuple[Mapping[str, float], float]], rng: Generator) -> Mapping[str, float]:
    """One of the best proposals, drawn in proportion to how far its fitness is above the worst of those.

    `tried` are pairs of proposal and fitness, at least one.
    """
    best = sorted(tried, key=lambda pair: -pair[1])[:PARENTS]
    weights = np.array([fitness for _, fitness in best])
    weights = weights - weights.min() + 1e-6
    return best[rng.choice(len(best), p=weights / weights.sum())][0]
