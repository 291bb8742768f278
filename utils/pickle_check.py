"""Go through a pickle without building anything of it: what would it call, how large would it be?

`torch.load(weights_only=True)` runs no foreign code, but believes sizes: a few hundred bytes can ask it for all memory,
or for the hash of a tuple whose parts are shared 2^40 times. So the instructions are followed here first, with a
`_Value` in place of every object.
"""

from __future__ import annotations

import pickle
import pickletools
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, BinaryIO

MAX_STEPS = 2_000_000  # instructions; the largest training checkpoint of YOLOv5 has about 300,000
MAX_VALUES = 2_000_000  # objects, those that are shared counted wherever they are used
MAX_LEVELS = 300

_PLAIN = re.compile(
    r"torch\.(u?int\d+|b?float\w+|bool|half|double|long|complex\d+|\w+Storage|Size|device|storage\.\w+Storage)"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|parameter|parameter_with_state)|torch\.nn\.parameter\.Parameter"
    r"|collections\.OrderedDict|(builtins|__builtin__)\.(set|complex)|_codecs\.encode"
)
_WIDTHS = {
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    **dict.fromkeys(("FloatStorage", "IntStorage"), 4),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    "ComplexDoubleStorage": 16,
}
_LEAVES = {
    "NONE",
    "NEWTRUE",
    "NEWFALSE",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINSTRING",
}
_EMPTY = {"EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"}


class _Value:
    """What stands for an object: `plain` is a number, a text or the name of something global; `parts` what is in it."""

    __slots__ = ("is_key", "is_name", "measure", "parts", "plain")

    def __init__(self, parts: list[_Value], plain: Any = None, *, is_key: bool = False, is_name: bool = False) -> None:
        self.parts, self.plain, self.is_key, self.is_name = parts, plain, is_key, is_name
        self.measure: tuple[int, int] | None = None


def check_pickle(stream: BinaryIO, allowed: Collection[str], sizes: Mapping[str, int], room: int) -> None:
    """Follow one pickle to its end, where the stream is left.

    `allowed` are the names it may use besides those of tensors; `sizes` the bytes of each storage, `room` those of one
    that is not among them. Raises ValueError, or what pickle raises for a stream that makes no sense.
    """
    machine = _Machine(allowed, sizes, room)
    for step, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if step > MAX_STEPS:
            raise ValueError(f"more than {MAX_STEPS:,} instructions")
        if opcode.name not in machine.steps:
            raise pickle.UnpicklingError(f"unsupported instruction {opcode.name}")
        machine.steps[opcode.name](argument)
    for value in machine.everything():
        _measure(value, [0])


class _Machine:
    """The stack machine that a pickle is a program for, as far as PyTorch's checkpoints use it."""

    def __init__(self, allowed: Collection[str], sizes: Mapping[str, int], room: int) -> None:
        self.allowed, self.sizes, self.room = allowed, sizes, room
        self.stack: list[_Value] = []
        self.marks: list[list[_Value]] = []
        self.memo: dict[int, _Value] = {}
        self.steps = {
            **dict.fromkeys(_LEAVES, self.push_leaf),
            **dict.fromkeys(_EMPTY, lambda _: self.stack.append(_Value([]))),
            **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda place: self.stack.append(self.memo[place])),
            **dict.fromkeys(("BINPUT", "LONG_BINPUT"), self.keep),
            **dict.fromkeys(("APPEND", "BUILD"), lambda _: self.extend([self.stack.pop()])),
            **dict.fromkeys(("REDUCE", "NEWOBJ"), self.call),
            **dict.fromkeys(("PROTO", "STOP"), lambda _: None),
            "APPENDS": lambda _: self.extend(self.pop_mark()),
            "SETITEM": lambda _: self.set_items([self.stack.pop(-2), self.stack.pop()]),
            "SETITEMS": lambda _: self.set_items(self.pop_mark()),
            "MARK": self.mark,
            "TUPLE": lambda _: self.push(_Value(self.pop_mark())),
            "TUPLE1": lambda _: self.join(1),
            "TUPLE2": lambda _: self.join(2),
            "TUPLE3": lambda _: self.join(3),
            "GLOBAL": self.name_global,
            "BINPERSID": self.load_storage,
        }

    def push(self, value: _Value) -> None:
        """One more, on top."""
        self.stack.append(value)

    def push_leaf(self, plain: Any) -> None:
        """A number, a text, or what is as simple."""
        self.stack.append(_Value([], plain, is_key=True))

    def keep(self, place: int) -> None:
        """Remember the uppermost value, which stays."""
        self.memo[place] = self.stack[-1]

    def join(self, count: int) -> None:
        """A tuple of the uppermost values."""
        self.stack[-count:] = [_Value(self.last(count))]

    def last(self, count: int) -> list[_Value]:
        """The uppermost values, which stay."""
        if len(self.stack) < count:
            raise pickle.UnpicklingError("too few values")
        return self.stack[-count:]

    def mark(self, _: Any) -> None:
        """Begin a stack of its own."""
        self.marks.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[_Value]:
        """All since the mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def extend(self, parts: list[_Value]) -> None:
        """Put more into the uppermost value."""
        self.stack[-1].parts.extend(parts)

    def set_items(self, items: list[_Value]) -> None:
        """Keys and values in turn; PyTorch hashes a key as soon as it has it."""
        for key in items[::2]:
            _check_key(key)
        self.extend(items)

    def name_global(self, argument: str) -> None:
        """A class or function, by name only."""
        name = argument.replace(" ", ".", 1)
        if name not in self.allowed and not _PLAIN.fullmatch(name):
            raise pickle.UnpicklingError(f"GLOBAL {re.sub(r'^(__builtin__|builtins)[.]', '', name)}")
        self.stack.append(_Value([], name, is_name=True))

    def call(self, _: Any) -> None:
        """A function or class with a tuple of arguments; only sets make keys of them."""
        function, arguments = self.last(2)
        if not function.is_name:
            raise ValueError("a call of what is no function")
        for item in (item for part in arguments.parts for item in part.parts):
            if str(function.plain).endswith(".set"):
                _check_key(item)
            elif str(function.plain).endswith(".OrderedDict"):  # of pairs
                for key in item.parts[:1]:
                    _check_key(key)
        self.stack[-2:] = [_Value([function, arguments])]

    def load_storage(self, _: Any) -> None:
        """The numbers of a tensor: ("storage", kind, key, place, count, ...)."""
        told = self.stack.pop()
        parts = told.parts
        kind, key, count = str(parts[1].plain).rpartition(".")[2], str(parts[2].plain), parts[4].plain
        if not parts[1].is_name:
            raise ValueError("a storage of no kind")
        for part in (*parts[:1], *parts[2:]):
            _check_key(part)
        size = _WIDTHS.get(kind, 1) * count if isinstance(count, int) else -1
        if not 0 <= size <= self.sizes.get(key, self.room):
            raise ValueError(f"storage {key[:20]!r} is said to have {count} numbers, more than the file")
        self.stack.append(_Value([told]))

    def everything(self) -> Iterator[_Value]:
        """All values that there still are: PyTorch has made every one of them, used or not."""
        yield from self.stack
        for stack in self.marks:
            yield from stack
        yield from self.memo.values()


def _check_key(value: _Value) -> None:
    """Raise ValueError for what takes long to hash or to print: anything but text, numbers and tuples of these."""
    if not value.is_key and not all(part.is_key for part in value.parts):
        raise ValueError("a key, or a place of numbers, that is neither text nor a number")


def _measure(value: _Value, above: list[int]) -> tuple[int, int]:
    """(objects, levels) with what is shared counted each time; raises ValueError where that is too much or endless."""
    if value.measure is not None:
        return value.measure
    above[0] += 1
    if above[0] > MAX_LEVELS:
        raise ValueError("objects nested without end")
    objects, levels = 1, 1
    for part in value.parts:
        below, deep = _measure(part, above)
        objects, levels = objects + below, max(levels, deep + 1)
    if objects > MAX_VALUES or levels > MAX_LEVELS:
        raise ValueError(f"more than {MAX_VALUES:,} objects, or too deep, for what shares parts again and again")
    above[0] -= 1
    value.measure = objects, levels
    return value.measure
