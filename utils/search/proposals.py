"""Who proposes the hyper-parameters of a trial: Optuna, or YOLOv5's mutation.

Every trial has a generator of its own, seeded by `--seed` and its number, and proposals depend on that and on the
finished trials alone: a search that was killed goes on as it would have gone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
from optuna.distributions import FloatDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial

from utils.search.space import LIMITS, LOGARITHMIC, SearchSpace

SPREAD = 0.1  # first standard deviation of CMA-ES, as a share of each range
GENERATION = "generation"  # user attribute: the generation of CMA-ES that a trial was drawn in


def propose(
    study: Study, attempt: int, space: SearchSpace, sampler: tuple[str, int], number: int, finished: list[FrozenTrial]
) -> Trial:
    """Return a running trial (Optuna's id `attempt`) with its hyper-parameters; what it has already is kept.

    `sampler` is genetic (mutation of one of the five best), tpe, cmaes or random, and its seed; `number` is the trial's
    in the search, of which number 0 is the hyp file itself, and `finished` are the finished ones by number.
    """
    kind, seed = sampler
    own, storage = np.random.SeedSequence([seed, number]), study._storage
    number_seed = int(own.generate_state(1)[0])
    study.sampler = TPESampler(seed=number_seed) if kind == "tpe" else RandomSampler(seed=number_seed)
    values: Mapping[str, float] = {}
    if number == 0:
        values = space.start
    elif kind == "genetic":
        tried = [(done.params, done.value or 0.0) for done in finished if done.state.name == "COMPLETE"]
        values = space.mutate(tried, np.random.default_rng(own))
    elif kind == "cmaes":
        generation, values = next_of_cmaes(space, number_seed, finished)
        storage.set_trial_user_attr(attempt, GENERATION, generation)
    limits = {key: FloatDistribution(*LIMITS[key][1:], log=key in LOGARITHMIC) for key in space.keys}
    for key in values.keys() - storage.get_trial(attempt).params.keys():
        storage.set_trial_param(attempt, key, values[key], limits[key])
    trial = Trial(study, attempt)
    for key, limit in limits.items():
        trial.suggest_float(key, limit.low, limit.high, log=limit.log)
    return trial


def next_of_cmaes(space: SearchSpace, seed: int, finished: list[FrozenTrial]) -> tuple[int, dict[str, float]]:
    """Return the generation that CMA-ES is in after the finished trials, and a proposal of that generation.

    Optuna's own sampler keeps its state in the storage as a pickle, and reading one may run code. The state follows
    from the trials, so here nothing but their generation is kept.
    """
    from cmaes import CMA

    logarithmic = np.array([key in LOGARITHMIC for key in space.keys])

    def straight(values: np.ndarray) -> np.ndarray:
        return np.log(values, out=values.copy(), where=logarithmic)

    bounds = np.array([LIMITS[key][1:] for key in space.keys]).T
    low, high = map(straight, bounds)

    def point(values: Mapping[str, float]) -> np.ndarray:
        return (straight(np.array([values[key] for key in space.keys])) - low) / (high - low)

    cube = np.tile([0.0, 1.0], (len(space.keys), 1))
    strategy = CMA(mean=point(space.start), sigma=SPREAD, bounds=cube, seed=seed)
    drawn: dict[int, list[tuple[np.ndarray, float]]] = defaultdict(list)
    for trial in finished:  # the first trial, and those of another sampler, are as good as the first generation
        drawn[trial.user_attrs.get(GENERATION, 0)].append((point(trial.params), -(trial.value or 0.0)))
    while len(drawn[strategy.generation]) >= strategy.population_size:
        strategy.tell(drawn[strategy.generation][: strategy.population_size])
    values = low + strategy.ask().clip(0, 1) * (high - low)
    values = np.exp(values, out=values, where=logarithmic).clip(*bounds)
    return strategy.generation, dict(zip(space.keys, values.tolist(), strict=True))
