"""Real processes on one machine, for tests of what they do together."""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
QUIET = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def together(
    function: Callable[..., Any], folder: Path, *arguments: Any, world: int = 2, meet: bool = True
) -> list[Any]:
    """What `function(*arguments)` returns in each of `world` processes that have met over gloo, or (not `meet`) may.

    It is a function of a test module; its arguments are JSON, its answers tensors and builtins.
    """
    met = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    words = [function.__module__, function.__name__, str(folder), json.dumps(arguments), "meet" * meet]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", "from tests.processes import main; main()", *words],
            cwd=ROOT,
            env=os.environ
            | QUIET
            | {key: str(value) for key, value in (met | {"RANK": rank, "LOCAL_RANK": rank}).items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        told = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), "\n".join(told)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def main() -> None:
    """In one of the processes: meet the others, do what was asked, write the answer down."""
    from utils.distributed.processes import join, leave, rank

    torch.set_num_threads(1)
    module, function, folder, arguments, meet = sys.argv[1:]
    if meet:
        join("gloo")
    try:
        answer = getattr(importlib.import_module(module), function)(*json.loads(arguments))
        torch.save(answer, Path(folder) / f"{rank()}.pt")
    finally:
        leave()
