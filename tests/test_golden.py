"""The reference values in tests/golden hold (README.md of that folder's origin explains the rules they are made by)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"


@pytest.mark.parametrize("section", ["models", "bra", "loss", "nms", "metrics", "geometry", "checkpoints", "schedule"])
def test_section_agrees(section: str) -> None:
    done = subprocess.run(
        [sys.executable, str(GOLDEN / "check_golden.py"), str(GOLDEN), str(ROOT), section],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert done.returncode == 0, "\n".join(failed) or done.stderr[-2000:]
    assert "0 failed" in done.stdout.splitlines()[-1] and "PASS" in done.stdout
