"""Search for better hyper-parameters: `train.py --evolve N`, in one process or in many that share a storage."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.base.callbacks import Callbacks
from utils.base.config import DataConfig, Hyp
from utils.base.log import LOGGER, one_line
from utils.base.paths import ROOT, check_yaml, increment_path, shown
from utils.base.yaml import read_yaml, write_yaml
from utils.search.results import TABLE
from utils.search.space import SearchSpace
from utils.training.train_options import TrainOptions, check_options

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.study import Study

JOURNAL, ABOUT = "search.journal", "search.yaml"  # in a search's folder
PERSONAL = frozenset(  # may differ between the workers of a search
    "device workers project name exist_ok resume cache local_rank save_minutes save_period nosave noval loggers evolve "
    "evolve_sampler evolve_pruner evolve_storage entity bucket upload_dataset bbox_interval artifact_alias hyp".split()
)
FILES = ("weights", "cfg", "data")  # may lie elsewhere on each machine


def evolve(opt: TrainOptions, train: Callable[[TrainOptions, Callbacks], tuple[float, ...]]) -> Path:
    """Train `opt.evolve` sets of hyper-parameters, the first being those of `opt.hyp`; return the search's folder.

    Every worker of a search calls this. It returns when all trials are done, its own and the others'. `train` is one
    training by options and hooks and returns (P, R, mAP50, mAP50-95, box, obj, cls losses); it must raise when it is
    interrupted: whatever it returns counts. Raise ValueError for options, files or packages that cannot work, and
    ConnectionError where a database stopped answering.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ValueError("--evolve needs a package: pip install optuna")
    from optuna.exceptions import StorageInternalError

    from utils.search.worker import Worker, open_storage

    opt, space = prepare(opt)
    named = re.sub(r"(//[^:/@]*):[^@]*@", r"\1:***@", opt.evolve_storage)  # without a password
    storage = open_storage(opt.evolve_storage, named) if named else None  # a mistake in it leaves no folder behind
    folder = find_folder(opt)
    journal = str(folder.resolve() / JOURNAL)
    about = JOURNAL if named in ("", journal) else named
    try:
        study = join(opt, space, folder, storage or open_storage(journal, about), about)
        Worker(opt, folder, space, train, study).work()
    except StorageInternalError as error:
        raise ConnectionError(f"--evolve-storage {about} does not answer ({one_line(error)})") from None
    return folder


def prepare(opt: TrainOptions) -> tuple[TrainOptions, SearchSpace]:
    """Return the options of all trainings, and the space around the hyp file. Raise ValueError for what cannot work."""
    if opt.resume not in (False, True):
        raise ValueError("--resume takes no file with --evolve; name the search by --project and --name")
    check_options(opt)
    DataConfig.load(check_yaml(opt.data))
    space = SearchSpace.around(Hyp.load(check_yaml(opt.hyp)), anchors=not opt.noautoanchor)
    if opt.evolve_sampler == "cmaes" and (importlib.util.find_spec("cmaes") is None or len(space.keys) < 2):
        raise ValueError("--evolve-sampler cmaes needs its package (pip install cmaes) and two values that evolve")
    kept = ", ".join(key for key in space.columns if key not in space.keys)
    LOGGER.info(f"evolving {len(space.keys)} hyper-parameters, keeping {kept or 'none'} as in the file")
    if opt.optimizer == "auto":
        LOGGER.info("--optimizer auto would ignore lr0 and momentum: all trials train with SGD, YOLOv5's own choice")
        opt = replace(opt, optimizer="SGD")
    if opt.evolve_storage and "://" not in opt.evolve_storage:
        opt = replace(opt, evolve_storage=str(Path(opt.evolve_storage).expanduser().resolve()))
    return opt, space


def find_folder(opt: TrainOptions) -> Path:
    """Return the folder of a search, made when it is new.

    A named storage has the folder that its journal is in, or project/name; `--resume` means the newest search, or that
    of the given name. Otherwise it is a new numbered folder.
    """
    default, named = TrainOptions(), opt.evolve_storage
    project = ROOT / "runs/evolve" if opt.project == default.project else Path(opt.project)
    if named and (Path(named).parent / ABOUT).is_file():
        return Path(named).parent
    if opt.resume and not named and opt.name == default.name and (begun := list(project.glob(f"*/{JOURNAL}"))):
        return max(begun, key=lambda path: path.stat().st_mtime).parent
    return increment_path(project / opt.name, exist_ok=bool(named or opt.resume or opt.exist_ok), mkdir=True)


def join(opt: TrainOptions, space: SearchSpace, folder: Path, storage: BaseStorage, about: str) -> Study:
    """Begin a search, or join it. Raise ValueError for one with other options, no search of ours, or another's folder.

    A journal has one study, a database one for each --name.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    name = opt.name if "://" in opt.evolve_storage else "search"
    study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
    shared = {key: value for key, value in asdict(opt).items() if key not in PERSONAL}
    shared |= {key: Path(shared[key]).name for key in FILES}
    ours = shared | {f"hyp's {key}": value for key, value in asdict(space.hyp).items()}
    theirs: dict[str, Any] = study.user_attrs.get("options", {})
    if not theirs and study.get_trials(deepcopy=False):
        raise ValueError(f"{about} holds a study named {name} of another program; choose another --name")
    if differ := [key for key in ours.keys() & theirs.keys() if ours[key] != theirs[key]]:
        begun = f"the search in {shown(folder)} was started with {differ[0]} {theirs[differ[0]]}, not {ours[differ[0]]}"
        raise ValueError(f"{begun}; give what it was started with, or choose another --name")
    sign(folder, {"storage": about, "study": name, **shared})
    if not theirs:
        study.set_user_attr("options", ours)
    return study


def sign(folder: Path, search: dict[str, Any]) -> None:
    """Write search.yaml into a new folder. Raise ValueError where the folder is another search's."""
    if not (file := folder / ABOUT).is_file() and not (folder / TABLE).exists():
        write_yaml(file, search)
    other = read_yaml(file) if file.is_file() else {"storage": "another storage"}
    if (other.get("storage"), other.get("study")) != (search["storage"], search["study"]):
        raise ValueError(f"{shown(folder)} is of the search in {other.get('storage')}; choose another --name")
