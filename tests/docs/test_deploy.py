"""docs/deploy.md: its example runs as it stands there, and its tables name what there is."""

from __future__ import annotations

import re
import subprocess
import sys

import cv2
import numpy as np
import pytest

import detect
import export
from models.backends.metadata import Metadata
from models.exporters import FORMATS
from tests.known_detector import NAMES, write_weights
from utils.base.paths import ROOT

PAGE = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")
PAGES = {"en": PAGE, "zh": (ROOT / "docs/deploy.zh-CN.md").read_text(encoding="utf-8")}


def test_every_format_is_there():
    for name in FORMATS:
        assert re.search(rf"--include ([\w ]+ )?{name}\b", PAGE), name


@pytest.mark.parametrize("language", PAGES)
@pytest.mark.parametrize("name", FORMATS)
def test_a_formats_row_has_the_whole_command_that_export_names(name, language):
    """One installation does, with every module that the format needs."""
    (row,) = re.findall(rf"^\| (?:`\w+`[,、] ?)*`{name}`.*\|$", PAGES[language], re.M)
    assert bool(FORMATS[name].install) == bool(FORMATS[name].modules)
    if FORMATS[name].install:
        assert re.search(r"pip install [^,]+", FORMATS[name].install)[0] in row


def test_every_key_is_there():
    keys = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", PAGE, re.M))))
    assert set(Metadata().as_dict()) - {"shape"} <= keys


def test_the_example_finds_what_detect_finds(tmp_path):
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module, reason=f"the example needs {module}, which is not installed")
    (code,) = re.findall(r"<!-- example -->\n```python\n(.*?)```", PAGE, re.S)
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    weights = write_weights(tmp_path / "best.pt")
    settings = {"conf_thres": 0.25, "iou_thres": 0.45, "topk_all": 300, "topk_per_class": 300}
    (file,) = export.run(weights=weights, include="onnx", imgsz=64, nms=True, **settings)
    source = ROOT / "data/images/crowd.jpg"
    done = subprocess.run(
        [sys.executable, "example.py", file, source],
        cwd=tmp_path,
        env={"PATH": "", "PYTHONUTF8": "1", "PYTHONPATH": ""},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    found = [line.split(" ") for line in done.stdout.splitlines()]
    folder = detect.run(weights=file, source=source, imgsz=64, save_txt=True, save_conf=True, project=str(tmp_path))
    labels = np.loadtxt(folder / "labels/crowd.txt", ndmin=2)
    assert len(found) == len(labels) > 10 and {row[0] for row in found} == {NAMES[int(labels[0, 0])]}
    height, width = cv2.imread(str(source)).shape[:2]
    boxes = np.array([row[2:] for row in found], float).clip(0, [width, height, width, height])
    centre, size = labels[:, 1:3] * [width, height], labels[:, 3:5] * [width, height]
    expected = np.concatenate((centre - size / 2, centre + size / 2), 1)
    gaps = np.abs(boxes[:, None] - expected[None]).max(-1)
    most = 0.51 * max(height, width) / 64  # an odd row of padding: detect.py halves it, as v6.1 does
    assert gaps.min(1).max() < most and gaps.min(0).max() < most
