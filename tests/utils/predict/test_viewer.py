"""Windows are opened only where there is a display, and nothing ever aborts."""

import subprocess
import sys

import numpy as np
import pytest

from utils.predict import viewer
from utils.predict.viewer import Viewer, display_problem


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    display_problem.cache_clear()
    monkeypatch.setattr(viewer.sys, "platform", "linux")
    yield
    display_problem.cache_clear()


def test_no_display_is_one_warning(monkeypatch, caplog):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    window = Viewer()
    assert window.show("x", np.zeros((4, 4, 3), np.uint8)) and not window.usable
    window.close()
    assert len(caplog.records) == 1 and "DISPLAY" in caplog.text


def test_a_display_that_is_named_but_not_there_is_found_out_in_another_process(monkeypatch):
    monkeypatch.setenv("DISPLAY", ":987")
    assert display_problem(probe=False) == ""
    if sys.platform.startswith("linux"):
        assert "cannot open a window" in display_problem()


@pytest.mark.parametrize("outcome", [OSError("none"), subprocess.TimeoutExpired("x", 1)])
def test_a_probe_that_fails(monkeypatch, outcome):
    monkeypatch.setenv("DISPLAY", ":0")

    def fail(*args, **kwargs):
        raise outcome

    monkeypatch.setattr(viewer.subprocess, "run", fail)
    assert "failed" in display_problem()


def test_keys_end_the_run(monkeypatch):
    monkeypatch.setattr(viewer, "display_problem", lambda: "")
    shown = []
    for name in ("namedWindow", "destroyAllWindows"):
        monkeypatch.setattr(viewer.cv2, name, lambda *args: None)
    monkeypatch.setattr(viewer.cv2, "imshow", lambda title, image: shown.append(title))
    for key, goes_on in ((-1, True), (ord("q"), False), (27, False), (ord("a"), True)):
        monkeypatch.setattr(viewer.cv2, "waitKey", lambda wait, key=key: key)
        assert Viewer().show("title", np.zeros((4, 4, 3), np.uint8)) is goes_on
    assert Viewer().show("\x1b]0;own\x07.jpg", np.zeros((4, 4, 3), np.uint8))
    assert shown == ["title"] * 4 + [r"\x1b]0;own\x07.jpg"]
