"""The scripts as one command."""

from __future__ import annotations

import subprocess
import sys

import pytest

import console
from tests.test_packaging import PROJECT
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


def test_no_command_is_answered_by_all_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main([]) == 2 and ", ".join(console.COMMANDS) in " ".join(capsys.readouterr().err.split())
    answers = {"trian": "did you mean 'train'?", "fly": "there are train, val", "--fly": "required: command"}
    for words, says in answers.items():
        with pytest.raises(SystemExit) as end:
            console.main([words])
        said = capsys.readouterr().err
        assert end.value.code == 2 and said.count("\n") == 1 and says in said


def test_there_is_one_version(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    with pytest.raises(SystemExit) as end:
        console.main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"yolov5-biformer {PROJECT['version']}\n"
    monkeypatch.setattr(console, "ROOT", tmp_path)  # as where it is installed without its folder
    monkeypatch.setattr(console.importlib.metadata, "version", {"yolov5-biformer": "9"}.__getitem__)
    assert console.version() == "9"
