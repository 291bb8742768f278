"""Options have one home: a slots dataclass is the flags, the defaults, the help text and the Python API.

`flag` declares an option, `parse` reads a command line (`parse_given` only what stands there), `options` takes keyword
arguments or the content of a file. What a value may be is said once, by the annotation, `choices` and `bounds`, and
holds for all of them.
"""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch

from utils.base.files import printable
from utils.base.paths import shown as shown_path

T = TypeVar("T")
WANTED = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}
MOST_WHOLE = 2**63 - 1  # what a computer's own numbers hold
MOST_SHOWN = 60  # characters of a wrong value in a message


@dataclass(frozen=True, slots=True)
class Range:
    """Which numbers make sense: `least` to `most`, without `least` itself if `above`; and the special ones in `also`.

    What is not finite is in no range.
    """

    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    also: tuple[int, ...] = ()

    def __contains__(self, value: float) -> bool:
        if value in self.also:
            return True
        is_finite = abs(value) < math.inf  # math.isfinite fails for very large whole numbers
        return is_finite and self.least <= value <= self.most and not (self.above and value == self.least)

    def __str__(self) -> str:
        least = f"{self.least:.10g}"
        text = f"above {least}" if self.above else f"at least {least}" if self.most == math.inf else f"from {least}"
        if self.most < math.inf:
            text += f"{' and at most' if self.above else ' to'} {self.most:.10g}"
        return text + "".join(f", or {value}" for value in self.also)


SHARE = Range(0, 1)


def flag(
    default: Any = MISSING,
    help: str = "",
    aliases: Sequence[str] = (),
    shown: str | None = None,
    bounds: Range | None = None,
    **extra: Any,
) -> Any:
    """Return a dataclass field that is also a command-line flag.

    `aliases` are further spellings; `shown` is what --help calls the default where its value would not explain itself,
    nothing if empty. `bounds` hold for every number of the option. `extra` goes to argparse (`nargs`, `const`,
    `choices`, `metavar`); a `type` in it stands for the annotation. A bool that is False by default becomes a switch.
    """
    metadata = {"help": help, "aliases": tuple(aliases), "shown": shown, "bounds": bounds, "extra": extra}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def parse(kind: type[T], argv: Sequence[str] | None = None, description: str = "") -> T:
    """Read a command line into the dataclass `kind`.

    Underscores and hyphens in a flag's name are the same, and unique beginnings of a flag are enough
    (`--batch` for `--batch-size`), as in YOLOv5. An unknown flag, and a value of another kind, out of its bounds or not
    among its choices, end the program with status 2 and one line, which names what is nearest.
    """
    return options(kind, parse_given(kind, argv, description))


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line."""

    def error(self, message: str) -> typing.NoReturn:
        """End the program with status 2 and the one line that helps."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def parse_given(kind: type[Any], argv: Sequence[str] | None = None, description: str = "") -> dict[str, Any]:
    """Read a command line as `parse` does; return only the options that stand there, by field name."""
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    hints = typing.get_type_hints(kind)
    for item in fields(kind):
        extra, choices = dict(item.metadata["extra"]), item.metadata["extra"].get("choices")
        extra.pop("choices", None)  # are checked with the types, below
        inner, many = inner_type(hints[item.name])
        if extra.pop("type", inner) is bool:
            extra["action"] = "store_true" if _default(item) is False else argparse.BooleanOptionalAction
        else:
            extra.setdefault("metavar", f"{{{','.join(choices)}}}" if choices else item.name.upper())
            extra = ({"nargs": "+"} | extra) if many else extra
        names = ["--" + item.name.replace("_", "-"), *item.metadata["aliases"]]
        parser.add_argument(*names, dest=item.name, default=argparse.SUPPRESS, help=_help(item), **extra)
    words = sys.argv[1:] if argv is None else argv
    found, unknown = parser.parse_known_args([re.sub(r"^--[\w-]+", lambda m: m[0].replace("_", "-"), w) for w in words])
    if unknown:
        near = nearest(unknown[0].split("=")[0], [name for name in parser._option_string_actions if name[:2] == "--"])
        parser.error(f"unknown argument {printable(unknown[0])}{near}; see --help")
    try:
        return _checked(kind, vars(found), "")
    except ValueError as error:
        parser.error(str(error))


def _help(item: Field[Any]) -> str:
    """Return what --help says of a flag: its text and its default, if there is one."""
    default, shown = _default(item), item.metadata["shown"]
    if shown is None:  # absolute paths as they are seen from the current folder
        values = default if isinstance(default, list) else [default]
        values = [value for value in values if value is not None and value is not False]
        is_path = [isinstance(value, str) and Path(value).is_absolute() for value in values]
        shown = " ".join(shown_path(v) if path else str(v) for v, path in zip(values, is_path, strict=True))
    return (item.metadata["help"] + (f" (default: {shown})" if shown else "")).replace("%", "%%")


def _default(item: Field[Any]) -> Any:
    """Return what an option is where it is not given."""
    return item.default_factory() if item.default_factory is not MISSING else item.default


def options(kind: type[T], given: Mapping[str, Any], source: str = "") -> T:
    """Make the dataclass `kind` from keyword arguments, each checked as on the command line.

    Text that is a number counts as one, a single value as a list of one, a path or a number as text; True and False
    stand for a flag without its value and for one left out. Raises ValueError for a name there is not, with the nearest
    one, and for a value that cannot be, with what is wanted. Messages begin with `source`, the file that the values are
    from; without one they name options as on the command line.
    """
    return kind(**_checked(kind, given, source))


def check_bounds(opt: Any) -> None:
    """Raise ValueError for the first number of an options object that is out of its bounds, or not finite."""
    for item in fields(opt):
        _check_bounds(item, getattr(opt, item.name), _spelled(item.name, ""))


def _check_bounds(item: Field[Any], value: Any, label: str) -> None:
    bounds = item.metadata["bounds"] or Range()
    for number in value if isinstance(value, list) else [value]:
        if type(number) in (int, float) and number not in bounds:
            wanted = f"must be {bounds}" if item.metadata["bounds"] else "must be finite"
            raise ValueError(f"{label} {number:.10g}: {wanted}")


def _spelled(name: str, source: str) -> str:
    """Return an option's name as it stands where it was given."""
    return f"{source}: {name}" if source else f"--{name.replace('_', '-')}"


def _checked(kind: type[Any], given: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the values as their options have them. Raises ValueError for what they cannot be."""
    known, hints = {item.name: item for item in fields(kind)}, typing.get_type_hints(kind)
    for name in given:
        if name not in known:
            start = f"{source}: unknown key" if source else "unknown option"
            near = nearest(name, known)
            raise ValueError(f"{start} {repr(name)[:MOST_SHOWN]}{near}; there are: {', '.join(known)}")
    values = {name: _value(known[name], hints[name], value, _spelled(name, source)) for name, value in given.items()}
    for name, value in values.items():
        _check_bounds(known[name], value, _spelled(name, source))
    return values


def _value(item: Field[Any], hint: Any, value: Any, label: str) -> Any:
    """Return one option's value as it has it."""
    extra, default = item.metadata["extra"], _default(item)
    inner, many = inner_type(hint)
    if value is None and not default:
        return default
    if isinstance(value, bool) and extra.get("nargs") == "?":
        return extra["const"] if value else default
    if not many:
        return _read(label, extra, inner, value)
    values = getattr(value, "tolist", lambda: value)()  # arrays
    listed = values if isinstance(values, (list, tuple, range, set, frozenset)) else [values]
    if not listed and default:
        raise ValueError(f"{label}: is empty; give {WANTED[inner]}, or leave it out")
    return [_read(label, extra, inner, part) for part in listed]


def _read(label: str, extra: Mapping[str, Any], inner: type[Any], value: Any) -> Any:
    """Return a single value as the option has it. Raises ValueError for what it cannot be."""
    kind, choices = extra.get("type", inner), extra.get("choices")
    try:
        value = _converted(kind, value.item() if hasattr(value, "item") else value)  # single numbers of arrays
    except (ValueError, OverflowError):
        problem = f"must be {WANTED[kind]}"
    else:
        if not choices or value in choices:
            return value
        problem = f"choose one of {', '.join(choices)}{nearest(value, choices)}"
    is_word = not isinstance(value, str) or re.fullmatch(r"[\w.,/+-]+", value)  # anything else is shown in quotes
    text = " ".join(str(value).split()) if is_word else repr(value)
    raise ValueError(f"{label} {printable(text if len(text) <= MOST_SHOWN else f'{text[:MOST_SHOWN]}...')}: {problem}")


def _converted(kind: type[Any], value: Any) -> Any:
    """Return a value as bool, text or number. Raises ValueError or OverflowError for what stands for none."""
    accepted: dict[type[Any], tuple[type[Any], ...]] = {bool: (int,), str: (str, int, float, os.PathLike, torch.device)}
    if not isinstance(value, accepted.get(kind, (int, float, str))) or (isinstance(value, bool) and kind is not bool):
        raise ValueError
    found = kind(value)
    is_changed = kind in (bool, int) and not isinstance(value, str) and found != value
    if is_changed or (kind is int and abs(found) > MOST_WHOLE):
        raise ValueError
    return found


def inner_type(hint: Any) -> tuple[Any, bool]:
    """Return (type of one value, whether there are several) for `int`, `str | None`, `list[int]`, ..."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    return (typing.get_args(hint)[0], True) if typing.get_origin(hint) is list else (hint, False)


def nearest(name: object, known: Iterable[object]) -> str:
    """Return a piece of a message, ", did you mean 'this'?", that names the nearest; empty where none is near.

    Capitals and hyphens in front make no difference: the two of `--bogus` and `--loggers` bring these no nearer.
    """
    plain = {str(k).lstrip("-").lower(): str(k) for k in known}
    near = difflib.get_close_matches(str(name).lstrip("-").lower(), plain, n=1, cutoff=0.65)
    return f", did you mean {plain[near[0]]!r}?" if near else ""


def class_numbers(wanted: Iterable[str | int], names: Sequence[str], given: str = "--classes") -> list[int]:
    """Return the numbers of classes given by name or number.

    Raises ValueError, with what comes near, for one there is not; `given` says where it was given.
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
