"""Python statements in several processes of one machine that meet over gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.processes import free_port
from utils.base.paths import ROOT

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


def together(body: str, arguments: dict[str, Any], count: int = 2, timeout: float = 120) -> list[Any]:
    """Run Python statements in `count` processes that have joined each other; what each prints as JSON, by rank.

    `arguments` is a variable of theirs.
    """
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    shared |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": 1, "PYTHONPATH": ROOT}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", FRAME.format(body=body), json.dumps(arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {name: str(value) for name, value in {**shared, "RANK": i, "LOCAL_RANK": i}.items()},
            cwd=Path(arguments.get("cwd", ROOT)),
        )
        for i in range(count)
    ]
    try:
        said = [process.communicate(timeout=timeout) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, errors) in zip(running, said, strict=True):
        assert process.returncode == 0, errors
    return [json.loads(out) for out, _ in said]


def write_into(arrays: dict[str, Any], name: str, index: int, value: float) -> None:
    """Write one number: something for a started process to do that can be imported by name."""
    arrays[name][index] = value
