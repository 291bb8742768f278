"""What Weights & Biases is sent."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from tests.utils.loggers.conftest import logged, row_of
from utils.base.callbacks import Callbacks
from utils.loggers import subscribe_loggers
from utils.loggers.run import COLUMNS, RunInfo

Info = Callable[..., RunInfo]
pytestmark = pytest.mark.usefixtures("sketches")


@pytest.fixture
def wandb(fake: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package that nobody is logged in to."""
    package = fake("wandb")
    package.login = lambda prompt=True, verify=True: package.asked(prompt, verify) and False
    package.init.return_value.url = "https://wandb.example/run"
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return package


def started(package: Any) -> dict[str, Any]:
    assert package.init.call_count == 1
    return package.init.call_args.kwargs


def test_without_a_key_it_stays_offline_and_asks_nobody(wandb, info, caplog):
    run = info(loggers=["wandb"], entity="team")
    with caplog.at_level("INFO", logger="yolov5"):
        logged(run, range(2))
    wandb.asked.assert_called_once_with(False, False)
    words = started(wandb)
    assert (words["mode"], words["project"], words["entity"], words["name"]) == ("offline", "shapes", "team", "exp3")
    assert words["config"]["epochs"] == 5 and words["config"]["hyp"]["lr0"] == 0.01 and words["dir"] == str(run.folder)
    assert words["id"] == (run.folder / "wandb.id").read_text().split()[0]
    session = wandb.init.return_value
    scalars = [call for call in session.log.call_args_list if COLUMNS[0] in call.args[0]]
    assert [(call.args[0]["epoch"], call.kwargs["step"]) for call in scalars] == [(0, 0), (1, 1)]
    assert scalars[1].args[0][COLUMNS[3]] == pytest.approx(1.03)
    images = {name for call in session.log.call_args_list for name in call.args[0]} - {*COLUMNS, "epoch"}
    assert images == {"labels", "results"}
    assert session.summary.update.call_args.args[0]["best/mAP_0.5:0.95"] == 0.4
    session.finish.assert_called_once_with(exit_code=0)
    assert sum("no API key" in line.getMessage() for line in caplog.records) == 1


@pytest.mark.parametrize("environment, key, mode", [
    (None, "secret", "online"), (None, None, "offline"), ("online", None, "online"), ("disabled", "secret", "disabled")
])  # fmt: skip
def test_the_environment_decides_and_older_versions_are_asked(wandb, info, monkeypatch, environment, key, mode) -> None:
    def login(relogin: bool = False) -> bool:
        raise AssertionError("this one prompts")

    if environment:
        monkeypatch.setenv("WANDB_MODE", environment)
    wandb.login, wandb.api.api_key = login, key
    logged(info(loggers=["wandb"]), [0])
    assert started(wandb)["mode"] == mode and started(wandb)["entity"] is None


def test_a_resumed_run_is_the_same_one(wandb: Any, info: Info) -> None:
    wandb.login = lambda prompt=True, verify=True: True
    logged(info(loggers=["wandb"]), range(3), ended=False)
    first = started(wandb)
    wandb.init.reset_mock()
    logged(info([row_of(0), row_of(1)], loggers=["wandb"], resume="last.pt"), range(2, 5))
    second = started(wandb)
    assert second["id"] == first["id"] and second["resume"] == "allow" and second["mode"] == "online"
    epochs = [call.args[0]["epoch"] for call in wandb.init().log.call_args_list if "epoch" in call.args[0]]
    assert epochs == [3, 4]


def sent_up_to(epoch: int, wandb: Any) -> None:
    """Wait until the service's thread has sent an epoch's numbers."""
    deadline = time.monotonic() + 20
    while not any(call.args[0].get("epoch") == epoch for call in wandb.init().log.call_args_list):
        assert time.monotonic() < deadline, f"epoch {epoch} was never sent"
        time.sleep(0.005)


def test_detections_are_drawn_every_so_many_epochs(wandb: Any, info: Info, tmp_path: Path) -> None:
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, :, 2] = 200  # red, as OpenCV stores it
    cv2.imwrite(str(tmp_path / "street.png"), image)
    callbacks = Callbacks()
    subscribe_loggers(callbacks, info(loggers=["wandb"], bbox_interval=2))
    found = torch.tensor([[20.0, 10, 60, 30, 0.9, 1], [0, 0, 8, 4, 0.1, 0]])
    for epoch in range(3):
        callbacks.run("on_train_epoch_end", epoch=epoch)
        callbacks.run("on_val_image_end", found, found, str(tmp_path / "street.png"), ["red", "blue"], None)
        callbacks.run("on_val_metrics", type("Result", (), {"curves": None}), epoch)
        callbacks.run("on_fit_epoch_end", [0.0] * len(COLUMNS), epoch, 0, 0)
        sent_up_to(epoch, wandb)  # a service that lags behind gets images at a later step, which is not asked here
    callbacks.run("teardown")
    drawn = [call for call in wandb.init().log.call_args_list if "detections" in call.args[0]]
    assert [call.kwargs["step"] for call in drawn] == [0, 2]
    call = wandb.Image.call_args
    assert call.args[0].size == (80, 40) and call.args[0].getpixel((5, 5)) == (200, 0, 0)
    boxes = call.kwargs["boxes"]["predictions"]
    assert boxes["class_labels"] == {0: "red", 1: "blue"} and len(boxes["box_data"]) == 1
    box = boxes["box_data"][0]
    assert box["position"] == {"minX": 0.25, "minY": 0.25, "maxX": 0.75, "maxY": 0.75}
    assert box["class_id"] == 1 and box["box_caption"] == "blue 0.90" and call.kwargs["caption"] == "street.png"
