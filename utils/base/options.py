"""Options have one home: a slots dataclass is the flags, the defaults, the help text and the Python API.

`flag` declares an option, `parse` reads a command line, `parse_given` tells what really stands there, `options` takes
keyword arguments. What a value may be is said once, by the annotation, `choices` and `bounds`, and holds for both.
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch

from utils.base.files import printable
from utils.base.paths import shown as shown_path

T = TypeVar("T")
WANTED = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}
MOST_WHOLE = 2**63 - 1  # what a computer's own numbers hold
MOST_SHOWN = 60  # letters of a wrong value in a message


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
        words = f"above {least}" if self.above else f"at least {least}" if self.most == math.inf else f"from {least}"
        if self.most < math.inf:
            words += f"{' and at most' if self.above else ' to'} {self.most:.10g}"
        return words + "".join(f", or {value}" for value in self.also)


SHARE = Range(0, 1)


def flag(
    default: Any = MISSING,
    help: str = "",
    aliases: Sequence[str] = (),
    shown: str | None = None,
    bounds: Range | None = None,
    **extra: Any,
) -> Any:
    """A dataclass field that is also a command-line flag.

    `aliases` are further spellings; `shown` is what --help calls the default where its value would not explain itself,
    nothing if empty. `bounds` hold for every number of the option. `extra` goes to argparse (`nargs`, `const`,
    `choices`, `type`, `metavar`). Without a `type` the annotation decides; a bool that is False by default becomes a
    switch.
    """
    metadata = {"help": help, "aliases": tuple(aliases), "shown": shown, "bounds": bounds, "extra": extra}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def parse(kind: type[T], argv: Sequence[str] | None = None, description: str = "") -> T:
    """Read a command line into the dataclass `kind`.

    Underscores and hyphens in a flag's name are the same, and unique beginnings of a flag are enough
    (`--batch` for `--batch-size`), as in YOLOv5. An unknown flag, or a value of another kind, ends the program with
    status 2 and one line, which names the nearest flag. Raises ValueError for a number out of its bounds.
    """
    return options(kind, parse_given(kind, argv, description))


def parse_given(kind: type[Any], argv: Sequence[str] | None = None, description: str = "") -> dict[str, Any]:
    """Read a command line as `parse` does: only the options that stand there, by field name."""
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    hints = typing.get_type_hints(kind)
    for item in fields(kind):
        extra = dict(item.metadata.get("extra", {}))
        names = ["--" + item.name.replace("_", "-"), *item.metadata.get("aliases", ())]
        default = _default(item)
        inner, many = inner_type(hints[item.name])
        if inner is bool and "nargs" not in extra:
            extra["action"] = "store_true" if default is False else argparse.BooleanOptionalAction
        else:
            extra.setdefault("type", _reader(inner))
            if many:
                extra.setdefault("nargs", "+")
            extra.setdefault("metavar", item.name.upper() if not extra.get("choices") else None)
        text = _help(item.metadata, default)
        parser.add_argument(*names, dest=item.name, default=argparse.SUPPRESS, help=text, **extra)
    return vars(parser.parse_args(argv))


def _default(item: Field[Any]) -> Any:
    """What an option is where it is not given."""
    return item.default if item.default is not MISSING else item.default_factory()


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
    """The same dataclass from keyword arguments, each checked as on the command line.

    Text that is a number counts as one, a single value as a list of one, a path or a number as text; True and False
    stand for a flag without its value and for one left out. Raises ValueError for a name there is not, with the nearest
    one, and for a value that cannot be, with what is wanted.
    """
    known = {item.name: item for item in fields(kind)}
    for name in given:
        if name not in known:
            raise ValueError(f"unknown option {name!r}{nearest(name, known)}; there are: {', '.join(known)}")
    hints = typing.get_type_hints(kind)
    made = kind(**{name: _checked(known[name], hints[name], value) for name, value in given.items()})
    check_bounds(made)
    return made


def check_bounds(opt: Any) -> None:
    """Raise ValueError for the first number of an options object that is out of its bounds, or not finite."""
    for item in fields(opt):
        bounds, value = item.metadata["bounds"] or Range(), getattr(opt, item.name)
        for number in value if isinstance(value, list) else [value]:
            if type(number) in (int, float) and number not in bounds:
                wanted = f"must be {bounds}" if item.metadata["bounds"] else "must be finite"
                raise ValueError(f"--{item.name.replace('_', '-')} {number:.10g}: {wanted}")


def _checked(item: Field[Any], hint: Any, value: Any) -> Any:
    """A keyword argument as its option has it; ValueError for what the option cannot be."""
    extra, name = item.metadata["extra"], f"--{item.name.replace('_', '-')}"
    default = _default(item)
    inner, many = inner_type(hint)
    if value is None and not default:
        return default
    if isinstance(value, bool) and extra.get("nargs") == "?":
        return extra["const"] if value else default
    parts = _parts(value) if many else [value]
    if not parts and default:
        raise ValueError(f"{name}: is empty; give {WANTED[inner]}, or leave it out")
    found = [_checked_part(name, extra.get("type", inner), extra.get("choices"), part) for part in parts]
    return found if many else found[0]


def _parts(value: Any) -> list[Any]:
    """The values of an option that may have several."""
    value = value.tolist() if hasattr(value, "tolist") else value  # arrays
    return list(value) if isinstance(value, (list, tuple, range, set, frozenset)) else [value]


def _checked_part(name: str, kind: type[Any], choices: Sequence[Any] | None, value: Any) -> Any:
    """One value of the option `name`."""
    try:
        found = _READ[kind](value.item() if hasattr(value, "item") else value)  # single numbers of arrays
    except (ValueError, OverflowError):
        raise ValueError(f"{name} {_briefly(value)}: must be {WANTED[kind]}") from None
    if choices and found not in choices:
        raise ValueError(f"{name} {_briefly(found)}: choose one of {', '.join(choices)}{nearest(found, choices)}")
    return found


def _as_switch(value: Any) -> bool:
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise ValueError


def _as_text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float, os.PathLike, torch.device)):
        raise ValueError
    return str(value)


def _as_number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError
    return float(value)


def _as_whole(value: Any) -> int:
    number = int(value) if isinstance(value, (int, str)) else int(_as_number(value))
    if isinstance(value, bool) or abs(number) > MOST_WHOLE or (isinstance(value, float) and number != value):
        raise ValueError
    return number


_READ: dict[type[Any], Callable[[Any], Any]] = {bool: _as_switch, str: _as_text, float: _as_number, int: _as_whole}


def _reader(kind: type[Any]) -> Any:
    """What reads the words of a command line as `kind`."""

    def read(word: str) -> Any:
        try:
            return _READ[kind](word)
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(f"must be {WANTED[kind]}, not {_briefly(word)}") from None

    return read


def _briefly(value: Any) -> str:
    """A wrong value in a message: on one line, and not endless; in quotes where it is not a plain word."""
    is_word = not isinstance(value, str) or re.fullmatch(r"[\w.,/+-]+", value)
    text = " ".join(str(value).split()) if is_word else repr(value)
    return printable(text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}...")


class Parser(argparse.ArgumentParser):
    """argparse with `_` and `-` alike in flag names, and an error that names the nearest flag."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        """As argparse does, after writing every flag with hyphens."""
        words = list(sys.argv[1:] if args is None else args)
        words = [re.sub(r"^--[\w-]+", lambda m: m[0].replace("_", "-"), word) for word in words]
        found, unknown = self.parse_known_args(words, namespace)
        if unknown:
            flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
            near = nearest(unknown[0].split("=")[0], flags)
            self.error(f"unknown argument {printable(unknown[0])}{near}; see --help")
        return found

    def error(self, message: str) -> typing.NoReturn:
        """End the program with status 2 and the one line that helps."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


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
