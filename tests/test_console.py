"""The scripts as one command."""

from __future__ import annotations

import subprocess
import sys

import pytest

import console
from utils.base.paths import ROOT


@pytest.mark.parametrize("name", console.COMMANDS)
def test_every_script_is_a_command(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["yolov5-biformer"])
    with pytest.raises(SystemExit) as end:
        console.main([name, "--help"])
    assert end.value.code == 0 and capsys.readouterr().out.startswith(f"usage: yolov5-biformer {name} ")


def test_a_command_goes_on_to_its_script_and_only_there(tmp_path) -> None:
    code = (
        "import sys, console; status = console.main(['detect', '--weights', 'gone.pt']); "
        "print(status, *sorted({'train', 'serve', 'fastapi'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "1\n" and "weights gone.pt do not exist" in done.stderr


@pytest.mark.parametrize("words, status", [([], 2), (["fly"], 2), (["--help"], 0)])
def test_what_is_no_command(words: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        console.main(words)
    assert end.value.code == status
    said = capsys.readouterr()
    assert all(name in said.out + said.err for name in console.COMMANDS) or not words
