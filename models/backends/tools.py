"""Packages that only one format needs."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType


def is_there(module: str) -> bool:
    """Whether a module, possibly a dotted one, can be found, without importing it (only its parents)."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def need(module: str, purpose: str, install: str = "") -> ModuleType:
    """Import an optional module. Raises ValueError that says what for, and the command that installs it."""
    try:
        return import_module(module)
    except ImportError as error:
        how = install or f"pip install {module.partition('.')[0]}"
        absent = not is_there(module)
        why = "is not installed" if absent else f"does not work here ({str(error).splitlines()[0]})"
        raise ValueError(f"{purpose} needs the package {module.partition('.')[0]}, which {why}: {how}") from error
