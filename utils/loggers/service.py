"""What a service can be sent, and the subscriber that turns hooks of training into such messages."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from utils.base.files import write_whole
from utils.base.log import LOGGER, one_line
from utils.loggers.delivery import Delivery
from utils.loggers.run import COLUMNS, RunInfo

PATIENCE = 30.0  # seconds that services have to send the rest when training has ended
HURRY = 5.0  # and when it was broken off: whoever stops a process may not wait longer
Kind = Literal["settings", "values", "best", "images", "network", "boxes"]
_BEST = ("precision", "recall", "mAP_0.5", "mAP_0.5:0.95")


class Service:
    """A place that results go to. All of it runs in a thread of its own, so it may take its time and may raise.

    Its id of the run is in NAME.id of the run's folder, with the last epoch sent: a resumed run goes on from there.
    """

    name: ClassVar[str]
    wants: ClassVar[frozenset[Kind]] = frozenset()  # of network and boxes, which cost training some time
    replaces: ClassVar[bool] = False  # does going on with a run forget the epochs that are done again?

    def __init__(self, run: RunInfo) -> None:
        self.run = run
        self.rows = [list(row) for row in run.history]
        self.file = run.folder / f"{self.name}.id"
        self.id, self.sent = "", -1
        if run.resumed:
            with suppress(OSError, ValueError):  # none, or damaged: the service gets a new run with all epochs
                known, sent = self.file.read_text(encoding="utf-8").split()
                self.id, self.sent = known, min(int(sent), run.start - 1) if self.replaces else int(sent)

    def connect(self, known: str) -> str:
        """Go on with the service's run of the id `known`, or begin one where that is empty; return its id."""
        raise NotImplementedError

    def send(self, kind: Kind, content: Any, epoch: int) -> None:
        """Send one message; a kind that the service has no form for is passed over.

        settings: None, once a run; command line and hyper-parameters are in `self.run`
        values, best: numbers by name, of an epoch and of the best checkpoint
        images: paths of images in the run's folder
        network: a copy on the CPU, and the shape (1, 3, H, W) of a batch
        boxes: for some images the path, and (n, 6) xyxy in its pixels, confidence, class
        """

    def disconnect(self, ended: bool) -> None:
        """Send the rest and finish; `ended` is False for a run that was broken off."""

    def open(self) -> None:
        """Connect and send what was not sent yet; done again where it raised."""
        known, self.id = self.id, self.connect(self.id)
        if self.id != known:
            self.sent = -1
            write_whole(self.file, f"{self.id} {self.sent}\n")
            self.send("settings", None, 0)
        self.send_rows()

    def send_rows(self) -> None:
        """Send the epochs that the service does not have yet."""
        for epoch, *values in list(self.rows):
            if epoch > self.sent:
                self.send("values", dict(zip(COLUMNS, values, strict=False)), int(epoch))
                self.sent = int(epoch)
                write_whole(self.file, f"{self.id} {self.sent}\n")


class ServiceLogger:
    """Takes from the hooks' arguments what may change, and leaves the rest to the services' threads."""

    def __init__(self, run: RunInfo, services: Sequence[Service]) -> None:
        self.run = run
        self.deliveries = [(service, Delivery(service.name, service.open)) for service in services]
        self.epoch = run.start
        self.found: list[tuple[str, np.ndarray]] = []

    def _send(self, kind: Kind, content: Any) -> None:
        for service, delivery in self.deliveries if content else ():
            if kind in service.wants or kind in ("best", "images"):
                delivery.put(partial(service.send, kind, content, self.epoch))

    def on_train_batch_end(self, ni: int, model: nn.Module, imgs: Tensor, *others: Any) -> None:
        """Send the network, at the first batch of a run."""
        if ni == 0 and not self.run.resumed and any("network" in service.wants for service, _ in self.deliveries):
            try:  # deepcopy takes what it is given for the tensors it meets: on the CPU, sharing nothing
                own: dict[int, Any] = {id(each): each.detach().to("cpu", copy=True) for each in model.buffers()}
                for weight in model.parameters():
                    own[id(weight)] = nn.Parameter(weight.detach().to("cpu", copy=True), requires_grad=False)
                self._send("network", (copy.deepcopy(model, own).eval(), (1, *imgs.shape[1:])))
            except Exception as error:  # a network of the user's own may resist copying
                LOGGER.warning(f"no graph of the network: {one_line(error)}")

    def on_train_epoch_end(self, epoch: int) -> None:
        """Send how labels and first batches look, once; detections from now on belong to this epoch."""
        self.epoch = epoch
        if epoch == self.run.start:
            self._send(
                "images",
                [*sorted(self.run.folder.glob("labels*.jpg")), *sorted(self.run.folder.glob("train_batch*.jpg"))],
            )

    def on_val_image_end(self, pred: Tensor, predn: Tensor, path: str, names: Sequence[str], im: Any) -> None:
        """Keep the detections of at most 16 images, in every `bbox_interval`-th epoch."""
        interval = self.run.options.get("bbox_interval", -1)
        if interval >= 1 and not self.epoch % interval and len(self.found) < 16:
            self.found.append((str(path), predn.detach().cpu().float().numpy().copy()))

    def on_val_metrics(self, result: Any, epoch: int) -> None:
        """Send the detections of this epoch's validation."""
        if found := self.found:
            self.epoch, self.found = epoch, []
            self._send("boxes", found)

    def on_fit_epoch_end(self, values: Sequence[float], epoch: int, best_fitness: float, fitness: float) -> None:
        """Send an epoch's `values`, in the order of COLUMNS; what does not arrive now does with a later epoch."""
        for service, delivery in self.deliveries:
            service.rows.append([epoch, *map(float, values)])
            delivery.put(service.send_rows)

    def on_train_end(self, last: Path, best: Path, plots: bool, epoch: int, results: Sequence[float]) -> None:
        """Send the images of the end and the best checkpoint's scores, and wait half a minute at most."""
        self.epoch = epoch
        self._send("images", [*sorted(self.run.folder.glob("*.png")), *sorted(self.run.folder.glob("val_batch*.jpg"))])
        self._send("best", {f"best/{name}": float(value) for name, value in zip(_BEST, results, strict=False)})
        self.teardown(ended=True)

    def teardown(self, ended: bool = False) -> None:
        """Wait some seconds for a run that was broken off; one that ended has nothing left to do."""
        deliveries, self.deliveries = self.deliveries, []
        for service, delivery in deliveries:
            delivery.put(service.send_rows)
            delivery.put(partial(service.disconnect, ended), last=True)
        deadline = time.monotonic() + (PATIENCE if ended else HURRY)
        for _, delivery in deliveries:  # they finish side by side and are waited for together
            delivery.wait(deadline, status=0 if ended else 1)
