"""Packages that only one format needs, and silence while they work."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def is_there(module: str) -> bool:
    """Whether a module, possibly a dotted one, can be found, without importing it (only its parents)."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def need(module: str, purpose: str, install: str = "") -> Any:
    """Import an optional module. Raises ValueError that says what for, and the command that installs it."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        why = f"does not work here ({str(error).splitlines()[0]})" if is_there(module) else "is not installed"
        how = install or f"pip install {package}"
        raise ValueError(f"{purpose} needs the package {package}, which {why}: {how}") from error


@contextmanager
def silenced(is_loud: bool = False) -> Iterator[None]:
    """Throw away what is written to the process's standard output and error meanwhile; `is_loud` lets it through.

    Past every logger, and from C++ too.
    """
    if is_loud:
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {number: os.dup(number) for number in (1, 2)}
    with tempfile.TemporaryFile("w") as nowhere:
        try:
            for number in kept:
                os.dup2(nowhere.fileno(), number)
            with redirect_stdout(nowhere), redirect_stderr(nowhere):
                yield
        finally:
            for number, before in kept.items():
                os.dup2(before, number)
                os.close(before)
