"""YAML files in and out. A file may be anybody's: it can neither run code nor fill the memory.

Aliases make a short file long (`b: [*a, *a]`, and so on: every line doubles what there is) or endless (`a: &a [*a]`),
so what they stand for is counted before any of it is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from utils.base.files import MIB, decoded, printable, read_bytes

MAX_BYTES = MIB  # the names of 20,000 classes take half of it
MAX_NODES = 200_000  # keys and values, aliases written out
MAX_LEVELS = 50
MAX_NUMBER = 1 << 63

_REFUSALS = (yaml.YAMLError, RecursionError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises ValueError, with file and line, when it is not one."""
    name = printable(path)
    try:
        text = decoded(read_bytes(path, MAX_BYTES))
    except UnicodeError:
        raise ValueError(f"{name}: is not a text file in UTF-8; save it as UTF-8") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    try:
        content = _built(text)
    except _REFUSALS as error:  # PyYAML lets through what Python says of a wrong date or number
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "problem", None)
        said = str(error).partition("\n")[0] * (not isinstance(error, yaml.YAMLError))
        reason = printable(problem or said or "syntax error")
        raise ValueError(f"{name}{where}: is not valid YAML ({reason})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{name}: expected 'key: value' lines, not {type(content).__name__ if content else 'nothing'}")
    return content


def write_yaml(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a mapping in its own order; paths become text."""
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in content.items()}
    Path(path).write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")


def shortened(value: Any) -> str:
    """Return a value for a message: what Python calls it, cut off after 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class _Loader(yaml.SafeLoader):
    """Stops reading where there is more than anything made of it would be."""

    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """One more value."""
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise ValueError(f"more than {MAX_NODES:,} values")
        return super().compose_node(parent, index)


def _built(text: str) -> Any:
    """Return what the text stands for, once its size is known."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, {})
        content = loader.construct_document(node)
    finally:
        loader.dispose()
    _check_leaves(content)
    return content


def _measure(node: yaml.Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Return (nodes, levels) with every alias written out.

    Raises ValueError when that is endless or too much, and for a mapping with one key twice, of which only the last
    would count.
    """
    if id(node) in known:
        if (found := known[id(node)]) is None:
            raise ValueError("an alias stands for something that it is part of itself")
        return found
    known[id(node)] = None
    parts, seen = node.value if isinstance(node, yaml.SequenceNode) else [], set()
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        parts += [key, value]
        if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
            raise ValueError(f"line {key.start_mark.line + 1}: {key.value[:40]!r} is there twice; remove one")
        seen.add((key.tag, str(key.value)))
    nodes, levels = 1, 1
    for part in parts:
        below, deep = _measure(part, known)
        nodes, levels = nodes + below, max(levels, deep + 1)
        if nodes > MAX_NODES or levels > MAX_LEVELS:
            raise ValueError(f"more than {MAX_NODES:,} values or {MAX_LEVELS} levels, aliases written out")
    known[id(node)] = nodes, levels
    return nodes, levels


def _check_leaves(value: Any) -> None:
    """Raise ValueError for numbers that nothing counts to and for text that can be neither printed nor written."""
    if isinstance(value, (Mapping, list, tuple, set)):
        for part in chain.from_iterable(value.items()) if isinstance(value, Mapping) else value:
            _check_leaves(part)
    elif isinstance(value, int) and not -MAX_NUMBER < value < MAX_NUMBER:
        raise ValueError("a whole number of more than 18 digits")
    elif isinstance(value, str) and ("\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value)):
        raise ValueError(f"text with what is no character: {value[:40]!r}")
