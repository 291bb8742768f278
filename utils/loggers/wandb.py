"""Weights & Biases, online or offline."""

from __future__ import annotations

import inspect
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.base.log import LOGGER
from utils.base.paths import shown
from utils.images.reading import read_image
from utils.loggers.service import PATIENCE, Detected, Service

_LONGEST = 1280  # pixels of a picture with detections
_OFFLINE = ("offline", "dryrun")
_CONFIDENT = 0.25  # detections below are left out, as in the mosaics


class Wandb(Service):
    """A run that never asks for a login: without an API key it is kept offline, for `wandb sync`."""

    name = "wandb"
    wants = frozenset({"detections"})
    session: Any

    def connect(self, known: str) -> str:
        """Begin or go on; offline, going on makes a further folder with the same id, which the sync puts together."""
        import wandb

        name = known or uuid.uuid4().hex[:12]
        mode = _mode(wandb)
        settings = {"silent": True, "console": "off", "finish_timeout": PATIENCE - 5}
        fields = getattr(wandb.Settings, "model_fields", settings)
        self.session = wandb.init(
            project=self.run.project,
            entity=self.run.options.get("entity") or None,
            name=self.run.folder.name,
            id=name,
            resume="allow" if mode == "online" else None,
            dir=str(self.run.folder),
            mode=mode,
            config=self.run.options | {"hyp": self.run.hyp, "classes": list(self.run.names)},
            settings=wandb.Settings(**{key: value for key, value in settings.items() if key in fields}),
        )
        later = f"offline; send it with: wandb sync {shown(self.run.folder)}/wandb/offline-run-*"
        LOGGER.info(f"wandb: {later if mode in _OFFLINE else self.session.url}")
        return name

    def send_scalars(self, values: dict[str, float], epoch: int) -> None:
        """One point a column."""
        self.session.log({**values, "epoch": epoch}, step=epoch)

    def send_best(self, values: dict[str, float], epoch: int) -> None:
        """In the summary of the run."""
        self.session.summary.update(values)

    def send_pictures(self, files: Sequence[Path], epoch: int) -> None:
        """Each file under its name."""
        import wandb

        self.session.log({file.stem: wandb.Image(str(file)) for file in files}, step=self._step(epoch))

    def send_detections(self, found: Sequence[Detected], epoch: int) -> None:
        """Pictures with boxes that the page can show by class and confidence."""
        classes = dict(enumerate(self.run.names))
        self.session.log({"detections": [_drawn(one, classes) for one in found]}, step=self._step(epoch))

    def _step(self, epoch: int) -> int:
        """W&B refuses what is older than the newest numbers, where those were sent late."""
        return max(epoch, self._sent)

    def disconnect(self, ended: bool) -> None:
        """Send the rest and finish."""
        self.session.finish(exit_code=0 if ended else 1)


def _mode(wandb: Any) -> str:
    """What WANDB_MODE says, else online with an API key and offline without one; nobody is asked."""
    if chosen := os.environ.get("WANDB_MODE"):
        return chosen
    if "prompt" in inspect.signature(wandb.login).parameters:
        logged_in = wandb.login(prompt=False, verify=False)
    else:  # before 0.31
        logged_in = bool(wandb.api.api_key)
    if not logged_in:
        LOGGER.info("wandb: no API key (wandb login, or WANDB_API_KEY), so this run is kept offline")
    return "online" if logged_in else "offline"


def _drawn(one: Detected, classes: dict[int, str]) -> Any:
    """A wandb.Image with the boxes of confident detections, as fractions of the picture."""
    import wandb
    from PIL import Image

    pixels = read_image(one.path)
    height, width = pixels.shape[:2]
    picture = Image.fromarray(pixels[..., ::-1])
    picture.thumbnail((_LONGEST, _LONGEST))
    boxes = [
        {
            "position": {"minX": x1 / width, "minY": y1 / height, "maxX": x2 / width, "maxY": y2 / height},
            "class_id": int(number),
            "box_caption": f"{classes.get(int(number), int(number))} {confidence:.2f}",
            "scores": {"confidence": confidence},
        }
        for x1, y1, x2, y2, confidence, number in one.rows.tolist()
        if confidence > _CONFIDENT
    ]
    drawn = {"predictions": {"box_data": boxes, "class_labels": classes}}
    return wandb.Image(picture, boxes=drawn, caption=Path(one.path).name)
