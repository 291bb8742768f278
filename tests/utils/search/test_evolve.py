"""A search as one worker makes it, with a training that takes no time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from utils.base.callbacks import Callbacks
from utils.base.config import Hyp
from utils.base.paths import check_yaml
from utils.base.yaml import read_yaml
from utils.data.loader_faults import WorkerFault
from utils.distributed.run_lock import Busy
from utils.search import evolve as module
from utils.search.evolve import evolve
from utils.search.space import LIMITS
from utils.search.storage import open_storage
from utils.search.tables import METRICS
from utils.training.train_options import TrainOptions

optuna = pytest.importorskip("optuna")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "plot_evolve", lambda file: file)
    monkeypatch.setattr(module, "POLL", 0.01)


@pytest.fixture
def opt(tmp_path: Path) -> TrainOptions:
    return TrainOptions(evolve=4, project=str(tmp_path / "evolve"), hyp="hyp.scratch-low.yaml", epochs=4)


class FakeTraining:
    """Better with a larger box gain and less scale; learns evenly over the epochs; remembers what it was given."""

    def __init__(self, fail: Callable[[int], Exception | None] = lambda number: None) -> None:
        self.fail, self.given, self.hyps, self.epochs = fail, [], [], []

    def __call__(self, opt: TrainOptions, callbacks: Callbacks) -> tuple[float, ...]:
        hyp = Hyp.load(opt.hyp)
        self.given.append(opt)
        self.hyps.append(hyp)
        (Path(opt.project) / opt.name / "weights").mkdir(exist_ok=True)
        if error := self.fail(int(opt.name)):
            raise error
        quality, score = float(np.exp(-abs(hyp.box - 0.1) * 9 - hyp.scale)), 0.0
        for epoch in range(opt.epochs):
            score = quality * (epoch + 1) / opt.epochs
            callbacks.run("on_fit_epoch_end", [0.0] * 13, epoch, score, score)
            if callbacks.stop_training:
                break
        self.epochs.append(epoch + 1)
        return (score, score / 2, score, score, 0.1, 0.2, 0.3)


def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "evolve.csv", skipinitialspace=True).rename(columns=str.strip)


def test_a_search_leaves_what_people_know(opt: TrainOptions) -> None:
    train = FakeTraining()
    folder = evolve(opt, train)
    assert folder == Path(opt.project) / "exp" and len(train.hyps) == 4
    assert train.hyps[0] == Hyp.load(check_yaml(opt.hyp))
    lines = (folder / "evolve.csv").read_text().splitlines()
    assert all(len(cell) == max(20, len(cell.strip())) for line in lines for cell in line.split(","))
    rows = table(folder)
    assert list(rows.columns) == [*METRICS, *(key for key in LIMITS if key != "anchors")] and len(rows) == 4
    for number, hyp in enumerate(train.hyps):
        values = asdict(hyp)
        assert rows.loc[number, list(rows.columns[7:])].to_dict() == {key: values[key] for key in rows.columns[7:]}
        assert Hyp.load(folder / f"trials/{number}/hyp.yaml") == hyp
    best = rows["metrics/mAP_0.5"].idxmax()
    assert Hyp.load(folder / "hyp_evolve.yaml") == train.hyps[best]
    header = (folder / "hyp_evolve.yaml").read_text().split("\n\n")[0]
    assert f"trial {best}," in header and "--optimizer SGD" in header and "metrics/recall" in header
    who = pd.read_csv(folder / "trials.csv")
    assert who["trial"].tolist() == [0, 1, 2, 3] and set(who["state"]) == {"done"}
    assert not list(folder.glob("trials/*/weights")) and not list(folder.glob(".*"))


def test_trials_are_quiet_and_blind(opt: TrainOptions, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    train = FakeTraining()
    folder = evolve(replace(opt, evolve=2, evolve_storage=f"sqlite:///{opt.project}.db"), train)
    given = train.given[1]
    assert Path(given.project) / given.name == folder / "trials/1" and given.exist_ok and given.resume == "auto"
    assert given.noval and given.nosave and given.patience == 0 and given.loggers == ["none"] and given.evolve == 2
    assert given.optimizer == "SGD" and "auto would ignore lr0" in caplog.text and not given.evolve_storage
    named = FakeTraining()
    evolve(replace(opt, evolve=1, optimizer="AdamW", evolve_pruner="median"), named)
    assert named.given[0].optimizer == "AdamW" and not named.given[0].noval and named.given[0].patience == 100


@pytest.mark.parametrize("sampler", ["genetic", "tpe", "cmaes", "random"])
def test_the_seed_decides(opt: TrainOptions, sampler: str) -> None:
    pytest.importorskip("cmaes")
    opt = replace(opt, evolve_sampler=sampler)
    first, again, parts = FakeTraining(), FakeTraining(), FakeTraining()
    evolve(opt, first)
    evolve(opt, again)
    assert first.hyps == again.hyps and len(set(map(str, first.hyps))) == 4
    place = replace(opt, name="parts", exist_ok=True)
    evolve(replace(place, evolve=2), parts)
    evolve(place, parts)  # N counts all trials, those of earlier processes too
    assert parts.hyps == first.hyps
    evolve(place, parts)
    assert len(parts.hyps) == 4


@pytest.mark.parametrize("pruner", ["median", "halving", "hyperband"])
def test_pruners_save_epochs(opt: TrainOptions, pruner: str) -> None:
    train = FakeTraining()
    folder = evolve(replace(opt, evolve=12, epochs=16, evolve_pruner=pruner, evolve_sampler="random"), train)
    who = pd.read_csv(folder / "trials.csv")
    pruned = [number for number, epochs in enumerate(train.epochs) if epochs < 16]
    assert pruned and who.index[who["state"] == "pruned"].tolist() == pruned and len(table(folder)) == 12
    assert max(train.epochs) == 16
    whole = [score for score, epochs in zip(table(folder)["metrics/mAP_0.5"], train.epochs) if epochs == 16]
    best = read_yaml(folder / "hyp_evolve.yaml")["box"]
    assert best == train.hyps[int(np.argmax(table(folder)["metrics/mAP_0.5"] * (np.array(train.epochs) == 16)))].box
    assert max(whole) == table(folder)["metrics/mAP_0.5"].max()


def test_a_training_that_breaks_down_counts_as_nothing(opt: TrainOptions, caplog: pytest.LogCaptureFixture) -> None:
    faults = {1: FloatingPointError("loss is nan\nin batch 7"), 3: RuntimeError('say "no"')}
    folder = evolve(replace(opt, evolve=5), FakeTraining(faults.get))
    rows, who = table(folder), pd.read_csv(folder / "trials.csv")
    assert (rows.loc[[1, 3], list(METRICS)] == 0).all(axis=None) and (rows.loc[[0, 2, 4], "metrics/recall"] > 0).all()
    assert who["state"].tolist() == ["done", "failed", "done", "failed", "done"]
    assert who["reason"].tolist()[1] == "loss is nan in batch 7" and who["reason"].tolist()[3] == "say 'no'"
    assert "trial 1 broke down" in caplog.text


def test_results_that_are_no_numbers_count_as_nothing(opt: TrainOptions) -> None:
    folder = evolve(opt, lambda opt, callbacks: (float("nan"),) * 7 if opt.name == "2" else (0.1,) * 7)
    assert pd.read_csv(folder / "trials.csv")["state"].tolist() == ["done", "done", "failed", "done"]
    assert Hyp.load(folder / "hyp_evolve.yaml") == Hyp.load(folder / "trials/0/hyp.yaml")


@pytest.mark.parametrize("broken, says", [({0}, "own trial broke down"), ({1, 2, 3}, "3 trials in a row")])
def test_what_cannot_be_the_hyper_parameters_fault_stops_the_search(
    opt: TrainOptions, broken: set[int], says: str
) -> None:
    first = FakeTraining(lambda number: RuntimeError("no CUDA device") if number in broken else None)
    with pytest.raises(ValueError, match=f"{says}.*no CUDA device"):
        evolve(opt, first)
    mended = FakeTraining()
    folder = evolve(replace(opt, resume=True), mended)
    assert len(table(folder)) == 4 and mended.hyps[0] == first.hyps[-1]  # the last was given back, the others count


ERRORS = [ValueError("no labels"), KeyboardInterrupt(), TypeError("a bug"), WorkerFault("killed")]


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_that_is_nobody_s_fault_gives_the_trial_back(opt: TrainOptions, error: BaseException) -> None:
    first = FakeTraining({2: error}.get)
    with pytest.raises(type(error)):
        evolve(opt, first)
    second = FakeTraining()
    folder = evolve(replace(opt, resume=True), second)
    assert [int(given.name) for given in second.given] == [2, 3] and second.hyps[0] == first.hyps[2]
    assert len(table(folder)) == 4


def test_a_trial_whose_former_worker_still_trains_is_tried_again(
    opt: TrainOptions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "BEAT", 0.01)
    busy = [Busy("process 7 on elsewhere trains in this folder")]
    train = FakeTraining(lambda number: busy.pop() if number == 2 and busy else None)
    folder = evolve(opt, train)
    assert [int(given.name) for given in train.given] == [0, 1, 2, 2, 3] and len(table(folder)) == 4
    assert "trial 2: process 7 on elsewhere trains in this folder; trying again" in caplog.text


def test_another_s_outcome_counts_when_the_trial_was_taken(opt: TrainOptions, caplog: pytest.LogCaptureFixture) -> None:
    taken: list[int] = []

    def train(opt: TrainOptions, callbacks: Callbacks) -> tuple[float, ...]:
        if not taken:  # what another machine does when it has not heard of us for too long
            storage = open_storage(str(Path(opt.project).parent / "search.journal"))
            [running] = storage.get_all_trials(0)
            storage.set_trial_state_values(running._trial_id, optuna.trial.TrialState.FAIL)
            taken.append(running.number)
            callbacks.run("on_fit_epoch_end", [0.0] * 13, 0, 0.1, 0.1)
            assert callbacks.stop_training
            return (0.9,) * 7
        return (0.1,) * 7

    folder = evolve(replace(opt, evolve=1, evolve_pruner="median"), train)
    assert "trial 0 had been taken over" in caplog.text and table(folder)["metrics/recall"].tolist() == [0.1]


def test_the_search_waits_for_others_and_takes_over(
    opt: TrainOptions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    evolve(replace(opt, evolve=1), FakeTraining())
    ledger_class, naps = module.Ledger, []
    storage = open_storage(str(Path(opt.project) / "exp/search.journal"))
    other = ledger_class(storage, 0)
    other.me = other.me | {"space": "another machine"}
    other.claim(2)

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 5:
            monkeypatch.setattr("utils.search.trials.SILENCE", 0.0)

    monkeypatch.setattr(module.time, "sleep", nap)
    train = FakeTraining()
    evolve(replace(opt, evolve=2, resume=True), train)
    assert len(naps) == 5 and [given.name for given in train.given] == ["1"]
    assert caplog.text.count("waiting for other workers' trials 1") == 1 and "going on with trial 1" in caplog.text


@pytest.mark.parametrize(
    "change, says",
    [
        ({"evolve": 0}, "--evolve 0"),
        ({"resume": "last.pt"}, "--resume takes no file"),
        ({"epochs": 0}, "--epochs"),
        ({"hyp": "none.yaml"}, "none.yaml"),
        ({"data": "none.yaml"}, "none.yaml"),
        ({"evolve_sampler": "bayes"}, "--evolve-sampler bayes"),
        ({"evolve_pruner": "axe"}, "--evolve-pruner axe"),
        ({"evolve_storage": "sqlite:////no/such/folder/a.db"}, "cannot be opened"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    opt: TrainOptions, change: dict, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utils.search.storage.ATTEMPTS", 1)
    with pytest.raises(ValueError, match=says):
        evolve(replace(opt, **change), FakeTraining())
    assert not Path(opt.project).exists()


def test_several_processes_of_one_training_are_refused(opt: TrainOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="start more workers"):
        evolve(opt, FakeTraining())


def test_another_search_is_not_joined(opt: TrainOptions) -> None:
    evolve(replace(opt, evolve=1), FakeTraining())
    with pytest.raises(ValueError, match="started with epochs 4, not 9"):
        evolve(replace(opt, epochs=9, resume=True), FakeTraining())
    with pytest.raises(ValueError, match="started with hyp's "):
        evolve(replace(opt, hyp="hyp.scratch-high.yaml", resume=True), FakeTraining())


def test_another_program_s_study_is_not_joined(opt: TrainOptions, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/a.db"
    optuna.create_study(storage=storage, study_name="exp").ask()
    with pytest.raises(ValueError, match=r"a\.db holds a study named exp of another program"):
        evolve(replace(opt, evolve_storage=storage), FakeTraining())


def test_a_missing_package_is_one_line(opt: TrainOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match="pip install optuna"):
        evolve(opt, FakeTraining())
    assert not Path(opt.project).exists()


def test_a_database_that_goes_away_is_one_line(
    opt: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utils.search.trials.PAUSES", ())

    def train(opt: TrainOptions, callbacks: Callbacks) -> tuple[float, ...]:
        (tmp_path / "a.db").write_bytes(b"")  # all tables are gone
        return (0.1,) * 7

    with pytest.raises(ConnectionError, match=r"--evolve-storage sqlite:.*a\.db does not answer"):
        evolve(replace(opt, evolve_storage=f"sqlite:///{tmp_path}/a.db"), train)
