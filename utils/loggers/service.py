"""What a service of any kind can be told, and the subscriber that turns hooks of training into it."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from utils.base.files import write_whole
from utils.base.log import LOGGER, one_line
from utils.loggers.csv import COLUMNS
from utils.loggers.curves import PrCurve, pr_curves
from utils.loggers.delivery import Guard
from utils.loggers.run import RunInfo

PATIENCE = 30.0  # seconds that services have to send the rest when training has ended
HURRY = 5.0  # and when it was broken off: whoever stops a process may not wait longer
_SHOWN_IMAGES = 16  # pictures with their detections of an epoch
_BEST = ("precision", "recall", "mAP_0.5", "mAP_0.5:0.95")


@dataclass(frozen=True, slots=True)
class Detected:
    """What was found in one validated picture."""

    path: str
    rows: np.ndarray  # (n, 6) xyxy in its own pixels, confidence, class


class Service:
    """A place that results go to. All of it runs in the thread of a guard, so it may take its time and may raise.

    A subclass has a name, connects, and sends what it has a form for. Its own id of the run is kept in NAME.id of the
    run's folder, with the last epoch that was sent: a resumed run goes on where the service stopped hearing of it.
    """

    name: ClassVar[str]
    wants: ClassVar[frozenset[str]] = frozenset()  # of graph, curves, detections: what costs training some time
    replaces: ClassVar[bool] = False  # does going on with a run forget the epochs that are done again?

    def __init__(self, run: RunInfo) -> None:
        self.run = run
        self.rows = [list(row) for row in run.history]
        self._file = run.folder / f"{self.name}.id"
        self._id, self._sent = self._read() if run.resumed else ("", -1)

    def connect(self, known: str) -> str:
        """Go on with the service's run of the id `known`, or begin one where that is empty; returns its id."""
        raise NotImplementedError

    def send_options(self) -> None:
        """Command line and hyper-parameters, once."""

    def send_scalars(self, values: dict[str, float], epoch: int) -> None:
        """Numbers of an epoch by name."""
        raise NotImplementedError

    def send_pictures(self, files: Sequence[Path], epoch: int) -> None:
        """Pictures of the run's folder, named after their files."""
        raise NotImplementedError

    def send_best(self, values: dict[str, float], epoch: int) -> None:
        """What the best checkpoint reaches."""
        self.send_scalars(values, epoch)

    def send_curves(self, curves: Sequence[PrCurve], epoch: int) -> None:
        """Precision and recall over confidence."""

    def send_graph(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        """The network, which is the service's own copy on the CPU, for a batch (1, 3, H, W)."""

    def send_detections(self, found: Sequence[Detected], epoch: int) -> None:
        """Boxes on some pictures of the validation."""

    def disconnect(self, ended: bool) -> None:
        """The last call; `ended` is False for a run that was broken off."""

    def open(self) -> None:
        """Connect and send what was not sent yet; done again where it raised."""
        known, self._id = self._id, self.connect(self._id)
        if self._id != known:
            self._sent = -1
            self._write()
            self.send_options()
        self.send_rows()

    def send_rows(self) -> None:
        """The epochs that the service does not have yet."""
        for epoch, *values in list(self.rows):
            if epoch > self._sent:
                self.send_scalars(dict(zip(COLUMNS, values)), int(epoch))
                self._sent = int(epoch)
                self._write()

    def shut(self, ended: bool) -> None:
        """Send the rest and disconnect."""
        self.send_rows()
        self.disconnect(ended)

    def _read(self) -> tuple[str, int]:
        with suppress(OSError, ValueError):  # none, or damaged: the service gets a new run with all epochs
            known, sent = self._file.read_text(encoding="utf-8").split()
            return known, min(int(sent), self.run.start - 1) if self.replaces else int(sent)
        return "", -1

    def _write(self) -> None:
        write_whole(self._file, f"{self._id} {self._sent}\n")


class ServiceLogger:
    """Hears the hooks, takes from their arguments what may change, and leaves the rest to the service's thread."""

    def __init__(self, service: Service) -> None:
        self.service, self.run = service, service.run
        self.guard = Guard(service.name, service.open)
        self.epoch, self.drawn, self.batches = self.run.start, False, 0
        self.found: list[Detected] = []

    def on_pretrain_routine_end(self) -> None:
        """How the labels look."""
        if not self.run.resumed:
            self._pictures("labels*.jpg")

    def on_train_batch_end(self, ni: int, model: nn.Module, imgs: Tensor, *others: Any) -> None:
        """The network, at the first batch of a run."""
        self.batches += 1
        if self.batches == 1 and "graph" in self.service.wants and not self.run.resumed:
            shape = (1, *imgs.shape[1:])
            try:
                twin = copy_to_cpu(model)
            except Exception as error:  # a network of the user's own may resist copying, for any reason
                LOGGER.warning(f"{self.service.name}: no graph of the network: {one_line(error)}")
            else:
                self.guard.put(lambda: self.service.send_graph(twin, shape))

    def on_train_epoch_end(self, epoch: int) -> None:
        """The first batches, once; detections from now on belong to this epoch."""
        self.epoch = epoch
        if not self.drawn:
            self.drawn = True
            self._pictures("train_batch*.jpg")

    def on_val_image_end(self, pred: Tensor, predn: Tensor, path: str, names: Sequence[str], im: Any) -> None:
        """The detections of some pictures, in every `bbox_interval`-th epoch."""
        interval = self.run.options.get("bbox_interval", -1)
        if "detections" not in self.service.wants or interval < 1 or self.epoch % interval:
            return
        if len(self.found) < _SHOWN_IMAGES:
            self.found.append(Detected(str(path), predn.detach().cpu().float().numpy().copy()))

    def on_val_metrics(self, result: Any, epoch: int) -> None:
        """Curves and drawn detections of this epoch's validation; `result` is a DetectionResult."""
        if "curves" in self.service.wants and (curves := pr_curves(result, self.run.names)):
            self.guard.put(lambda: self.service.send_curves(curves, epoch))
        if found := self.found:
            self.found = []
            self.guard.put(lambda: self.service.send_detections(found, epoch))

    def on_fit_epoch_end(self, values: Sequence[float], epoch: int, best_fitness: float, fitness: float) -> None:
        """`values` in the order of COLUMNS; where the service does not hear of it now, it does with a later epoch."""
        self.service.rows.append([epoch, *map(float, values)])
        self.guard.put(self.service.send_rows)

    def on_train_end(self, last: Path, best: Path, plots: bool, epoch: int, results: Sequence[float]) -> None:
        """The pictures of the end and the best checkpoint's scores."""
        self.epoch = epoch
        self._pictures("*.png", "val_batch*.jpg")
        scores = {f"best/{name}": float(value) for name, value in zip(_BEST, results)}
        self.guard.put(lambda: self.service.send_best(scores, epoch))

    def _pictures(self, *patterns: str) -> None:
        epoch, folder = self.epoch, self.run.folder
        if files := sorted(file for pattern in patterns for file in folder.glob(pattern)):
            self.guard.put(lambda: self.service.send_pictures(files, epoch))


class Farewell:
    """Subscribed after all services: they finish side by side and are waited for together."""

    def __init__(self, loggers: Sequence[ServiceLogger]) -> None:
        self.loggers = list(loggers)

    def on_train_end(self, last: Path, best: Path, plots: bool, epoch: int, results: Any) -> None:
        """Wait half a minute at most."""
        self._close(PATIENCE, ended=True)

    def teardown(self) -> None:
        """A run that was broken off waits some seconds; one that ended has nothing left to do."""
        self._close(HURRY, ended=False)

    def _close(self, seconds: float, ended: bool) -> None:
        loggers, self.loggers = self.loggers, []
        for logger in loggers:
            logger.guard.close(lambda service=logger.service: service.shut(ended))
        deadline = time.monotonic() + seconds
        for logger in loggers:
            logger.guard.wait(deadline, status=0 if ended else 1)


def copy_to_cpu(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose tensors lie on the CPU and share nothing with the model's."""
    tensors: dict[int, Any] = {}
    for tensor in model.parameters():
        tensors[id(tensor)] = nn.Parameter(tensor.detach().to("cpu", copy=True), requires_grad=False)
    for tensor in model.buffers():
        tensors[id(tensor)] = tensor.detach().to("cpu", copy=True)
    return copy.deepcopy(model, tensors).eval()  # deepcopy takes what it is given for the tensors it meets
