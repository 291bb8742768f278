"""Two processes search together and one is killed: in the end every trial is done."""

from __future__ import annotations

import os
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
# arguments: name of the worker, folder, storage, the trial that it never finishes
WORKER = f"""
import os, sys, time
from pathlib import Path
from utils.search import results, worker as module
from utils.search.evolve import evolve
from utils.training.train_options import TrainOptions
name, folder, storage, stuck = sys.argv[1:]
module.POLL, results.plot_evolve = 0.05, lambda file: file
log = os.open(f"{{folder}}/log", os.O_APPEND | os.O_WRONLY | os.O_CREAT)
def write(*words):
    os.write(log, (" ".join(map(str, words)) + "\\n").encode())
def train(opt, callbacks):
    hyp = Path(opt.hyp).read_text().replace("\\n", ";").replace(" ", "")
    write("start", opt.name, name, hyp)
    time.sleep(600 if opt.name == stuck else 0.1)
    write("end", opt.name, name, hyp)
    return (0.1 * int(opt.name), 0.1, 0.1, 0.1, 0.1, 0.1, 0.1)
options = dict(project=folder, name="together", exist_ok=True, evolve_storage=storage, hyp="hyp.scratch-low.yaml")
evolve(TrainOptions(evolve={TRIALS}, **options), train)
write("left", "-", name)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="elsewhere the dead are known after minutes only")
@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_the_trial_of_a_killed_worker_is_trained_again(tmp_path: Path, kind: str) -> None:
    storage, running = "" if kind == "journal" else f"sqlite:///{tmp_path}/search.db", []

    def start(name: str, stuck: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WORKER, name, str(tmp_path), storage, stuck]
        running.append(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True))
        return running[-1]

    def log() -> list[list[str]]:
        file = tmp_path / "log"
        return [line.split() for line in file.read_text().splitlines()] if file.exists() else []

    def wait(until: Callable[[list[list[str]]], bool]) -> None:
        deadline = time.monotonic() + 90
        while not until(log()):
            assert not any(process.poll() for process in running[-1:]), running[-1].stderr.read()
            assert time.monotonic() < deadline, log()
            time.sleep(0.02)

    try:
        first = start("first", "1")
        wait(lambda rows: any(row[:2] == ["start", "1"] for row in rows))
        start("second", "")
        # the other does what is left, and waits for the one that is stuck
        wait(lambda rows: sum(row[0] == "end" for row in rows) == TRIALS - 1)
        assert not any(row[0] == "left" for row in log())
        first.kill()  # and nobody asks for its exit status: a zombie is dead, too
        wait(lambda rows: any(row[0] == "left" for row in rows))
    finally:
        for process in running:
            process.kill()
            process.communicate()
    starts, ends = (Counter(row[1] for row in log() if row[0] == word) for word in ("start", "end"))
    assert ends == dict.fromkeys(map(str, range(TRIALS)), 1) and starts == ends | {"1": 2}
    assert len({row[3] for row in log() if row[:2] == ["start", "1"]}) == 1  # the same hyper-parameters again
    table = pd.read_csv(tmp_path / "together/evolve.csv", skipinitialspace=True).rename(columns=str.strip)
    assert table["metrics/precision"].round(3).tolist() == [round(0.1 * number, 3) for number in range(TRIALS)]
    assert not [path.name for path in (tmp_path / "together").iterdir() if path.name.endswith((".lock", ".tmp"))]
