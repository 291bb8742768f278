"""What a search may change: YOLOv5's hyper-parameters, how far each may go, and how one set becomes the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.random import Generator

from utils.base.config import Hyp
from utils.base.log import LOGGER

# name: (how strongly mutation moves it, lowest, highest); what mutation does not move keeps the file's value
LIMITS: dict[str, tuple[float, float, float]] = {
    "lr0": (1, 1e-5, 0.1), "lrf": (1, 0.01, 1.0), "momentum": (0.3, 0.6, 0.98), "weight_decay": (1, 0.0, 0.001),
    "warmup_epochs": (1, 0.0, 5.0), "warmup_momentum": (1, 0.0, 0.95), "warmup_bias_lr": (1, 0.0, 0.2),
    "box": (1, 0.02, 0.2), "cls": (1, 0.2, 4.0), "cls_pw": (1, 0.5, 2.0), "obj": (1, 0.2, 4.0),
    "obj_pw": (1, 0.5, 2.0), "iou_t": (0, 0.1, 0.7), "anchor_t": (1, 2.0, 8.0), "anchors": (2, 2.0, 10.0),
    "fl_gamma": (0, 0.0, 2.0), "hsv_h": (1, 0.0, 0.1), "hsv_s": (1, 0.0, 0.9), "hsv_v": (1, 0.0, 0.9),
    "degrees": (1, 0.0, 45.0), "translate": (1, 0.0, 0.9), "scale": (1, 0.0, 0.9), "shear": (1, 0.0, 10.0),
    "perspective": (0, 0.0, 0.001), "flipud": (1, 0.0, 1.0), "fliplr": (0, 0.0, 1.0), "mosaic": (1, 0.0, 1.0),
    "mixup": (1, 0.0, 1.0), "copy_paste": (1, 0.0, 1.0),
}  # fmt: skip
LOGARITHMIC = ("lr0",)  # spans four decades
PARENTS = 5  # the best so far, of which one is mutated
CHANCE, STRENGTH, FACTORS = 0.8, 0.2, (0.3, 3.0)  # of a mutation


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """The hyper-parameters of a file, and which of them evolve between which limits."""

    hyp: Hyp  # as in the file, what evolves moved between its limits
    keys: tuple[str, ...]  # what evolves
    columns: tuple[str, ...]  # what evolve.csv shows, with what keeps the file's value

    @classmethod
    def around(cls, hyp: Hyp, anchors: bool = True) -> SearchSpace:
        """Return the space around a file's hyper-parameters. Raise ValueError where nothing could evolve.

        What is 0 and may be 0 stays so: mutation multiplies, and whoever switched an augmentation off meant it. The
        number of `anchors` evolves where the file sets it and anchors are fitted to the labels; without that fit it
        would leave placeholders, and is dropped.
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

    def filled(self, values: Mapping[str, float]) -> Hyp:
        """Return all hyper-parameters of a training, with the five significant digits that evolve.csv shows."""
        return Hyp.load(asdict(self.hyp) | {key: float(f"{values[key]:.5g}") for key in self.keys})

    def mutate(self, tried: Sequence[tuple[Mapping[str, float], float]], rng: Generator) -> dict[str, float]:
        """Return one of the best (values, fitness) of `tried` with most of its values stretched by factors around 1.

        The better one is above the worst of the best, the more likely it is taken. Without any, the file's is.
        """
        best = sorted(tried, key=lambda pair: -pair[1])[:PARENTS] or [(self.start, 0.0)]
        weights = np.array([fitness for _, fitness in best])
        weights = weights - weights.min() + 1e-6
        parent = dict(best[rng.choice(len(best), p=weights / weights.sum())][0])
        gains, low, high = np.array([LIMITS[key] for key in self.keys]).T
        values, child = np.array([parent[key] for key in self.keys]), parent
        while child == parent:
            chosen = rng.random(len(values)) < CHANCE
            factors = 1 + gains * chosen * rng.standard_normal(len(values)) * rng.random() * STRENGTH
            moved = (values * factors.clip(*FACTORS)).clip(low, high)
            child = {key: float(f"{value:.5g}") for key, value in zip(self.keys, moved, strict=True)}
        return child
