"""How good is what a search finds? The samplers of `--evolve`, and NSGA-II, on functions in place of trainings.

    python -m benchmarks.search                     30, 100 and 300 trials, six functions each
    python -m benchmarks.search --trials 50 --functions 3

A function has its peak of 0.6 where each hyper-parameter is between half and twice its value in hyp.scratch-low.yaml,
falls off unequally along them, and is seen through noise, as fitness is. The table shows what the chosen trial is worth
without the noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

import numpy as np
import optuna

from benchmarks.report import Table
from utils.base.config import Hyp
from utils.base.options import Parser
from utils.base.paths import check_yaml
from utils.search.proposals import propose
from utils.search.space import LIMITS, LOGARITHMIC, SearchSpace

PEAK, NOISE = 0.6, 0.003
STEEPNESS = 40.0  # of the average distance, in shares of the ranges: so that the file's values are worth a quarter
REFERENCE = "NSGA-II"
KINDS = ("genetic", "tpe", "cmaes", "random")
Proposal = Mapping[str, float]


def make_function(space: SearchSpace, seed: int) -> Callable[[Proposal], float]:
    """Worth of a proposal, without noise."""
    rng = np.random.default_rng(seed)
    low, high = np.array([LIMITS[key][1:] for key in space.keys]).T
    start = np.array([space.start[key] for key in space.keys])
    peak = np.clip(start * 2 ** rng.uniform(-1, 1, len(start)), low, high)
    weights = rng.dirichlet(np.ones(len(start)))

    def worth(proposal: Proposal) -> float:
        away = (np.array([proposal[key] for key in space.keys]) - peak) / (high - low)
        return float(PEAK * np.exp(-STEEPNESS * (weights * away**2).sum()))

    return worth


def search(
    kind: str, space: SearchSpace, worth: Callable[[Proposal], float], trials: int, seed: int
) -> list[optuna.trial.FrozenTrial]:
    """The trials of a search that sees what they are worth through noise."""
    noise = np.random.default_rng([seed, 1])
    study = optuna.create_study(direction="maximize")
    reference = optuna.samplers.NSGAIISampler(population_size=10, seed=seed)
    for number in range(trials):
        attempt = study._storage.create_new_trial(study._study_id)
        if kind == REFERENCE and number > 0:
            study.sampler = reference
            trial = optuna.Trial(study, attempt)
            for key in space.keys:
                trial.suggest_float(key, *LIMITS[key][1:], log=key in LOGARITHMIC)
        else:
            trial = propose(study, attempt, space, (kind, seed), number, study.get_trials(deepcopy=False)[:-1])
        study.tell(trial, worth(trial.params) + noise.normal(0, NOISE))
    return study.trials


def main() -> None:
    """Print a row for each number of trials."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[30, 100, 300])
    parser.add_argument("--functions", type=int, default=6)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = SearchSpace.around(Hyp.load(check_yaml("hyp.scratch-low.yaml")))
    kinds = (*KINDS, REFERENCE)
    table = Table({"trials": 6, "start": 6} | dict.fromkeys(kinds, 7))
    functions = [make_function(space, seed) for seed in range(options.functions)]
    start = float(np.mean([worth(space.start) for worth in functions]))
    for trials in options.trials:
        found = {}
        for kind in kinds:  # the best trial, as far as the search can tell
            searches = [(worth, search(kind, space, worth, trials, seed)) for seed, worth in enumerate(functions)]
            best = [worth(max(done, key=lambda trial: trial.value).params) for worth, done in searches]
            found[kind] = float(np.mean(best))
        table.add(trials=trials, start=start, **found)


if __name__ == "__main__":
    main()
