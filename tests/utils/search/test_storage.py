"""Where workers meet."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from utils.base.yaml import read_yaml
from utils.search import storage as search_storage
from utils.search.storage import (
    Place,
    check_same,
    find_place,
    load_optuna,
    open_storage,
    shared_options,
    sign,
    without_password,
)
from utils.training.train_options import TrainOptions

pytest.importorskip("optuna")


@pytest.fixture
def opt(tmp_path: Path) -> TrainOptions:
    return TrainOptions(evolve=3, project=str(tmp_path / "evolve"))


def begin(opt: TrainOptions) -> Place:
    """A search as its first worker leaves it."""
    place = find_place(opt)
    sign(place, opt)
    if "://" not in place.storage:
        Path(place.storage).touch()
    return place


def test_a_search_has_a_folder_of_its_own(opt: TrainOptions) -> None:
    first, second = begin(opt), begin(opt)
    assert (first.folder.name, second.folder.name) == ("exp", "exp2")
    assert first.storage == str(first.folder / "search.journal") and first.study == second.study == "search"
    assert first.about == "search.journal" and read_yaml(first.folder / "search.yaml")["storage"] == "search.journal"


def test_resume_joins_the_newest_and_exist_ok_the_named(opt: TrainOptions) -> None:
    assert find_place(replace(opt, resume=True)).folder.name == "exp"  # the first worker may say so too
    begin(replace(opt, exist_ok=True))
    second = begin(opt)
    assert find_place(replace(opt, resume=True)) == second
    assert find_place(replace(opt, exist_ok=True)).folder.name == "exp"
    assert find_place(replace(opt, name="pcb", resume=True)).folder.name == "pcb"


def test_whoever_names_a_storage_joins_its_search(opt: TrainOptions, tmp_path: Path) -> None:
    shared = replace(opt, evolve_storage="postgresql://me:secret@host/db")
    place = begin(shared)
    assert find_place(shared) == place and place.study == "exp" and find_place(opt).folder != place.folder
    assert find_place(replace(shared, name="other")).folder.name == "other"
    assert "secret" not in (place.folder / "search.yaml").read_text()
    journal = replace(opt, evolve_storage=str(tmp_path / "meet.journal"))
    place = begin(journal)
    assert find_place(journal) == place
    inside = begin(opt)
    assert find_place(replace(opt, project=str(tmp_path / "elsewhere"), evolve_storage=inside.storage)) == inside


def test_the_usual_project_is_not_that_of_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(search_storage, "ROOT", tmp_path)
    assert find_place(TrainOptions(evolve=1)).folder == tmp_path / "runs/evolve/exp"


def test_another_search_s_folder_is_left_alone(opt: TrainOptions) -> None:
    place = begin(replace(opt, exist_ok=True))
    with pytest.raises(ValueError, match="is of the search in search.journal"):
        sign(replace(place, storage="sqlite:///a.db"), opt)
    sign(place, opt)
    (place.folder / "search.yaml").unlink()
    (place.folder / "evolve.csv").touch()
    with pytest.raises(ValueError, match="evolve.csv is of another search"):
        sign(place, opt)


def test_workers_must_agree(opt: TrainOptions, tmp_path: Path) -> None:
    place = find_place(opt)
    ours = shared_options(opt)
    check_same(place, ours, {})
    check_same(place, ours, json.loads(json.dumps(ours)))
    check_same(place, ours, shared_options(replace(opt, device="1", workers=2, evolve=9, evolve_sampler="tpe")))
    check_same(place, ours, shared_options(replace(opt, data="/elsewhere/shapes.yaml")))
    with pytest.raises(ValueError, match="started with epochs 300, not 10"):
        check_same(place, shared_options(replace(opt, epochs=10)), ours)


@pytest.mark.parametrize(
    "url, says",
    [
        ("nonsense://me:secret@host/db", r"nonsense://me:\*\*\*@host/db: cannot be opened \(.*nonsense"),
        ("sqlite:////no/such/folder/a.db", r"cannot be opened \(unable to open database file\)"),
    ],
)
def test_databases_that_cannot_be_opened(url: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_storage.time, "sleep", lambda seconds: None)
    with pytest.raises(ValueError, match=says) as caught:
        open_storage(url)
    assert "secret" not in str(caught.value)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "MySQLdb", None)
    with pytest.raises(ValueError, match="pip install mysqlclient"):
        open_storage("mysql+mysqldb://me:secret@host/db")


def test_a_missing_optuna_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match="pip install optuna"):
        load_optuna()


@pytest.mark.parametrize(
    "content", ["hello\n", "[1]\n", '{"op_code": 77, "worker_id": "a"}\n', "{}\n", '{"op_code": 0}\n']
)
def test_what_is_no_journal_is_refused_and_left_as_it_is(tmp_path: Path, content: str) -> None:
    file = tmp_path / "notes.txt"
    file.write_text(content)
    with pytest.raises(ValueError, match="not the journal of a search"):
        open_storage(str(file))
    assert file.read_text() == content


def test_a_journal_survives_a_line_that_was_torn(tmp_path: Path) -> None:
    optuna, file = load_optuna(), tmp_path / "new" / "a.journal"
    study = optuna.create_study(storage=open_storage(str(file)), study_name="search")
    study.ask()
    with file.open("a") as journal:
        journal.write('{"op_code": 4, "worker_id": "killed whi')
    study.ask()  # whoever lives mends it, whether it opened the journal before
    later = optuna.load_study(storage=open_storage(str(file)), study_name="search")
    later.ask()
    assert len(later.trials) == len(study.trials) == 3 and "killed whi" not in file.read_text()


def test_passwords_are_not_shown() -> None:
    assert without_password("mysql://me:se:cret@h:3306/db") == "mysql://me:***@h:3306/db"
    assert without_password("sqlite:///a.db") == "sqlite:///a.db"
