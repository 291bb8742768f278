"""Several processes search together and are killed: every trial is done, and none twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from utils.base.paths import ROOT

pytest.importorskip("optuna")
TRIALS = 7
# arguments: name of the worker, folder, storage, the trial that it never finishes, when to start
WORKER = f"""
import os, sys, time
from pathlib import Path
from utils.search import results, worker as module
from utils.search.evolve import evolve
from utils.base.config import Hyp
from utils.training.setup import TrainOptions
name, folder, storage, stuck, go = sys.argv[1:]
module.POLL, results.plot_evolve = 0.05, lambda file: file
log = os.open(f"{{folder}}/log", os.O_APPEND | os.O_WRONLY | os.O_CREAT)
def tell(*words):
    os.write(log, (" ".join(map(str, words)) + "\\n").encode())
def train(opt, callbacks):
    hyp = Path(opt.hyp).read_text().replace("\\n", ";").replace(" ", "")
    tell("start", opt.name, name, hyp)
    time.sleep(600 if opt.name == stuck else 0.1)
    tell("end", opt.name, name, hyp)
    return (0.1 * int(opt.name), 0.1, 0.1, 0.1, 0.1, 0.1, 0.1)
while go and not Path(go).exists():
    time.sleep(0.02)
options = dict(project=folder, name="together", exist_ok=True, evolve_storage=storage, hyp="hyp.scratch-low.yaml")
evolve(TrainOptions(evolve={TRIALS}, **options), train)
tell("left", "-", name)
"""


class Workers:
    """Processes of one search, and what they write down."""

    def __init__(self, folder: Path, storage: str) -> None:
        self.folder, self.storage, self.running = folder, storage, {}

    def start(self, name: str, stuck: int = -1, go: str = "") -> None:
        command = [sys.executable, "-c", WORKER, name, str(self.folder), self.storage, str(stuck), go]
        self.running[name] = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    def log(self) -> list[list[str]]:
        file = self.folder / "log"
        return [line.split() for line in file.read_text().splitlines()] if file.exists() else []

    def wait(self, until: Callable[[list[list[str]]], bool]) -> None:
        deadline = time.monotonic() + 90
        while not until(self.log()):
            for name, process in self.running.items():
                assert process.poll() in (None, 0, -signal.SIGKILL), f"{name}: {process.stderr.read()}"
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def kill(self, name: str) -> None:
        self.running[name].kill()  # and nobody asks for its exit status: a zombie is dead, too

    def stop(self) -> None:
        for process in self.running.values():
            process.kill()
            process.communicate()


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="elsewhere the dead are known after minutes only")
@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_one_of_two_workers_is_killed_and_restarted(tmp_path: Path, kind: str) -> None:
    workers = Workers(tmp_path, "" if kind == "journal" else f"sqlite:///{tmp_path}/search.db")
    go = tmp_path / "go"
    try:
        workers.start("first", stuck=1)
        workers.start("second", go=str(go))
        if kind == "journal":  # it joins after the kill; its imports are done by then, which saves the test some time
            workers.start("restarted", go=str(tmp_path / "again"))
        workers.wait(lambda log: any(row[:2] == ["start", "1"] for row in log))
        go.touch()
        # the other does what is left, and waits for the one that is stuck
        workers.wait(lambda log: sum(row[0] == "end" for row in log) == TRIALS - 1)
        assert not any(row[0] == "left" for row in workers.log())
        workers.kill("first")
        (tmp_path / "again").touch()
        workers.wait(lambda log: sum(row[0] == "left" for row in log) == len(workers.running) - 1)
    finally:
        workers.stop()
    log = workers.log()
    starts, ends = (Counter(row[1] for row in log if row[0] == word) for word in ("start", "end"))
    assert ends == dict.fromkeys(map(str, range(TRIALS)), 1) and starts == ends | {"1": 2}
    assert len({row[3] for row in log if row[0] == "start" and row[1] == "1"}) == 1  # the same hyper-parameters again
    assert len({row[3] for row in log if row[0] == "end"}) == TRIALS
    table = pd.read_csv(tmp_path / "together/evolve.csv", skipinitialspace=True).rename(columns=str.strip)
    assert table["metrics/precision"].round(3).tolist() == [round(0.1 * number, 3) for number in range(TRIALS)]
    assert not [path.name for path in (tmp_path / "together").iterdir() if path.name.endswith((".lock", ".tmp"))]
