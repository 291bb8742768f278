"""Go through a pickle without building anything of it: what would it call, how large would it be?

`torch.load(weights_only=True)` runs no foreign code, but believes sizes: a few hundred bytes can ask it for all memory,
or for the hash of a tuple whose parts are shared 2^40 times. So the instructions are followed here first, with a
`_Value` in place of every object. What may be called, and what that costs at most:

    OrderedDict()                       nothing: it is filled like a dict
    set([...])                          a hash an item; no more items in all sets than MAX_VALUES
    complex(real, imaginary)            two floats
    _codecs.encode(text, "latin1")      how bytes are written; no more of them in all than MAX_BYTES
    torch.Size((...)), torch.device()   at most MAX_SIDES whole numbers; a short text and a number
    _rebuild_tensor, _v2                a view of numbers that are in the file, never more than these
    _rebuild_parameter, _with_state     the same tensor again, with its attributes
    a name that the caller allows       whatever the caller puts in its place

Keys of dicts and items of sets are texts and numbers, whose hashes nobody can choose. Of tuples and of integers above
61 bits, where one can, there may be a few.
"""

from __future__ import annotations

import pickle
import pickletools
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, BinaryIO

MAX_STEPS = 2_000_000  # instructions; the largest training checkpoint of YOLOv5 has about 300,000
MAX_VALUES = 2_000_000  # objects, those that are shared counted wherever they are used
MAX_LEVELS = 300
MAX_BYTES = 1 << 26  # in all calls of _codecs.encode
MAX_SIDES = 64  # dimensions of a tensor; PyTorch has as many
MAX_ODD_KEYS, MAX_KEY = 1000, 16  # keys whose hashes can be chosen; parts of a tuple that is one
MAX_DEVICE = 32  # characters of "cuda:0"

_WIDTHS = {  # bytes of a number; other kinds of storages are not read
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    **dict.fromkeys(("FloatStorage", "IntStorage"), 4),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys(("ByteStorage", "CharStorage", "BoolStorage", "UntypedStorage"), 1),
    "ComplexDoubleStorage": 16,
}
_PLAIN = re.compile(  # names that may stand in a pickle without being called
    r"torch\.(u?int\d+|b?float\w+|bool|half|double|long|complex\d+|storage\.UntypedStorage"
    rf"|{'|'.join(_WIDTHS)})"
)
_LEAVES = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING")
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_TUPLE": "tuple", "EMPTY_LIST": "list", "EMPTY_DICT": "dict", "EMPTY_SET": "set"}
_SCALARS = (bool, int, float, str, bytes, type(None))


class _Value:
    """What stands for an object: its kind, what is in it, and of a leaf, a name or a call what it is called.

    Kinds: leaf, name, call, storage, and tuple, list, dict, set.
    """

    __slots__ = ("kind", "measure", "parts", "plain")

    def __init__(self, kind: str, parts: list[_Value], plain: Any = None) -> None:
        self.kind, self.parts, self.plain = kind, parts, plain
        self.measure: tuple[int, int] | None = None

    def is_leaf(self, *types: type) -> bool:
        """Whether it is a number, text or the like of exactly one of these types."""
        return self.kind == "leaf" and type(self.plain) in types

    def integers(self) -> list[int]:
        """The numbers of a tuple that consists of a few whole numbers from 0 on; ValueError for anything else."""
        if self.kind != "tuple" or len(self.parts) > MAX_SIDES or not all(part.is_leaf(int) for part in self.parts):
            raise ValueError("a size that is no tuple of a few whole numbers")
        if any(part.plain < 0 for part in self.parts):
            raise ValueError("a size below 0")
        return [part.plain for part in self.parts]


def check_pickle(stream: BinaryIO, allowed: Collection[str], sizes: Mapping[str, int], room: int) -> None:
    """Follow one pickle to its end, where the stream is left.

    `allowed` are the names it may use besides those of tensors; `sizes` the bytes of each storage, `room` those of all
    together that are not among them. Raises ValueError, or what pickle raises for a stream that makes no sense.
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
        self.allowed, self.sizes, self.room = allowed, dict(sizes), room
        self.stack: list[_Value] = []
        self.marks: list[list[_Value]] = []
        self.memo: dict[int, _Value] = {}
        self.calls = _Calls()
        self.steps = {
            **dict.fromkeys(_LEAVES, lambda plain: self.push("leaf", [], plain)),
            **{name: lambda _, plain=plain: self.push("leaf", [], plain) for name, plain in _CONSTANTS.items()},
            **{name: lambda _, kind=kind: self.push(kind, []) for name, kind in _EMPTY.items()},
            **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda place: self.stack.append(self.memo[place])),
            **dict.fromkeys(("BINPUT", "LONG_BINPUT"), self.keep),
            **dict.fromkeys(("PROTO", "STOP"), lambda _: None),
            "APPEND": lambda _: self.extend([self.stack.pop()]),
            "APPENDS": lambda _: self.extend(self.pop_mark()),
            "BUILD": self.build,
            "REDUCE": self.call,
            "NEWOBJ": self.new,
            "SETITEM": lambda _: self.set_items([self.stack.pop(-2), self.stack.pop()]),
            "SETITEMS": lambda _: self.set_items(self.pop_mark()),
            "MARK": self.mark,
            "TUPLE": lambda _: self.push("tuple", self.pop_mark()),
            "TUPLE1": lambda _: self.join(1),
            "TUPLE2": lambda _: self.join(2),
            "TUPLE3": lambda _: self.join(3),
            "GLOBAL": self.name_global,
            "BINPERSID": self.load_storage,
        }

    def push(self, kind: str, parts: list[_Value], plain: Any = None) -> None:
        """One more, on top."""
        self.stack.append(_Value(kind, parts, plain))

    def keep(self, place: int) -> None:
        """Remember the uppermost value, which stays."""
        self.memo[place] = self.stack[-1]

    def join(self, count: int) -> None:
        """A tuple of the uppermost values."""
        self.stack[-count:] = [_Value("tuple", self.last(count))]

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
        """Put more into the uppermost value, a list."""
        if self.stack[-1].kind != "list":
            raise ValueError("something is appended to what is no list")
        self.stack[-1].parts.extend(parts)

    def set_items(self, items: list[_Value]) -> None:
        """Keys and values in turn; PyTorch hashes a key as soon as it has it."""
        target = self.stack[-1]
        if target.kind != "dict" and (target.kind, target.plain) != ("call", _ORDERED):
            raise ValueError("items for what is no mapping")
        for key in items[::2]:
            self.calls.check_key(key)
        target.parts.extend(items)

    def build(self, _: Any) -> None:
        """Give a state to the value below it: a mapping to an OrderedDict, anything to the caller's own objects."""
        target, state = self.last(2)
        if target.kind != "call" or (target.plain not in self.allowed and (target.plain, state.kind) != _STATEFUL):
            raise ValueError("a state for an object that PyTorch gives none")
        target.parts.append(self.stack.pop())

    def name_global(self, argument: str) -> None:
        """A class or function, by name only."""
        name = argument.replace(" ", ".", 1)
        if name not in self.allowed and name not in self.calls.checks and not _PLAIN.fullmatch(name):
            raise pickle.UnpicklingError(f"GLOBAL {re.sub(r'^(__builtin__|builtins)[.]', '', name)}")
        self.push("name", [], name)

    def call(self, _: Any) -> None:
        """A function or class with a tuple of arguments."""
        function, arguments = self.last(2)
        if function.kind != "name" or arguments.kind != "tuple":
            raise ValueError("a call of what is no function, or without arguments")
        if function.plain not in self.allowed:
            if function.plain not in self.calls.checks:
                raise ValueError(f"a call of {function.plain}")
            try:
                self.calls.checks[function.plain](*arguments.parts)
            except TypeError as error:
                raise ValueError(f"a call of {function.plain} with other arguments than PyTorch writes") from error
        self.stack[-2:] = [_Value("call", [function, arguments], function.plain)]

    def new(self, _: Any) -> None:
        """An object of a class that the caller allows; PyTorch's own are called."""
        function, arguments = self.last(2)
        if function.kind != "name" or function.plain not in self.allowed:
            raise ValueError("a new object of what is no class of a module")
        self.stack[-2:] = [_Value("call", [function, arguments], function.plain)]

    def load_storage(self, _: Any) -> None:
        """The numbers of a tensor: ("storage", kind, key, place, count), in old files with a view, which is none."""
        told = self.stack.pop()
        _, kind, key, place, count, *view = told.parts
        width = _WIDTHS.get(str(kind.plain).rpartition(".")[2]) if kind.kind == "name" else None
        if width is None or not key.is_leaf(str) or not place.is_leaf(str) or not count.is_leaf(int):
            raise ValueError("a storage of no kind that is read")
        if view and [part.plain for part in view if part.kind == "leaf"] != [None]:
            raise ValueError("a view of a storage, which PyTorch no longer writes")
        size = width * count.plain
        if key.plain not in self.sizes:
            self.sizes[key.plain] = self.room
            self.room -= size  # each is read once, all of them from one file
        if not 0 <= size <= self.sizes[key.plain]:
            raise ValueError(f"storage {key.plain[:20]!r} has to have {count.plain} numbers, more than the file")
        self.push("storage", [told], count.plain)

    def everything(self) -> Iterator[_Value]:
        """All values that there still are: PyTorch has made every one of them, used or not."""
        yield from self.stack
        for stack in self.marks:
            yield from stack
        yield from self.memo.values()


_ORDERED = "collections.OrderedDict"
_STATEFUL = (_ORDERED, "dict")


class _Calls:
    """What PyTorch itself may call; a check for each function takes its arguments, and raises for what is too much."""

    def __init__(self) -> None:
        self.bytes = self.items = self.odd_keys = 0
        rebuild = "torch._utils._rebuild_"
        self.checks: dict[str, Callable[..., None]] = {
            _ORDERED: lambda: None,
            **dict.fromkeys(("builtins.set", "__builtin__.set"), self.check_set),
            **dict.fromkeys(("builtins.complex", "__builtin__.complex"), self.check_complex),
            "_codecs.encode": self.check_encode,
            "torch.Size": lambda sides: sides.integers(),
            "torch.device": self.check_device,
            f"{rebuild}tensor": self.check_tensor,
            f"{rebuild}tensor_v2": self.check_tensor,
            f"{rebuild}parameter": self.check_parameter,
            f"{rebuild}parameter_with_state": self.check_parameter,
        }

    def check_key(self, value: _Value) -> None:
        """Raise ValueError for what takes long to hash, or has a hash that can be chosen, so that many are alike."""
        if value.is_leaf(*_SCALARS) and (type(value.plain) is not int or abs(value.plain) < (1 << 61) - 1):
            return
        parts = value.parts if value.kind == "tuple" else [value]
        if len(parts) > MAX_KEY or not all(part.is_leaf(*_SCALARS) for part in parts):
            raise ValueError("a key that is neither text nor a number")
        self.odd_keys += 1
        if self.odd_keys > MAX_ODD_KEYS:
            raise ValueError(f"more than {MAX_ODD_KEYS} keys that are tuples or huge numbers")

    def check_set(self, items: _Value) -> None:
        """A list of keys."""
        self.items += len(items.parts)
        if items.kind != "list" or self.items > MAX_VALUES:
            raise ValueError("a set of no list, or too many items in sets")
        for item in items.parts:
            self.check_key(item)

    def check_complex(self, *parts: _Value) -> None:
        """Two numbers."""
        if len(parts) != 2 or not all(part.is_leaf(float) for part in parts):
            raise ValueError("a complex number that is not two numbers")

    def check_encode(self, text: _Value, codec: _Value) -> None:
        """Bytes, as protocol 2 writes them; any other codec may take any time."""
        if not text.is_leaf(str) or codec.plain != "latin1":
            raise ValueError(f"an encoding other than latin1 ({str(codec.plain)[:20]})")
        self.bytes += len(text.plain)
        if self.bytes > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES:,} bytes")

    def check_device(self, name: _Value, *number: _Value) -> None:
        """A kind, and perhaps which one."""
        if not name.is_leaf(str) or len(name.plain) > MAX_DEVICE or not all(part.is_leaf(int) for part in number):
            raise ValueError("a device without a name")

    def check_tensor(self, storage: _Value, offset: _Value, size: _Value, stride: _Value, *more: _Value) -> None:
        """A view that ends within its storage: PyTorch enlarges a storage that is too small.

        `more` are whether it wants a gradient, and its hooks, which are never written.
        """
        if storage.kind != "storage" or not offset.is_leaf(int) or offset.plain < 0 or len(more) not in (0, 2):
            raise ValueError("a tensor without numbers")
        if offset.plain + _last_place(size.integers(), stride.integers()) >= storage.plain:
            raise ValueError("a tensor that is larger than its storage")
        if more and (not more[0].is_leaf(bool) or more[1].plain != _ORDERED or more[1].parts[2:]):
            raise ValueError("a tensor with hooks")

    def check_parameter(self, tensor: _Value, *more: _Value) -> None:
        """A tensor, whether it wants a gradient, its hooks, and perhaps its attributes."""
        if tensor.kind != "call" or not more or not more[0].is_leaf(bool):
            raise ValueError("a parameter that is no tensor")


def _last_place(sides: list[int], steps: list[int]) -> int:
    """The place of a tensor's last number, counted from its first; -1 where it has none."""
    return sum((side - 1) * step for side, step in zip(sides, steps, strict=True)) if all(sides) else -1


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
