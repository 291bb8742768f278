"""Options have one home: a slots dataclass is the flags, the defaults, the help text and the Python API.

`flag` declares an option, `parse` reads a command line, `parse_given` tells what really stands there, `options` takes
keyword arguments.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, field, fields
from pathlib import Path
from typing import Any, TypeVar

from utils.paths import shown as shown_path

T = TypeVar("T")


def flag(
    default: Any = MISSING, help: str = "", aliases: Sequence[str] = (), shown: str | None = None, **extra: Any
) -> Any:
    """A dataclass field that is also a command-line flag.

    `aliases` are further spellings; `shown` is what --help calls the default where its value would not explain itself,
    nothing if empty. `extra` goes to argparse (`nargs`, `const`, `choices`, `type`, `metavar`). Without a `type` the
    annotation decides; a bool that is False by default becomes a switch.
    """
    metadata = {"help": help, "aliases": tuple(aliases), "shown": shown, "extra": extra}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def parse(kind: type[T], argv: Sequence[str] | None = None, description: str = "") -> T:
    """Read a command line into the dataclass `kind`.

    Underscores and hyphens in a flag's name are the same, and unique beginnings of a flag are enough
    (`--batch` for `--batch-size`), as in YOLOv5. An unknown flag ends the program with usage and the nearest flag.
    """
    return options(kind, parse_given(kind, argv, description))


def parse_given(kind: type[Any], argv: Sequence[str] | None = None, description: str = "") -> dict[str, Any]:
    """Read a command line as `parse` does: only the options that stand there, by field name."""
    parser = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    hints = typing.get_type_hints(kind)
    for item in fields(kind):
        extra = dict(item.metadata.get("extra", {}))
        names = ["--" + item.name.replace("_", "-"), *item.metadata.get("aliases", ())]
        default = item.default if item.default is not MISSING else item.default_factory()
        inner, many = inner_type(hints[item.name])
        if inner is bool and "nargs" not in extra:
            extra["action"] = "store_true" if default is False else argparse.BooleanOptionalAction
        else:
            extra.setdefault("type", inner)
            if many:
                extra.setdefault("nargs", "+")
            extra.setdefault("metavar", item.name.upper() if not extra.get("choices") else None)
        text = _help(item.metadata, default)
        parser.add_argument(*names, dest=item.name, default=argparse.SUPPRESS, help=text, **extra)
    return vars(parser.parse_args(argv))


def _help(metadata: Mapping[str, Any], default: Any) -> str:
    """What --help says of a flag: its text and its default, if there is one."""
    words = metadata["shown"]
    if words is None:
        parts = default if isinstance(default, list) else [default]
        words = " ".join(_readable(part) for part in parts if part is not None and part is not False)
    text = metadata["help"] + (f" (default: {words})" if words else "")
    return text.replace("%", "%%")  # argparse fills in what follows a single one


def _readable(value: Any) -> str:
    """A default as people would type it; absolute paths relative to the current folder, where they lie in it."""
    return shown_path(value) if isinstance(value, str) and Path(value).is_absolute() else str(value)


def options(kind: type[T], given: Mapping[str, Any]) -> T:
    """The same dataclass from keyword arguments; a name it does not have raises ValueError with the nearest one."""
    known = [item.name for item in fields(kind)]
    for name in given:
        if name not in known:
            raise ValueError(f"unknown option {name!r}{nearest(name, known)}; there are: {', '.join(known)}")
    return kind(**given)


class _Parser(argparse.ArgumentParser):
    """argparse with `_` and `-` alike in flag names, and an error that names the nearest flag."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        """As argparse does, after writing every flag with hyphens."""
        words = list(sys.argv[1:] if args is None else args)
        words = [re.sub(r"^--[\w-]+", lambda m: m[0].replace("_", "-"), word) for word in words]
        found, unknown = self.parse_known_args(words, namespace)
        if unknown:
            flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
            self.error(f"unknown argument {unknown[0]}{nearest(unknown[0].split('=')[0], flags)}; see --help")
        return found


def inner_type(hint: Any) -> tuple[Any, bool]:
    """(type of one value, whether there are several) for `int`, `str | None`, `list[int]`, ..."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is list:
        return typing.get_args(hint)[0], True
    return hint, False


def nearest(name: str, known: Iterable[str]) -> str:
    """A piece of a message, ", did you mean 'this'?", that names the nearest; empty where none is near."""
    near = difflib.get_close_matches(str(name), [str(k) for k in known], n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def class_numbers(wanted: Iterable[str | int], names: Sequence[str], given: str = "--classes") -> list[int]:
    """Numbers of classes given by name or number; ValueError, with what comes near, for one there is not.

    `given` is where they were given, for people.
    """
    numbers = []
    for word in map(str, wanted):
        if word in names:
            numbers.append(list(names).index(word))
        elif word.isascii() and word.isdecimal() and len(word) < 7 and int(word) < len(names):
            numbers.append(int(word))
        else:
            hint = nearest(word, names) or f"; they are {', '.join(names[:5])}{', ...' * (len(names) > 5)}"
            raise ValueError(f"{given} {word[:40]}: not among the {len(names)} classes of the weights{hint}")
    return numbers
