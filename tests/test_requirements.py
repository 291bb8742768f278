"""The bounds of requirements.txt are releases, and .ci/run tries exactly these."""

from __future__ import annotations

import os
import re
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def bounds() -> dict[str, str]:
    """The lowest version of each package."""
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    pairs = [re.fullmatch(r"([a-z-]+)>=([0-9.]+)", line) for line in lines]
    assert all(pairs), f"only name>=version, which .ci/run turns into name==version: {lines}"
    return {pair[1]: pair[2] for pair in pairs if pair}


def parts(text: str) -> tuple[int, ...]:
    """2.11.0+cpu -> (2, 11): zeros at the end and what the builder added count for nothing."""
    numbers = [int(number) for number in text.partition("+")[0].split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def test_every_package_has_one_bound() -> None:
    assert {"torch", "torchvision", "numpy", "pillow", "opencv-python"} <= bounds().keys()


def test_what_is_installed_is_allowed() -> None:
    for name, least in bounds().items():
        assert parts(version(name)) >= parts(least), f"{name} {version(name)} is older than requirements.txt allows"


@pytest.mark.skipif(os.environ.get("YOLOV5_LOWEST") != "1", reason="is for the lowest versions, which .ci/run installs")
def test_the_lowest_versions_are_tested() -> None:
    assert {name: parts(version(name)) for name in bounds()} == {name: parts(least) for name, least in bounds().items()}


def test_the_ci_installs_the_bounds() -> None:
    text = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert "sed 's/>=/==/' requirements.txt" in text and "YOLOV5_LOWEST=1" in text
    wanted = "models utils/training utils/boxes utils/evaluation/test_evaluator.py test_export.py test_golden.py"
    assert all(f"tests/{name}" in text and (ROOT / "tests" / name).exists() for name in wanted.split())
