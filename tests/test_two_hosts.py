"""Two machines train together: two network namespaces, each with an address, a launcher and a cable between them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest

import train
from tests.processes import QUIET
from utils.base.paths import ROOT
from utils.checkpoints.checkpoint import load_checkpoint

NET = "10.213.77"  # exists in the namespaces only


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """The names of two namespaces, cable0 of each with the address 1 or 2; skips where they cannot be made."""
    if shutil.which("ip") is None:
        pytest.skip("needs the command ip (Debian: iproute2)")
    names = [f"host{number}-{os.getpid()}" for number in (1, 2)]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", f"c1-{os.getpid()}", "type", "veth", "peer", "name", f"c2-{os.getpid()}")
        for number, name in enumerate(names, start=1):
            ip("link", "set", f"c{number}-{os.getpid()}", "netns", name, "name", "cable0")
            ip("-n", name, "address", "add", f"{NET}.{number}/24", "dev", "cable0")
            for device in ("cable0", "lo"):
                ip("-n", name, "link", "set", device, "up")
    except (subprocess.SubprocessError, OSError) as error:
        _remove(names)
        pytest.skip(f"needs the right to make network namespaces ({error})")
    yield names
    _remove(names)


def _remove(names: list[str]) -> None:
    for name in names:
        with suppress(subprocess.SubprocessError, OSError):
            ip("netns", "delete", name)


def test_two_hosts_learn_as_one_process(hosts: list[str], squares: Path, tiny_cfg: Path, tmp_path: Path) -> None:
    """Batch norm and loss over both, so that only the order of sums differs."""
    hyp = tmp_path / "hyp.yaml"
    hyp.write_text("{warmup_epochs: 0, nominal_batch: 4, ema_tau: 3}")
    given = {"data": squares, "cfg": tiny_cfg, "hyp": hyp, "project": tmp_path / "runs", "epochs": 1, "batch_size": 4}
    given |= {"imgsz": 64, "workers": 0, "device": "cpu"}
    given = {key: value if isinstance(value, int) else str(value) for key, value in given.items()}
    train.run(name="one", loggers=["none"], **given)

    words = [word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    meet = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "pair"]
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    env, launchers = os.environ | QUIET | {"GLOO_SOCKET_IFNAME": "cable0"}, []
    for number, host in enumerate(hosts, start=1):
        run = ["ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run", *meet]
        run += ["--rdzv-endpoint", f"{NET}.1:29511", "--rdzv-conf", f"is_host={int(number == 1)}"]
        run += ["--local-addr", f"{NET}.{number}", str(ROOT / "train.py"), *words]
        run += ["--name", "two", "--sync-bn", "--loggers", "none"]
        launchers.append(subprocess.Popen(run, env=env, **out))
    try:
        texts = [launcher.communicate(timeout=240)[0] for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.kill()
    assert [launcher.returncode for launcher in launchers] == [0, 0], "\n".join(texts)
    one, two = (pd.read_csv(tmp_path / f"runs/{name}/results.csv", skipinitialspace=True) for name in ("one", "two"))
    losses = [column for column in one if column.startswith("train/")]
    assert len(losses) == 3 and (one[losses] - two[losses]).abs().to_numpy().max() < 1e-4
    assert load_checkpoint(tmp_path / "runs/two/weights/best.pt")["epoch"] == -1
    assert sum("Results saved to" in text for text in texts) == 1
