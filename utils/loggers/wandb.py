"""Weights & Biases, online or offline."""

from __future__ import annotations

import inspect
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utils.base.log import LOGGER
from utils.base.paths import shown
from utils.images.reading import read_image
from utils.loggers.service import PATIENCE, Kind, Service

_LONGEST = 1280  # pixels of an image with detections
_CONFIDENT = 0.25  # detections below are left out, as in the mosaics


class Wandb(Service):
    """A run that never asks for a login: without an API key it is kept offline, for `wandb sync`."""

    name = "wandb"
    wants = frozenset[Kind]({"boxes"})
    session: Any

    def connect(self, known: str) -> str:
        """Begin or go on; offline, going on makes a further folder with the same id, which the sync puts together."""
        import wandb

        name, mode = known or uuid.uuid4().hex[:12], os.environ.get("WANDB_MODE")
        if not mode:
            is_new = "prompt" in inspect.signature(wandb.login).parameters  # since 0.31
            has_key = wandb.login(prompt=False, verify=False) if is_new else wandb.api.api_key
            mode = "online" if has_key else "offline"
            if not has_key:
                LOGGER.info("wandb: no API key (wandb login, or WANDB_API_KEY), so this run is kept offline")
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
        LOGGER.info(f"wandb: {later if mode in ('offline', 'dryrun') else self.session.url}")
        return name

    def send(self, kind: Kind, content: Any, epoch: int) -> None:
        """Send a point a column, the best scores in the run's summary, image files, and images with boxes."""
        import wandb

        match kind:
            case "values":
                self.session.log({**content, "epoch": epoch}, step=epoch)
            case "best":
                self.session.summary.update(content)
            case "images":  # what is older than the newest numbers, where those were late, is refused
                images = {file.stem: wandb.Image(str(file)) for file in content}
                self.session.log(images, step=max(epoch, self.sent))
            case "boxes":
                classes = dict(enumerate(self.run.names))
                drawn = [_with_boxes(path, rows, classes) for path, rows in content]
                self.session.log({"detections": drawn}, step=max(epoch, self.sent))

    def disconnect(self, ended: bool) -> None:
        """Send the rest and finish."""
        self.session.finish(exit_code=0 if ended else 1)


def _with_boxes(path: str, rows: np.ndarray, classes: dict[int, str]) -> Any:
    """Return a wandb.Image with the boxes of confident detections, which the page shows by class and confidence."""
    import wandb

    pixels = read_image(path)
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels[..., ::-1])
    image.thumbnail((_LONGEST, _LONGEST))
    boxes = [
        {
            "position": {"minX": x1 / width, "minY": y1 / height, "maxX": x2 / width, "maxY": y2 / height},
            "class_id": int(number),
            "box_caption": f"{classes.get(int(number), int(number))} {confidence:.2f}",
            "scores": {"confidence": confidence},
        }
        for x1, y1, x2, y2, confidence, number in rows.tolist()
        if confidence > _CONFIDENT
    ]
    drawn = {"predictions": {"box_data": boxes, "class_labels": classes}}
    return wandb.Image(image, boxes=drawn, caption=Path(path).name)
