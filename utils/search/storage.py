"""Where the workers of one search meet: a journal file or a database, and the folder that their results go to."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from utils.base.paths import ROOT, increment_path, shown
from utils.base.yaml import read_yaml, write_yaml
from utils.search.lock import JournalLock
from utils.training.train_options import TrainOptions

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

JOURNAL, ABOUT, TABLE = "search.journal", "search.yaml", "evolve.csv"  # in a search's folder
STUDY = "search"  # name of the only study of a journal; a database holds one for each --name
LOCK_TIMEOUT = 60  # seconds for which SQLite waits for another worker
ATTEMPTS = 5  # at opening a database: the first workers may all be making its tables
# each worker's own business: these may differ between the workers of a search
PERSONAL = {
    "device", "workers", "project", "name", "exist_ok", "resume", "cache", "log", "local_rank", "save_minutes",
    "save_period", "nosave", "noval", "evolve", "evolve_sampler", "evolve_pruner", "evolve_storage", "entity", "bucket",
    "upload_dataset", "bbox_interval", "artifact_alias", "hyp",
}  # fmt: skip
DRIVERS = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
FILES = {"weights", "cfg", "data"}  # may lie elsewhere on each machine


def load_optuna() -> ModuleType:
    """Optuna, telling of trouble only. Raises ValueError when it is not installed."""
    try:
        import optuna
    except ImportError:
        raise ValueError("--evolve needs a package: pip install optuna") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@dataclass(frozen=True, slots=True)
class Place:
    """The folder of a search, where its trials are kept, and under which name."""

    folder: Path
    storage: str  # a database URL or the path of a journal
    study: str

    @property
    def about(self) -> str:
        """The storage as search.yaml names it: without a password, and so that the folder may move."""
        return JOURNAL if self.storage == str(self.folder.resolve() / JOURNAL) else without_password(self.storage)


def without_password(url: str) -> str:
    """A database URL that may be shown."""
    return re.sub(r"(//[^:/@]*):[^@]*@", r"\1:***@", url)


def named_storage(opt: TrainOptions) -> str:
    """`--evolve-storage`: a database URL as it is, the path of a journal in full, or nothing."""
    storage = opt.evolve_storage
    return storage if not storage or "://" in storage else str(Path(storage).expanduser().resolve())


def find_place(opt: TrainOptions) -> Place:
    """Where a search is, or is to be; its folder is made when it is new.

    Whoever names a storage joins the search that lives there; `--resume` joins the newest search, or the one with the
    given name, and `--exist-ok` the one at project/name. Otherwise a new numbered folder is made.
    """
    default, storage = TrainOptions(), named_storage(opt)
    project = ROOT / "runs/evolve" if opt.project == default.project else Path(opt.project)
    study = opt.name if "://" in storage else STUDY
    folder = _known_folder(project, opt.name, storage)
    if folder is None and opt.resume and not storage and opt.name == default.name:
        found = [path.parent for path in project.glob(f"*/{JOURNAL}")]
        folder = max(found, key=lambda path: (path / JOURNAL).stat().st_mtime, default=None)
    if folder is None:
        folder = increment_path(project / opt.name, exist_ok=bool(opt.resume or opt.exist_ok), mkdir=True)
    return Place(folder, storage or str(folder.resolve() / JOURNAL), study)


def _known_folder(project: Path, name: str, storage: str) -> Path | None:
    """The folder of the search that a named storage holds, as far as it is on this machine."""
    if not storage:
        return None
    if "://" not in storage and (Path(storage).parent / ABOUT).is_file():
        return Path(storage).parent
    for about in sorted(project.glob(f"*/{ABOUT}")):
        content = read_yaml(about)
        if content.get("storage") == without_password(storage) and content.get("study") in (name, STUDY):
            return about.parent
    return None


def sign(place: Place, opt: TrainOptions) -> None:
    """Write search.yaml. Raises ValueError when the folder is another search's."""
    file = place.folder / ABOUT
    if file.is_file():
        other = read_yaml(file)
        if (other.get("storage"), other.get("study")) != (place.about, place.study):
            raise ValueError(f"{shown(place.folder)} is of the search in {other.get('storage')}; choose another --name")
        return
    if (place.folder / TABLE).exists():
        raise ValueError(f"{shown(place.folder / TABLE)} is of another search; choose another --name")
    write_yaml(file, {"storage": place.about, "study": place.study} | shared_options(opt))


def shared_options(opt: TrainOptions) -> dict[str, Any]:
    """The options that must be the same for all workers of a search."""
    options = {key: value for key, value in asdict(opt).items() if key not in PERSONAL}
    return {key: Path(value).name if key in FILES else value for key, value in options.items()}


def check_same(place: Place, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the first difference, when a worker's options are not those of its search."""
    for key in ours.keys() & theirs.keys():
        if ours[key] != theirs[key]:
            raise ValueError(
                f"the search in {shown(place.folder)} was started with {key} {theirs[key]}, not {ours[key]}; give what"
                " it was started with, or choose another --name"
            )


def open_storage(url: str) -> BaseStorage:
    """The storage behind a database URL or a journal's path, made when there is none.

    Raises ValueError when it cannot be opened, without the password that the URL may hold.
    """
    return _open_database(url) if "://" in url else _open_journal(Path(url))


def _open_database(url: str) -> BaseStorage:
    from optuna.exceptions import OptunaError
    from optuna.storages import RDBStorage, get_storage
    from sqlalchemy.exc import SQLAlchemyError

    waits = {"connect_args": {"timeout": LOCK_TIMEOUT}} if url.startswith("sqlite") else {}
    for attempt in range(ATTEMPTS):
        try:
            return get_storage(RDBStorage(url, engine_kwargs={"pool_pre_ping": True} | waits))
        except ImportError as error:
            missing = getattr(error.__cause__, "name", None) or "the database's driver"
            package = DRIVERS.get(missing, missing)
            raise ValueError(
                f"--evolve-storage {without_password(url)}: needs a package: pip install {package}"
            ) from None
        except (SQLAlchemyError, OptunaError, RuntimeError) as error:
            reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        time.sleep(0.5 * (attempt + 1))
    raise ValueError(f"--evolve-storage {without_password(url)}: cannot be opened ({reason})") from None


def _open_journal(path: Path) -> BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _check_beginning(path)
        return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalLock(path)))
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError) as error:
        raise ValueError(f"{shown(path)}: is not the journal of a search ({error}); name another file") from None


def _check_beginning(path: Path) -> None:
    """Raise ValueError or TypeError unless a file is empty or begins as journals do; Optuna forgives the last line."""
    if not path.exists():
        return
    with path.open("rb") as file:
        first = file.readline()
    if first.endswith(b"\n") and not {"op_code", "worker_id"} <= set(json.loads(first)):
        raise ValueError("its first line is no operation")
