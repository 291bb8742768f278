"""Who proposes the next hyper-parameters, and who gives up on a training: Optuna's, and two samplers of our own.

Every trial has a generator of its own, seeded by `--seed` and its number, and proposals depend on that and on the
finished trials alone: a search that was killed goes on as it would have gone.
"""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.random import Generator

from utils.search.space import LIMITS, LOGARITHMIC, SearchSpace, choose_parent

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution, FloatDistribution
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial

SAMPLERS = ("genetic", "tpe", "cmaes", "random")
SPREAD = 0.1  # first standard deviation of CMA-ES, as a share of each range
GENERATION = "generation"  # user attribute: the generation of CMA-ES that a trial was drawn in


def distributions(space: SearchSpace) -> dict[str, FloatDistribution]:
    """The space as Optuna sees it."""
    from optuna.distributions import FloatDistribution

    return {key: FloatDistribution(*LIMITS[key][1:], log=key in LOGARITHMIC) for key in space.keys}


@dataclass(frozen=True, slots=True)
class Turn:
    """What a proposal depends on."""

    number: int  # of the trial, from 0; the first is the hyp file itself
    seed: int  # of the search
    finished: Sequence[FrozenTrial]  # by number
    note: Callable[[str, Any], None]  # keeps a name and a value with the trial


def check_sampler(kind: str, space: SearchSpace) -> None:
    """Raise ValueError for a sampler that is unknown, not installed, or useless in this space."""
    if kind not in SAMPLERS:
        raise ValueError(f"--evolve-sampler {kind}: choose {', '.join(SAMPLERS)}")
    if kind != "cmaes":
        return
    if importlib.util.find_spec("cmaes") is None:
        raise ValueError("--evolve-sampler cmaes needs a package: pip install cmaes")
    if len(space.keys) < 2:
        raise ValueError("--evolve-sampler cmaes needs two or more hyper-parameters that evolve; take another sampler")


def build_sampler(kind: str, space: SearchSpace, turn: Turn) -> BaseSampler:
    """Who proposes this trial: genetic (YOLOv5's mutation of one of the five best), tpe, cmaes or random."""
    from optuna.samplers import RandomSampler, TPESampler

    own = np.random.SeedSequence([turn.seed, turn.number])
    seed = int(own.generate_state(1)[0])
    makers: dict[str, Callable[[], BaseSampler]] = {
        "genetic": lambda: _proposing(space, lambda: _mutation(space, turn, np.random.default_rng(own))),
        "tpe": lambda: TPESampler(seed=seed),
        "cmaes": lambda: _proposing(space, lambda: _next_of_cmaes(space, turn, seed)),
        "random": lambda: RandomSampler(seed=seed),
    }
    return makers[kind]() if turn.number else _proposing(space, lambda: space.start)


def _proposing(space: SearchSpace, propose: Callable[[], dict[str, float]]) -> BaseSampler:
    """Optuna's interface around a function that proposes a whole set."""
    from optuna.samplers import BaseSampler

    class Proposals(BaseSampler):
        """The function's set, and nothing beside it."""

        def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
            return dict(distributions(space))

        def sample_relative(
            self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
        ) -> dict[str, Any]:
            return propose()

        def sample_independent(
            self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
        ) -> Any:
            raise ValueError(f"{param_name} does not evolve in this search")

    return Proposals()


def _mutation(space: SearchSpace, turn: Turn, rng: Generator) -> dict[str, float]:
    """One of the best trials that were trained to the end, mutated; the hyp file while there is none."""
    tried = [(trial.params, trial.value) for trial in turn.finished if trial.state.name == "COMPLETE"]
    return space.mutate(choose_parent(tried or [(space.start, 0.0)], rng), rng)


def _next_of_cmaes(space: SearchSpace, turn: Turn, seed: int) -> dict[str, float]:
    """CMA-ES, brought to where it stands by telling it again what the finished generations found.

    Optuna's own sampler keeps its state in the storage as a pickle, and reading one may run code. The state follows
    from the trials, so here nothing but their generation is kept.
    """
    from cmaes import CMA

    cube = _Cube(space)
    bounds = np.tile([0.0, 1.0], (len(space.keys), 1))
    strategy = CMA(mean=cube.enter(space.start), sigma=SPREAD, bounds=bounds, seed=seed)
    drawn: dict[int, list[tuple[np.ndarray, float]]] = defaultdict(list)
    for trial in turn.finished:  # the first trial, and those of another sampler, are as good as the first generation
        drawn[trial.user_attrs.get(GENERATION, 0)].append((cube.enter(trial.params), -trial.value))
    while len(drawn[strategy.generation]) >= strategy.population_size:
        strategy.tell(drawn[strategy.generation][: strategy.population_size])
    turn.note(GENERATION, strategy.generation)
    return cube.leave(strategy.ask())


class _Cube:
    """A space as the unit cube: limits at 0 and 1, logarithms where decades are spanned."""

    def __init__(self, space: SearchSpace) -> None:
        self.keys = space.keys
        self.logarithmic = np.array([key in LOGARITHMIC for key in self.keys])
        low, high = np.array([LIMITS[key][1:] for key in self.keys]).T
        self.low, self.high = self._straight(low), self._straight(high)

    def _straight(self, values: np.ndarray) -> np.ndarray:
        return np.where(self.logarithmic, np.log(np.where(self.logarithmic, values, 1.0)), values)

    def enter(self, proposal: Mapping[str, float]) -> np.ndarray:
        """A proposal as a point (keys,) of the cube."""
        values = self._straight(np.array([proposal[key] for key in self.keys]))
        return (values - self.low) / (self.high - self.low)

    def leave(self, point: np.ndarray) -> dict[str, float]:
        """A point of the cube as a proposal."""
        values = self.low + np.clip(point, 0, 1) * (self.high - self.low)
        values = np.where(self.logarithmic, np.exp(values), values)
        limits = [LIMITS[key][1:] for key in self.keys]
        return {key: float(np.clip(value, *limit)) for key, value, limit in zip(self.keys, values, limits, strict=True)}


def build_pruner(kind: str, epochs: int) -> BasePruner:
    """Who stops a training that falls behind the others at the same epoch.

    Args:
        kind: none, median (below the median of the earlier ones), halving (the best quarter goes on, at epochs each
            four times as late as the one before) or hyperband (several halvings, some of them patient).
        epochs: of a whole training.

    Raises:
        ValueError: an unknown kind.
    """
    from optuna import pruners

    first = max(epochs // 16, 1)
    makers: dict[str, Callable[[], BasePruner]] = {
        "none": pruners.NopPruner,
        "median": lambda: pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=first),
        "halving": lambda: pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=4),
        "hyperband": lambda: pruners.HyperbandPruner(min_resource=first, max_resource=epochs, reduction_factor=4),
    }
    if kind not in makers:
        raise ValueError(f"--evolve-pruner {kind}: choose {', '.join(makers)}")
    return makers[kind]()
