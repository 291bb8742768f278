"""A search as one worker makes it, mostly with a training that takes no time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

pytest.importorskip("optuna")
pytest.importorskip("cmaes")

import optuna

import train
from utils.base.callbacks import Callbacks
from utils.base.config import Hyp
from utils.base.paths import check_yaml
from utils.base.yaml import read_yaml
from utils.data.loader_faults import WorkerFault
from utils.distributed.run_lock import Busy
from utils.search import evolve as module
from utils.search import results
from utils.search.evolve import evolve, find_folder
from utils.search.results import METRICS, plot_evolve
from utils.search.space import LIMITS
from utils.search.worker import _JournalLock, open_storage
from utils.training.train_options import TrainOptions


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr("utils.search.worker.POLL", 0.01)
    monkeypatch.setattr("utils.search.worker.BEAT", 0.05)
    if "real" not in request.node.name:
        monkeypatch.setattr("utils.search.results.plot_evolve", lambda file: file)


@pytest.fixture
def opt(tmp_path: Path) -> TrainOptions:
    return TrainOptions(evolve=4, project=str(tmp_path / "evolve"), hyp="hyp.scratch-low.yaml", epochs=4)


class FakeTraining:
    """Better with a larger box gain and less scale; learns evenly over the epochs; remembers what it was given."""

    def __init__(self, fail: Callable[[int], BaseException | None] = lambda number: None) -> None:
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


def test_two_real_trainings(squares: Path, tiny_cfg: Path, tmp_path: Path) -> None:
    options = {"imgsz": 64, "epochs": 1, "batch_size": 4, "workers": 0, "device": "cpu"}
    train.run(data=str(squares), cfg=str(tiny_cfg), evolve=2, project=str(tmp_path / "runs"), **options)
    folder = tmp_path / "runs/exp"
    files = "evolve.csv evolve.png hyp_evolve.yaml search.journal search.yaml trials trials.csv"
    assert sorted(path.name for path in folder.iterdir()) == files.split()
    assert cv2.imread(str(folder / "evolve.png")).std() > 5
    rows = table(folder)
    assert len(rows) == 2 and rows["val/box_loss"].gt(0).all() and rows["lr0"].nunique() == 2
    for number in range(2):
        trial = folder / "trials" / str(number)
        assert read_yaml(trial / "hyp.yaml")["lr0"] == rows["lr0"][number] and (trial / "results.csv").exists()
        assert read_yaml(trial / "opt.yaml")["optimizer"] == "SGD" and not (trial / "weights").exists()


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
    assert who["trial"].tolist() == [0, 1, 2, 3] and set(who["state"]) == {"done"} and who["pid"].nunique() == 1
    assert not list(folder.glob("trials/*/weights")) and not list(folder.glob(".*"))


def test_the_options_of_trials(opt: TrainOptions, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    train = FakeTraining()
    folder = evolve(replace(opt, evolve=2, evolve_storage=f"sqlite:///{opt.project}.db"), train)
    given = train.given[1]
    assert Path(given.project) / given.name == folder / "trials/1" and given.exist_ok and given.resume == "auto"
    assert given.noval and given.nosave and given.patience == 0 and given.loggers == ["none"] and given.evolve == 2
    assert given.optimizer == "SGD" and "auto would ignore lr0" in caplog.text and not given.evolve_storage
    named = FakeTraining()
    evolve(replace(opt, name="named", evolve=1, optimizer="AdamW", evolve_pruner="median"), named)
    assert named.given[0].optimizer == "AdamW" and not named.given[0].noval and named.given[0].patience == 100


@pytest.mark.parametrize("sampler", ["genetic", "tpe", "cmaes", "random"])
def test_the_seed_decides_however_often_a_search_is_interrupted(opt: TrainOptions, sampler: str) -> None:
    opt = replace(opt, evolve_sampler=sampler)
    first, again, parts = FakeTraining(), FakeTraining(), FakeTraining({2: KeyboardInterrupt()}.get)
    evolve(opt, first)
    evolve(opt, again)
    assert first.hyps == again.hyps and len(set(map(str, first.hyps))) == 4
    place = replace(opt, name="parts", exist_ok=True)
    evolve(replace(place, evolve=2), parts)
    with pytest.raises(KeyboardInterrupt):
        evolve(place, parts)
    parts.fail = lambda number: None
    evolve(place, parts)  # N counts all trials, those of earlier processes too
    assert parts.hyps == [*first.hyps[:3], *first.hyps[2:]]
    evolve(place, parts)
    assert len(parts.hyps) == 5


@pytest.mark.parametrize("pruner", ["median", "halving", "hyperband"])
def test_pruners_save_epochs(opt: TrainOptions, pruner: str) -> None:
    train = FakeTraining()
    folder = evolve(replace(opt, evolve=12, epochs=16, evolve_pruner=pruner, evolve_sampler="random"), train)
    who, rows = pd.read_csv(folder / "trials.csv"), table(folder)
    pruned = [number for number, epochs in enumerate(train.epochs) if epochs < 16]
    assert pruned and who.index[who["state"] == "pruned"].tolist() == pruned and len(rows) == 12
    best = int(np.argmax(rows["metrics/mAP_0.5"] * (np.array(train.epochs) == 16)))
    assert read_yaml(folder / "hyp_evolve.yaml")["box"] == train.hyps[best].box


def test_a_training_that_breaks_down_counts_as_nothing(opt: TrainOptions) -> None:
    faults = {1: FloatingPointError("loss is nan\nin batch 7"), 3: RuntimeError('say "no"')}
    fake = FakeTraining(faults.get)
    folder = evolve(replace(opt, evolve=6), lambda o, c: (float("nan"),) * 7 if o.name == "5" else fake(o, c))
    rows, who = table(folder), pd.read_csv(folder / "trials.csv", keep_default_na=False)
    assert (rows.loc[[1, 3, 5], list(METRICS)] == 0).all(axis=None) and (rows["metrics/recall"][[0, 2, 4]] > 0).all()
    assert who["state"].tolist() == ["done", "failed"] * 3
    assert who["reason"].tolist() == ["", "loss is nan in batch 7", "", "say 'no'", "", "its metrics are not numbers"]


@pytest.mark.parametrize("broken, says", [({0}, "own trial broke down"), ({1, 2, 3}, "3 trials in a row")])
def test_what_cannot_be_the_hyper_parameters_fault_stops_the_search(opt, broken, says):
    first = FakeTraining(lambda number: RuntimeError("no CUDA device") if number in broken else None)
    with pytest.raises(ValueError, match=f"{says}.*no CUDA device"):
        evolve(opt, first)
    mended = FakeTraining()
    folder = evolve(replace(opt, resume=True), mended)
    assert len(table(folder)) == 4 and mended.hyps[0] == first.hyps[-1]  # the last was given back, the others count


def test_what_is_no_fault_of_the_trial_s_gives_it_back_or_tries_again(opt: TrainOptions) -> None:
    first = FakeTraining()
    for number, error in enumerate((ValueError("no labels"), TypeError("a bug"), WorkerFault("killed")), start=1):
        first.fail = {number: error}.get
        with pytest.raises(type(error)):
            evolve(replace(opt, resume=True), first)
    busy = [Busy("process 7 on elsewhere trains in this folder")]
    second = FakeTraining(lambda number: busy.pop() if number == 3 and busy else None)
    assert len(table(evolve(replace(opt, resume=True), second))) == 4
    assert [int(given.name) for given in first.given] == [0, 1, 1, 2, 2, 3]
    assert [int(given.name) for given in second.given] == [3, 3] and second.hyps == [first.hyps[-1]] * 2


MISTAKES = [
    ({"resume": "last.pt"}, "--resume takes no file"),
    ({"epochs": 0}, "--epochs"),
    ({"hyp": "none.yaml"}, "none.yaml"),
    ({"data": "none.yaml"}, "none.yaml"),
    ({"evolve_storage": "sqlite:////no/such/folder/a.db"}, r"cannot be opened \(unable to open database file\)"),
    (
        {"evolve_storage": "nonsense://me:sec:ret@host/db"},
        r"nonsense://me:\*\*\*@host/db: cannot be opened \(.*nonsense",
    ),
    ({"evolve_storage": "mysql+mysqldb://me:sec:ret@host/db"}, r"me:\*\*\*@host/db: .* pip install mysqlclient$"),
]


@pytest.mark.parametrize("change, says", MISTAKES)
def test_mistakes_are_reported_before_anything_is_written(opt, change, says, monkeypatch):
    monkeypatch.setattr("utils.search.worker.ATTEMPTS", 1)
    monkeypatch.setitem(sys.modules, "MySQLdb", None)
    with pytest.raises(ValueError, match=says) as caught:
        evolve(replace(opt, **change), FakeTraining())
    assert not Path(opt.project).exists() and "sec:ret" not in str(caught.value)


def test_a_missing_package_is_one_line(opt: TrainOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    found = module.importlib.util.find_spec
    for package in ("optuna", "cmaes"):
        monkeypatch.setattr(
            "importlib.util.find_spec", lambda name, *more, no=package: None if name == no else found(name)
        )
        with pytest.raises(ValueError, match=f"pip install {package}"):
            evolve(replace(opt, evolve_sampler="cmaes"), FakeTraining())
    assert not Path(opt.project).exists()


def test_whose_search_it_is(opt: TrainOptions, tmp_path: Path) -> None:
    first = evolve(replace(opt, evolve=1, resume=True), FakeTraining())  # the first worker may say so too
    second, storage = evolve(replace(opt, evolve=1), FakeTraining()), f"sqlite:///{tmp_path}/a.db"
    assert (first.name, second.name) == ("exp", "exp2")
    assert find_folder(replace(opt, resume=True)) == second and find_folder(replace(opt, exist_ok=True)) == first
    assert find_folder(replace(opt, name="pcb", resume=True)).name == "pcb"
    assert find_folder(replace(opt, project="no", evolve_storage=str(second / "search.journal"))) == second
    for change, says in [
        ({"epochs": 9}, "started with epochs 4, not 9"),
        ({"hyp": "hyp.scratch-high.yaml"}, "started with hyp's "),
    ]:
        with pytest.raises(ValueError, match=says):
            evolve(replace(opt, **change, resume=True), FakeTraining())
    personal = {"device": "cpu", "workers": 2, "evolve_sampler": "tpe", "evolve": 2}
    assert evolve(replace(opt, **personal, resume=True), FakeTraining()) == second
    with pytest.raises(ValueError, match=r"exp is of the search in search\.journal"):
        evolve(replace(opt, evolve_storage=storage), FakeTraining())
    optuna.create_study(storage=storage, study_name="theirs").ask()
    with pytest.raises(ValueError, match=r"a\.db holds a study named theirs of another program"):
        evolve(replace(opt, evolve_storage=storage, name="theirs"), FakeTraining())
    (second / "search.yaml").unlink()
    with pytest.raises(ValueError, match="exp2 is of the search in another"):
        evolve(replace(opt, name="exp2", exist_ok=True), FakeTraining())


def test_a_database_that_goes_away_is_one_line(opt: TrainOptions, tmp_path: Path) -> None:
    def train(opt: TrainOptions, callbacks: Callbacks) -> tuple[float, ...]:
        (tmp_path / "a.db").write_bytes(b"")  # all tables are gone
        return (0.1,) * 7

    with pytest.raises(ConnectionError, match=r"--evolve-storage sqlite:.*a\.db does not answer"):
        evolve(replace(opt, evolve_storage=f"sqlite:///{tmp_path}/a.db"), train)


def test_what_is_no_journal_is_refused_and_one_survives_a_line_that_was_torn(tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    for content in ("hello\n", "[1]\n", '{"op_code": 77, "worker_id": "a"}\n', "{}\n", '{"op_code": 0}\n'):
        other.write_text(content)
        with pytest.raises(ValueError, match="not the journal of a search"):
            open_storage(str(other), "")
        assert other.read_text() == content
    file = tmp_path / "new" / "a.journal"
    study = optuna.create_study(storage=open_storage(str(file), ""), study_name="search")
    study.ask()
    with file.open("a") as journal:
        journal.write('{"op_code": 4, "worker_id": "killed whi')
    study.ask()  # whoever lives mends it, whether it opened the journal before
    later = optuna.load_study(storage=open_storage(str(file), ""), study_name="search")
    later.ask()
    assert len(later.trials) == len(study.trials) == 3 and "killed whi" not in file.read_text()
    file.unlink()  # where it cannot be opened any more no lock is left behind
    with pytest.raises(FileNotFoundError):
        _JournalLock(str(file)).acquire()
    assert not list(file.parent.iterdir())


@pytest.mark.parametrize("trials", [1, 12])
def test_the_real_drawing_has_a_panel_for_each_hyper_parameter(tmp_path, trials, monkeypatch):
    rows, names = np.random.default_rng(0).random((trials, 15)).round(3), [f"key{i}" for i in range(8)]
    rows[:, 7] = 0.2  # one that was kept
    drawn, file, new_figure = [], tmp_path / "evolve.csv", results.new_figure
    monkeypatch.setattr(results, "new_figure", lambda *given: drawn.append(new_figure(*given)) or drawn[0])
    header = ",".join(f"{name:>20}" for name in [*METRICS, *names])
    np.savetxt(file, rows, fmt="%20.5g", delimiter=",", header=header, comments="")
    assert plot_evolve(file) == tmp_path / "evolve.png" and cv2.imread(str(tmp_path / "evolve.png")).std() > 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evolve.csv", "evolve.png"]
    axes = [axis for axis in drawn[0][1] if axis.get_visible()]
    assert [axis.get_title("left").split()[0] for axis in axes] == [*names, "fitness"]
    fitness = 0.1 * rows[:, 2] + 0.9 * rows[:, 3]
    for column, axis in enumerate(axes[:-1], start=7):
        dots = np.asarray(axis.collections[0].get_offsets())
        np.testing.assert_allclose(dots, np.column_stack([rows[:, column], fitness]), atol=1e-4)
        assert axis.get_title("left").endswith(f" {rows[fitness.argmax(), column]:.3g}")


def test_what_is_no_table_is_not_drawn(tmp_path: Path) -> None:
    for content in (None, "", "a,b\n1,2\n", "a,b,c,d,e,f,g,h\n", "a,b,c,d,e,f,g,h\n1,2,3,4,5,6,7,x\n"):
        if content is not None:
            (tmp_path / "evolve.csv").write_text(content)
        with pytest.raises(ValueError, match=r"evolve\.csv: "):
            plot_evolve(tmp_path / "evolve.csv")
