"""Silence for programs that print while they work, past every logger and from C++ too."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout


@contextmanager
def hushed(is_loud: bool = False) -> Iterator[None]:
    """Throw away what is written to the process's standard output and error meanwhile; `is_loud` lets it through."""
    if is_loud:
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {number: os.dup(number) for number in (1, 2)}
    with tempfile.TemporaryFile("w") as heap:
        try:
            for number in kept:
                os.dup2(heap.fileno(), number)
            with redirect_stdout(heap), redirect_stderr(heap):
                yield
        finally:
            for number, before in kept.items():
                os.dup2(before, number)
                os.close(before)
