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

from utils.base.paths import ROOT

QUIET = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
FRAME = """
import json, sys
import torch
from utils.distributed.processes import join, leave, rank
torch.set_num_threads(1)
join("gloo")
arguments = json.loads(sys.argv[1])
{body}
leave()
"""


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _run(words: list[str], world: int, cwd: Path = ROOT) -> list[str]:
    """What Python with these words prints in each of `world` processes that may meet; all must end well."""
    shared = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    shared |= QUIET | {"PYTHONPATH": ROOT}
    ranks = [os.environ | {k: str(v) for k, v in (shared | {"RANK": i, "LOCAL_RANK": i}).items()} for i in range(world)]
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", *words], env=env, cwd=cwd, **out) for env in ranks]
    try:
        said = [process.communicate(timeout=180) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), "\n".join(map("".join, said))
    return [printed for printed, _ in said]


def statements(body: str, arguments: dict[str, Any], count: int = 2) -> list[Any]:
    """Run Python statements in `count` processes that have joined each other; what each prints as JSON, by rank.

    `arguments` is a variable of theirs.
    """
    words = [FRAME.format(body=body), json.dumps(arguments)]
    return [json.loads(printed) for printed in _run(words, count, Path(arguments.get("cwd", ROOT)))]


def write_into(arrays: dict[str, Any], name: str, index: int, value: float) -> None:
    """Write one number: something for a started process to do that can be imported by name."""
    arrays[name][index] = value


def together(
    function: Callable[..., Any], folder: Path, *arguments: Any, world: int = 2, meet: bool = True
) -> list[Any]:
    """What `function(*arguments)` returns in each of `world` processes that have met over gloo, or (not `meet`) may.

    It is a function of a test module; its arguments are JSON, its answers tensors and builtins.
    """
    words = [function.__module__, function.__name__, str(folder), json.dumps(arguments), "meet" * meet]
    _run(["from tests.processes import main; main()", *words], world)
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
