"""What services of any kind are told: each epoch once, and nothing that could hurt training."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from utils.base.callbacks import Callbacks
from utils.evaluation.metrics import DetectionMetrics
from utils.loggers import service as module
from utils.loggers.csv import COLUMNS
from utils.loggers.delivery import Guard
from utils.loggers.run import RunInfo
from utils.loggers.service import Farewell, Service, ServiceLogger, copy_to_cpu

Info = Callable[..., RunInfo]
Tell = Callable[..., None]
Said = Callable[[], list[str]]
CALLS = (
    "connect", "send_options", "send_scalars", "send_pictures", "send_best", "send_curves", "send_graph",
    "send_detections", "disconnect",
)  # fmt: skip


class Diary(Service):
    """Writes down what it is told; `trouble` is done first in the call that is named."""

    name = "diary"
    wants = frozenset({"graph", "curves", "detections"})
    trouble: ClassVar[dict[str, Callable[[], Any]]] = {}

    def __init__(self, run: RunInfo) -> None:
        super().__init__(run)
        self.heard: list[tuple[Any, ...]] = []

    def connect(self, known: str) -> str:
        self._hear("connect", known)
        return known or "run1"

    def send_options(self) -> None:
        self._hear("send_options")

    def send_scalars(self, values: dict[str, float], epoch: int) -> None:
        self._hear("send_scalars", epoch, dict(values))

    def send_pictures(self, files: Sequence[Path], epoch: int) -> None:
        self._hear("send_pictures", [file.name for file in files], epoch)

    def send_best(self, values: dict[str, float], epoch: int) -> None:
        self._hear("send_best", values, epoch)

    def send_curves(self, curves: Sequence[Any], epoch: int) -> None:
        self._hear("send_curves", [curve.name for curve in curves], epoch)

    def send_graph(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        self._hear("send_graph", model, shape)

    def send_detections(self, found: Sequence[Any], epoch: int) -> None:
        self._hear("send_detections", list(found), epoch)

    def disconnect(self, ended: bool) -> None:
        self._hear("disconnect", ended)

    def _hear(self, call: str, *what: Any) -> None:
        self.trouble.get(call, lambda: None)()
        self.heard.append((call, *what))

    def of(self, call: str) -> list[tuple[Any, ...]]:
        return [what for name, *what in self.heard if name == call]

    @property
    def epochs(self) -> list[int]:
        return [what[0] for what in self.of("send_scalars")]


@pytest.fixture
def trouble(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[], Any]]:
    calls: dict[str, Callable[[], Any]] = {}
    monkeypatch.setattr(Diary, "trouble", calls)
    return calls


@pytest.fixture
def gate(trouble: dict[str, Any]) -> Iterator[threading.Event]:
    """What hangs until the test ends, when the threads that hang are let go and waited for."""
    opened = threading.Event()
    yield opened
    opened.set()
    for thread in threading.enumerate():
        if thread.name == "logger of diary":
            thread.join(5)


def subscribed(run: RunInfo) -> tuple[Callbacks, Diary]:
    callbacks, service = Callbacks(), Diary(run)
    logger = ServiceLogger(service)
    callbacks.subscribe(logger)
    callbacks.subscribe(Farewell([logger]))
    return callbacks, service


def scores() -> Any:
    metrics = DetectionMetrics(["red", "blue"])
    box = torch.tensor([[10.0, 10, 30, 30]])
    metrics.update(torch.cat([box, torch.tensor([[0.8, 0.0]])], 1), torch.cat([torch.zeros(1, 1), box], 1))
    return metrics.compute()


def whole_epoch(callbacks: Callbacks, model: nn.Module, epoch: int) -> None:
    images = torch.zeros(2, 3, 32, 64)
    for batch in range(2):
        callbacks.run("on_train_batch_end", 2 * epoch + batch, model, images, torch.zeros(0, 6), ("a",), True, False)
    callbacks.run("on_train_epoch_end", epoch=epoch)
    found = torch.tensor([[1.0, 2, 3, 4, 0.9, 1]])
    for number in range(20):
        callbacks.run("on_val_image_end", found, found, f"{number}.png", ["red", "blue"], None)
    callbacks.run("on_val_metrics", scores(), epoch)
    callbacks.run("on_fit_epoch_end", [float(epoch)] * len(COLUMNS), epoch, 0.5, 0.4)


# ------------------------------------------------------------------------------------------------------------ telling
def test_a_run_of_no_epoch(info: Info, tell: Tell) -> None:
    callbacks, diary = subscribed(info())
    tell(callbacks, [], ended=False)
    assert [call for call, *_ in diary.heard] == ["connect", "send_options", "disconnect"]
    assert diary.of("disconnect") == [[False]] and diary.of("connect") == [[""]]


def test_a_whole_run(info: Info, said: Said) -> None:
    run = info(bbox_interval=2)
    callbacks, diary = subscribed(run)
    for name in ("labels.jpg", "train_batch0.jpg", "val_batch0_pred.jpg", "results.png", "notes.txt"):
        (run.folder / name).touch()
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    callbacks.run("on_pretrain_routine_end")
    for epoch in range(3):
        whole_epoch(callbacks, model, epoch)
    callbacks.run("on_train_end", Path("last.pt"), Path("best.pt"), True, 2, (0.1, 0.2, 0.3, 0.4, 0, 0, 0))
    callbacks.run("teardown")
    assert not said() and diary.epochs == [0, 1, 2]
    assert diary.of("send_scalars")[1][1] == dict.fromkeys(COLUMNS, 1.0)
    assert diary.of("send_pictures") == [
        [["labels.jpg"], 0], [["train_batch0.jpg"], 0], [["results.png", "val_batch0_pred.jpg"], 2]
    ]  # fmt: skip
    assert diary.of("send_best") == [
        [{"best/precision": 0.1, "best/recall": 0.2, "best/mAP_0.5": 0.3, "best/mAP_0.5:0.95": 0.4}, 2]
    ]
    assert diary.of("send_curves") == [[["all classes", "red"], epoch] for epoch in range(3)]
    assert [(len(found), epoch) for found, epoch in diary.of("send_detections")] == [(16, 0), (16, 2)]
    assert diary.of("send_graph")[0][1] == (1, 3, 32, 64) and len(diary.of("send_graph")) == 1
    assert diary.of("disconnect") == [[True]]
    np.testing.assert_allclose(diary.of("send_detections")[0][0][0].rows, [[1, 2, 3, 4, 0.9, 1]], rtol=1e-6)


@pytest.mark.parametrize("interval", [-1, 0])
def test_without_an_interval_no_detections_are_kept(info: Info, interval: int) -> None:
    callbacks, diary = subscribed(info(bbox_interval=interval))
    whole_epoch(callbacks, nn.Identity(), 0)
    callbacks.run("teardown")
    assert not diary.of("send_detections") and diary.epochs == [0]


# ------------------------------------------------------------------------------------------------------------ trouble
def whole_run(callbacks: Callbacks, diary: Any) -> None:
    """Three epochs, with a picture at the end."""
    (diary.run.folder / "results.png").touch()
    for epoch in range(3):
        whole_epoch(callbacks, nn.Identity(), epoch)
    callbacks.run("on_train_end", Path("last.pt"), Path("best.pt"), True, 2, (0.1, 0.2, 0.3, 0.4))
    callbacks.run("teardown")


@pytest.mark.parametrize("call", CALLS)
def test_one_that_raises_costs_its_own_entries(
    info: Info, call: str, trouble: dict[str, Any], said: Said, quick: Callable[[], float]
) -> None:
    def broken() -> None:
        raise ConnectionError(f"{call} is down")

    trouble[call] = broken
    callbacks, diary = subscribed(info(bbox_interval=1))
    whole_run(callbacks, diary)
    assert sum(f"diary: {call} is down; training goes on" in line for line in said()) == 1
    assert not diary.of(call) and quick() < 8
    if call not in ("connect", "send_scalars", "send_options"):
        assert diary.epochs == [0, 1, 2]


@pytest.mark.parametrize("call", CALLS)
def test_one_that_hangs_is_left_behind(
    info: Info,
    call: str,
    trouble: dict[str, Any],
    said: Said,
    given_up: list[int],
    monkeypatch: pytest.MonkeyPatch,
    quick: Callable[[], float],
    gate: threading.Event,
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.3)
    trouble[call] = lambda: gate.wait(60)
    callbacks, diary = subscribed(info(bbox_interval=1))
    whole_run(callbacks, diary)
    assert "did not finish in time" in said()[-1] and given_up == [0] and quick() < 5


def test_an_outage_loses_no_epoch(info: Info, trouble: dict[str, Any], tell: Tell, said: Said) -> None:
    down = [2]

    def outage() -> None:
        down[0] -= 1
        if down[0] >= 0:
            raise ConnectionError("down")

    trouble["connect"] = outage
    callbacks, diary = subscribed(info())
    tell(callbacks, range(4))
    assert diary.epochs == [0, 1, 2, 3] and len(said()) == 2  # the error, and that entries were missed


def test_services_share_one_wait(
    info: Info, trouble: dict[str, Any], monkeypatch: pytest.MonkeyPatch, gate: threading.Event
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.5)
    trouble["connect"] = lambda: gate.wait(60)
    loggers = [ServiceLogger(Diary(info())) for _ in range(6)]
    began = time.monotonic()
    Farewell(loggers).on_train_end(Path("last.pt"), Path("best.pt"), True, 0, ())
    assert time.monotonic() - began < 1.5


def test_a_network_that_cannot_be_copied_costs_a_line(info: Info, said: Said) -> None:
    model = nn.Linear(2, 2)
    model.lock = threading.Lock()  # not even deepcopy can
    callbacks, diary = subscribed(info())
    whole_epoch(callbacks, model, 0)
    callbacks.run("teardown")
    assert len(said()) == 1 and "no graph" in said()[0] and diary.epochs == [0]


# ------------------------------------------------------------------------------------------------------------- resume
def test_a_resumed_run_tells_each_epoch_once(info: Info, tell: Tell, row: Callable[[int], list[float]]) -> None:
    callbacks, first = subscribed(info())
    tell(callbacks, range(4), ended=False)  # the checkpoint is that of epoch 2
    assert (first.run.folder / "diary.id").read_text() == "run1 3\n"
    callbacks, second = subscribed(info([row(epoch) for epoch in range(3)], resume="last.pt"))
    tell(callbacks, range(3, 6))
    assert second.of("connect") == [["run1"]] and not second.of("send_options")
    assert first.epochs + second.epochs == list(range(6))


def test_what_the_service_missed_it_gets_after_the_resume(
    info: Info, tell: Tell, row: Callable[[int], list[float]]
) -> None:
    callbacks, first = subscribed(info())
    tell(callbacks, range(1), ended=False)
    callbacks, second = subscribed(info([row(epoch) for epoch in range(3)], resume="last.pt"))
    tell(callbacks, range(3, 4))
    assert second.epochs == [1, 2, 3]
    assert second.of("send_scalars")[0][1] == dict(zip(COLUMNS, row(1)[1:]))


@pytest.mark.parametrize("content", [None, "", "run1", "run1 x", "a b c", "\x00"])
def test_without_a_readable_note_the_service_gets_a_new_run_with_all(
    info: Info, tell: Tell, row: Callable[[int], list[float]], content: str | None
) -> None:
    run = info([row(epoch) for epoch in range(2)], resume=True)
    if content is not None:
        (run.folder / "diary.id").write_text(content)
    callbacks, diary = subscribed(run)
    tell(callbacks, [2])
    assert diary.of("connect") == [[""]] and diary.epochs == [0, 1, 2] and len(diary.of("send_options")) == 1


def test_a_new_run_in_an_old_folder_is_a_new_run(info: Info, tell: Tell) -> None:
    run = info()
    (run.folder / "diary.id").write_text("old 7\n")
    callbacks, diary = subscribed(run)
    tell(callbacks, [0])
    assert diary.of("connect") == [[""]] and diary.epochs == [0]
    assert (run.folder / "diary.id").read_text() == "run1 0\n"


def test_interrupted_before_its_first_epoch_it_goes_on_all_the_same(info: Info, tell: Tell) -> None:
    callbacks, _ = subscribed(info())
    tell(callbacks, [], ended=False)
    callbacks, second = subscribed(info([], resume="last.pt"))
    tell(callbacks, [0])
    assert second.of("connect") == [["run1"]] and second.epochs == [0]


# ------------------------------------------------------------------------------------------------------ training's own
@pytest.fixture
def model() -> Iterator[nn.Module]:
    torch.manual_seed(3)
    yield nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()


def test_a_copy_shares_nothing_with_the_network(model: nn.Module) -> None:
    model(torch.rand(2, 3, 8, 8)).sum().backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    twin = copy_to_cpu(model)
    assert not any(part.training for part in twin.modules()) and all(part.training for part in model.modules())
    for (name, mine), theirs in zip(model.state_dict().items(), twin.state_dict().values()):
        assert torch.equal(mine, theirs) and mine.data_ptr() != theirs.data_ptr(), name
    assert not any(value.requires_grad for value in twin.parameters())
    twin.train()(torch.rand(2, 3, 8, 8) + 5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.grad is not None for value in model.parameters())


def test_hooks_draw_no_random_numbers(info: Info, model: nn.Module) -> None:
    import random

    def states() -> tuple[Any, ...]:
        name, keys, *rest = np.random.get_state()
        return random.getstate(), (name, keys.tolist(), *rest), torch.get_rng_state().tolist()

    before = states()
    callbacks, diary = subscribed(info(bbox_interval=1))
    whole_epoch(callbacks, model, 0)
    callbacks.run("on_train_end", Path("last.pt"), Path("best.pt"), True, 0, (0.1, 0.2, 0.3, 0.4))
    assert states() == before and diary.epochs == [0]


def test_arguments_that_change_later_were_copied(info: Info, trouble: dict[str, Any], gate: threading.Event) -> None:
    trouble["connect"] = lambda: gate.wait(60)
    callbacks, diary = subscribed(info(bbox_interval=1))
    model, values = nn.Linear(2, 2), [1.0] * len(COLUMNS)
    found: Tensor = torch.ones(1, 6)
    callbacks.run("on_train_batch_end", 0, model, torch.zeros(1, 3, 8, 8), None, (), True, False)
    callbacks.run("on_train_epoch_end", epoch=0)
    callbacks.run("on_val_image_end", found, found, "a.png", [], None)
    callbacks.run("on_val_metrics", scores(), 0)
    callbacks.run("on_fit_epoch_end", values, 0, 0, 0)
    weight = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.zero_()
        found.zero_()
    values[:] = [9.0] * len(values)
    gate.set()
    callbacks.run("teardown")
    assert torch.equal(diary.of("send_graph")[0][0].weight, weight)
    assert diary.of("send_detections")[0][0][0].rows.sum() == 6
    assert set(diary.of("send_scalars")[0][1].values()) == {1.0}


def test_the_guard_of_a_service_that_is_out_takes_nothing(info: Info) -> None:
    logger = ServiceLogger(Diary(info()))
    logger.guard.out = True
    for epoch in range(200):
        logger.on_fit_epoch_end([0.0] * len(COLUMNS), epoch, 0, 0)
    assert isinstance(logger.guard, Guard) and logger.guard._entries.qsize() <= 1
    Farewell([logger]).teardown()
