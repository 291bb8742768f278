"""Which processes of a search live: by their process number on this machine, by what they say elsewhere."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def process_birth(pid: int) -> str | None:
    """When a process of this machine started, in the kernel's ticks; None when it is gone (or a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def this_worker() -> dict[str, Any]:
    """Who we are: name of the machine, process, and the space in which that process number means something.

    The space is this boot of this machine, or of a container on it. Where the system does not tell, it is ours alone:
    then others must hear from us to know that we live, and we from them.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        space = f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        space = str(uuid.uuid4())
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "born": process_birth(pid), "space": space}


def seen_alive(worker: Mapping[str, Any], me: Mapping[str, Any]) -> bool | None:
    """Does a worker's process live? None when it cannot be seen from here."""
    if worker["space"] != me["space"]:
        return None
    return process_birth(worker["pid"]) == worker["born"]
