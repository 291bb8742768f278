"""A run that is stopped, restarted or repeated is the run that it would have been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train
from utils.base.callbacks import Callbacks
from utils.base.options import options
from utils.base.paths import ROOT
from utils.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from utils.data.datasets import DetectionDataset
from utils.data.loader_faults import WorkerFault
from utils.distributed.run_lock import Busy
from utils.training.guard import TrainingFault
from utils.training.optim import Recipe, parameter_groups
from utils.training.setup import PIECES, STATE, set_up
from utils.training.train_options import TrainOptions

BASE = {"imgsz": 64, "epochs": 3, "batch_size": 4, "workers": 0, "device": "cpu", "save_minutes": 0.0}
HYP = "{lr0: 0.02, warmup_epochs: 0, nominal_batch: 8, ema_tau: 3, pooled: 1}"


@pytest.fixture
def job(squares: Path, tiny_cfg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options of a short training with mosaics; of all that it draws only results.csv is left."""
    (tmp_path / "hyp.yaml").write_text(HYP)
    plots = ("drawing.batches.plot_images", *(f"loggers.run.plot_{what}" for what in ("images", "labels", "results")))
    for name in plots:
        monkeypatch.setattr(f"utils.{name}", lambda *args, **named: None)
    named = {"data": str(squares), "cfg": str(tiny_cfg), "hyp": str(tmp_path / "hyp.yaml"), "loggers": ["none"]}
    return BASE | named | {"project": str(tmp_path / "runs"), "optimizer": "Adam"}


def with_callbacks(job: dict[str, Any], **hooks: Callable[..., None]) -> tuple[float, ...]:
    """Train with callbacks."""
    callbacks = Callbacks()
    for hook, action in hooks.items():
        callbacks.register_action(hook, callback=action)
    return train.train(options(TrainOptions, job), callbacks, job)


def end_state(folder: Path) -> dict[str, Any]:
    """What a finished run has come to."""
    found: dict[str, Any] = {"table": (folder / "results.csv").read_text()}
    for name in ("last", "best", "resume"):
        content = load_checkpoint(folder / f"weights/{name}.pt")
        found |= {f"{name} {key}": value for key, value in content["model"]["state_dict"].items()}
    return found


def assert_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys() and first["table"] == second["table"]
    unlike = [key for key in first.keys() - {"table"} if not torch.equal(first[key], second[key])]
    assert not unlike


_WHOLE: dict[str, Any] = {}


def whole(job: dict[str, Any]) -> dict[str, Any]:
    """What the job comes to when it is left alone; trained once for all tests, as nothing in it is chance."""
    if not _WHOLE:
        train.run(**job, name="whole")
        _WHOLE.update(end_state(Path(job["project"]) / "whole"))
    return _WHOLE


def test_the_number_of_workers_changes_nothing(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    for workers in (2, 4):
        lines: list[str] = []
        monkeypatch.setattr(train.LOGGER, "info", lambda text, *rest, lines=lines: lines.append(str(text)))
        train.run(**job | {"name": f"workers{workers}", "workers": workers})
        assert any(f"Using {workers} dataloader workers" in line for line in lines)
        assert_same(end_state(Path(job["project"]) / f"workers{workers}"), whole(job))
    assert len(set(whole(job)["table"].splitlines())) == 4


@pytest.mark.parametrize(
    "number, hook, call, position",
    [
        (signal.SIGTERM, "on_train_batch_end", 5, (1, 2)),
        (signal.SIGINT, "on_train_batch_end", 5, (1, 2)),
        (signal.SIGTERM, "on_train_epoch_end", 2, (1, 3)),  # it then validates
        (signal.SIGTERM, "on_fit_epoch_end", 1, (1, 2)),
    ],
)
def test_a_signal_saves_the_run_and_it_goes_on(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    number: signal.Signals, hook: str, call: int, position: tuple[int, int],
) -> None:  # fmt: skip
    """A scheduler gets the exit code of its signal; the table of results comes back from the checkpoint."""
    calls, create = [], train.Callbacks

    def send(*given: Any, **named: Any) -> None:
        calls.append(given)
        if len(calls) == call:
            os.kill(os.getpid(), number)

    def listening() -> Callbacks:
        callbacks = create()
        callbacks.register_action(hook, callback=send)
        return callbacks

    with monkeypatch.context() as patch:
        patch.setattr(train, "Callbacks", listening)
        assert train.main(words_of(job | {"name": "cut"})) == 128 + number
    said = " ".join(capsys.readouterr().err.split())
    assert f"{number.name}: stopping after this step" in said and "go on with --resume" in said
    folder = Path(job["project"]) / "cut"
    found = load_checkpoint(folder / "weights/last.pt")["position"]
    assert (found["epoch"], found["batch"]) == position
    (folder / "results.csv").unlink()
    train.run(resume=str(folder / "weights/last.pt"))
    assert_same(end_state(folder), whole(job))


def test_best_is_on_disk_before_last_says_so(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    order, write = [], train.CheckpointWriter.save.__globals__["save_checkpoint"]

    def save(path: Path, content: dict[str, Any]) -> None:
        order.append(Path(path).name)
        write(path, content)

    monkeypatch.setattr("utils.training.state.save_checkpoint", save)
    leftover = Path(job["project"]) / "exp/weights/.last.pt.123.tmp"  # of a death while writing
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half")
    train.run(**job | {"save_period": 1, "epochs": 2, "exist_ok": True})
    assert (
        not leftover.exists()
        and order[:3] == ["last.pt", "best.pt", "last.pt"]
        and order[-2:] == ["epoch1.pt", "last.pt"]
    )


def test_weights_that_are_not_finite_never_overwrite_good_ones(job: dict[str, Any]) -> None:
    def ruin(number: int, model: torch.nn.Module, *rest: Any) -> None:
        if number == 4:
            next(model.parameters()).data.fill_(float("inf"))

    with pytest.raises(TrainingFault, match="not finite"):
        with_callbacks(job, on_train_batch_end=ruin)
    content = load_checkpoint(Path(job["project"]) / "exp/weights/last.pt")
    assert content["epoch"] == 0
    assert all(value.isfinite().all() for value in content["model"]["state_dict"].values())


def test_another_data_set_size_begins_the_epoch_again(
    job: dict[str, Any], squares: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(number: int, *rest: Any) -> None:
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(train.Interrupted):
        with_callbacks(job | {"name": "cut", "epochs": 1}, on_train_batch_end=stop)
    for number in range(5):
        (squares.parent / f"images/train/{number}.png").unlink()
    train.run(resume=str(Path(job["project"]) / "cut/weights/last.pt"))
    assert "an epoch had 3 batches and has 2 now: epoch 0 is begun again" in capsys.readouterr().err


def test_training_on_windows_goes_on_as_if_it_had_not_been_stopped(job: dict[str, Any]) -> None:
    """Images of 64 pixels, windows of 32; and what does not go together."""
    job |= {"tile": 32, "tile_overlap": 0.5}
    train.run(**job, name="windows")

    def stop(number: int, *rest: Any) -> None:
        if number == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(train.Interrupted):
        with_callbacks(job | {"name": "cut"}, on_train_batch_end=stop)
    folder = Path(job["project"]) / "cut"
    train.run(resume=str(folder / "weights/last.pt"))
    assert_same(end_state(folder), end_state(folder.with_name("windows")))
    for wrong, words in (({"rect": True}, "--rect"), ({"tile": 0}, "give --tile SIZE")):
        with pytest.raises(ValueError, match=words):
            train.run(**job | wrong)


@pytest.mark.parametrize("key", sorted(STATE))
def test_a_state_that_lacks_something_is_refused_by_name(key: str, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    last = tmp_path / "weights/last.pt"
    save_checkpoint(last, dict.fromkeys(STATE - {key}, 1))
    words = {"model": "holds no training run", "optimizer": "is finished"}.get(key, f"lacks {key}, so it is damaged")
    with pytest.raises(ValueError, match=words):
        set_up(TrainOptions(resume=str(last)))


def test_the_device_is_that_of_the_run_unless_another_is_asked_for(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    train.run(**job | {"epochs": 1})
    asked: list[str] = []
    cpu = torch.device("cpu")
    monkeypatch.setattr("utils.training.setup.select_device", lambda name, batch: asked.append(name) or cpu)
    last = str(Path(job["project"]) / "exp/weights/last.pt")
    set_up(TrainOptions(resume=last, epochs=2), ["resume", "epochs"])
    set_up(TrainOptions(resume=last, epochs=2, device="1"), ["resume", "epochs", "device"])
    assert asked == ["cpu", "1"]
    data = Path(job["data"])
    data.write_text(data.read_text().replace("[red, blue]", "[red, green]"))
    with pytest.raises(ValueError, match="has the classes .*green.*, the run was begun with .*blue"):
        train.run(resume=last, epochs=2)


def test_a_run_goes_on_with_the_optimiser_and_loss_that_it_was_begun_with(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As docs/extending.md replaces them."""

    class Mine(train.ComputeLoss):
        pass

    def build(model: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
        return torch.optim.NAdam([{"params": group} for group in parameter_groups(model)], lr=recipe.lr)

    last, longer = Path(job["project"]) / "exp/weights/last.pt", {"epochs": 2}
    with monkeypatch.context() as script:
        script.setattr(train, "ComputeLoss", Mine)
        script.setattr(train, "build_optimizer", build)
        train.run(**job | {"epochs": 1})
        assert "optimizer: NAdam(" in capsys.readouterr().err
        script.setattr(train, "ComputeLoss", Mine.__base__)
        with pytest.raises(ValueError, match=r"begun with .*'Mine'\], this script has .*'ComputeLoss'\]; go on with"):
            train.run(resume=str(last), **longer)
    with pytest.raises(ValueError, match="begun with .*'NAdam'.*, this script has .*'Adam'"):
        train.run(resume=str(last), **longer)
    monkeypatch.setattr(train, "ComputeLoss", Mine)
    monkeypatch.setattr(train, "build_optimizer", build)
    train.run(resume=str(last), **longer)
    content = load_checkpoint(last.with_name("resume.pt"))
    assert content.pop("classes") == ["NAdam", "Mine"]
    save_checkpoint(last, content)  # files of earlier versions do not tell
    train.run(resume=str(last), epochs=3)


@pytest.mark.parametrize("joined", [False, True])
def test_out_of_memory_in_the_middle_of_a_run(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, joined: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Alone it goes on from the last step in smaller pieces; one of several remembers them for the next try."""
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    job |= {"workers": 2}  # which have prepared batches that are asked for again
    forward, sizes = train.Model.forward, []

    def cramped(self: train.Model, images: torch.Tensor, *rest: Any) -> Any:
        sizes.append(len(images) if self.training else 0)
        if sizes[-1] > 2 and sum(map(bool, sizes)) > 4:
            monkeypatch.setattr("utils.training.state.is_joined", lambda: joined)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, images, *rest)

    monkeypatch.setattr(train.Model, "forward", cramped)
    weights = Path(job["project"]) / "exp/weights"
    if joined:
        with pytest.raises(TrainingFault, match="--resume goes on in smaller pieces"):
            train.run(**job)
        assert (weights / PIECES).read_text() == "2"
        train.run(resume=str(weights / "last.pt"))
    else:
        train.run(**job)
        assert "every batch is now computed in 2 pieces, with the same steps" in capsys.readouterr().err
    assert load_checkpoint(weights / "resume.pt")["split"] == 2 and not (weights / PIECES).exists()
    assert len((weights.parent / "results.csv").read_text().splitlines()) == 4


# ---- one folder, one run
def words_of(job: dict[str, Any]) -> list[str]:
    """A job as a command line."""
    lists = {key: value if isinstance(value, list) else [value] for key, value in job.items()}
    return [word for key, value in lists.items() for word in (f"--{key.replace('_', '-')}", *map(str, value))]


def start(words: list[str]) -> subprocess.Popen[str]:
    command, environment = [sys.executable, "train.py", *words], os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def test_runs_of_one_name_that_start_together_get_a_folder_each(job: dict[str, Any]) -> None:
    runs = [start(words_of(job | {"epochs": 1, "name": "night"})) for _ in range(2)]
    said = [run.communicate(timeout=240)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    folders = sorted(Path(job["project"]).iterdir())
    assert [folder.name for folder in folders] == ["night", "night2"]
    assert all((folder / "weights/resume.pt").is_file() and not (folder / "run.lock").exists() for folder in folders)


def test_of_two_that_resume_one_run_the_second_is_refused_and_the_state_stays(job: dict[str, Any]) -> None:
    train.run(**job | {"epochs": 1})
    folder = Path(job["project"]) / "exp"
    size = (folder / "weights/resume.pt").stat().st_size
    both = [start(["--resume", str(folder / "weights/last.pt"), "--epochs", "4"]) for _ in range(2)]
    said = [run.communicate(timeout=240)[1] for run in both]
    assert sorted(run.returncode for run in both) == [0, 1], said
    refused = next(text for run, text in zip(both, said, strict=True) if run.returncode)
    assert len(refused.splitlines()) == 1 and "trains in this folder; stop it, or choose another --name" in refused
    assert any(f"process {run.pid} on " in refused for run in both if not run.returncode)
    assert (folder / "weights/resume.pt").stat().st_size >= size
    train.run(resume=str(folder / "weights/last.pt"), epochs=5)
    assert len((folder / "results.csv").read_text().splitlines()) == 6


@pytest.mark.parametrize("asked", [{"exist_ok": True}, {"resume": "auto"}, {"resume": True}])
def test_nobody_trains_where_another_run_does(job: dict[str, Any], asked: dict[str, Any]) -> None:
    refused: list[BaseException] = []

    def begin_another(epoch: int, **named: Any) -> None:
        def other() -> None:
            with pytest.raises(Busy) as caught:
                train.run(**job | asked)
            refused.append(caught.value)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    with_callbacks(job | {"epochs": 1}, on_train_epoch_end=begin_another)
    assert f"process {os.getpid()} on" in str(refused[0])
    assert [path.name for path in Path(job["project"]).iterdir()] == ["exp"]
    assert load_checkpoint(Path(job["project"]) / "exp/weights/resume.pt")["optimizer"]


def test_a_stripped_file_never_replaces_the_full_state(job: dict[str, Any]) -> None:
    def strip(*given: Any) -> None:  # as detect.py --update, or a copy from elsewhere
        if len(stripped) < 1 and (last := Path(job["project"]) / "exp/weights/last.pt").exists():
            stripped.append(train.strip_optimizer(last))

    train.run(**job | {"epochs": 1})
    before, stripped = (Path(job["project"]) / "exp/weights/resume.pt").read_bytes(), list[Any]()
    finish = train.CheckpointWriter.finish
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.CheckpointWriter, "finish", lambda self: (strip(), finish(self)))
        train.run(resume=str(Path(job["project"]) / "exp/weights/last.pt"), epochs=2)
    assert stripped and (Path(job["project"]) / "exp/weights/resume.pt").read_bytes() == before


# ---- loader processes
def dies(how: Callable[[], Any], epoch: int) -> Callable[[DetectionDataset, Any], Any]:
    """A data set whose loader processes end in this epoch, once it is past its first images."""
    get = DetectionDataset.__getitem__

    def item(self: DetectionDataset, key: Any) -> Any:
        if self.augment and getattr(key, "epoch", 0) == epoch and torch.utils.data.get_worker_info().id == 1:
            how()
        return get(self, key)

    return item


def fail() -> None:
    raise ValueError("bad\n  luck")


@pytest.mark.parametrize(
    "how, says",
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), r"process \d+ was killed \(SIGKILL\).*fewer --workers"),
        (lambda: os.kill(os.getpid(), signal.SIGBUS), r"process \d+ was ended by SIGBUS: /dev/shm.*--shm-size"),
        (lambda: os._exit(7), r"process \d+ ended without a message"),
        (fail, "a loader process failed with ValueError: bad luck"),
    ],
    ids=["killed", "bus", "exit", "raised"],
)
def test_a_dead_loader_is_one_line_and_nothing_is_lost(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, how: Callable[[], Any], says: str
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    job |= {"workers": 2}
    with monkeypatch.context() as patch:
        patch.setattr(DetectionDataset, "__getitem__", dies(how, epoch=1))
        with pytest.raises(WorkerFault, match=says) as fault:
            train.run(**job | {"name": "cut"})
    last = Path(job["project"]) / "cut/weights/last.pt"
    assert str(fault.value).endswith(f"saved, go on with --resume {last}") and "\n" not in str(fault.value)
    if "SIGKILL" not in says:
        return
    train.run(resume=str(last))
    assert_same(end_state(last.parent.parent), whole(job))


def test_trained_weights_are_scored_first_and_kept_where_nothing_is_better(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped in that first validation, a run goes on with it."""
    runs, create = Path(job["project"]), train.Callbacks
    train.run(**job | {"name": "donor", "epochs": 1})
    job |= {"weights": str(runs / "donor/weights/best.pt"), "optimizer": "auto", "epochs": 2}
    train.run(**job | {"name": "alone"})

    def listening() -> Callbacks:
        callbacks = create()
        callbacks.register_action("on_train_start", callback=lambda: os.kill(os.getpid(), signal.SIGTERM))
        return callbacks

    with monkeypatch.context() as patch:
        patch.setattr(train, "Callbacks", listening)
        assert train.main(words_of(job | {"name": "cut"})) == 128 + signal.SIGTERM
    last = load_checkpoint(runs / "cut/weights/last.pt")
    assert last["position"]["epoch"] == last["position"]["batch"] == 0 and not last["history"]
    train.run(resume=str(runs / "cut/weights/last.pt"))
    assert_same(end_state(runs / "cut"), end_state(runs / "alone"))
    rows = (runs / "cut/results.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0].strip() for row in rows] == ["-1", "0", "1"]

    falling = iter([0.9, 0.2, 0.1])
    monkeypatch.setattr(train, "fitness", lambda scores: np.array([next(falling)]))
    capsys.readouterr()
    train.run(**job | {"name": "worse"})
    assert "best.pt, the start, as no epoch was better" in capsys.readouterr().err
    files = (runs / f"{name}/weights/best.pt" for name in ("donor", "worse"))
    start, best = (load_checkpoint(file)["model"]["state_dict"] for file in files)
    assert all(torch.equal(value, best[name]) for name, value in start.items())
