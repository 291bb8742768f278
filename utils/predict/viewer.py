"""Images in a window, where there is one: a display is looked for first, since Qt ends the process without."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache

import cv2
import numpy as np

from utils.base.files import printable
from utils.base.log import LOGGER

_PROBE = "import cv2, numpy; cv2.imshow('probe', numpy.zeros((8, 8, 3), 'uint8')); cv2.waitKey(1)"
_PROBE_SECONDS = 30
QUIT_KEYS = (ord("q"), 27)  # q and Escape


@cache
def display_problem(probe: bool = True) -> str:
    """Why no window can be opened here, '' when one can.

    The environment is asked first. With `probe` a process of its own then opens a window, because a display that is
    named but not reachable makes the GUI library abort the process that tries.
    """
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return "no display (neither DISPLAY nor WAYLAND_DISPLAY is set)"
    if not probe:
        return ""
    try:
        done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, timeout=_PROBE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"opening a window failed ({type(error).__name__})"
    if done.returncode == 0:
        return ""
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return f"OpenCV cannot open a window here ({lines[-1][:160] if lines else f'status {done.returncode}'})"


class Viewer:
    """Shows frames in one window per source; without a display one warning is logged and nothing is shown."""

    def __init__(self) -> None:
        problem = display_problem()
        self.usable = not problem
        if problem:
            LOGGER.warning(f"cannot show images: {problem}; results are saved all the same")

    def show(self, title: str, image: np.ndarray, wait_ms: int = 1) -> bool:
        """Show a BGR image; False when the person pressed q or Escape and wants no more."""
        if not self.usable:
            return True
        title = printable(title)
        cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
        cv2.imshow(title, image)
        return cv2.waitKey(wait_ms) & 0xFF not in QUIT_KEYS

    def close(self) -> None:
        """Close the windows."""
        if self.usable:
            cv2.destroyAllWindows()
