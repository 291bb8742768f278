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
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import chain
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
_ORDERED = "collections.OrderedDict"
_STATEFUL = (_ORDERED, "dict")


@dataclass(slots=True, eq=False)
class _Value:
    """What stands for an object: its kind, what is in it, and of a leaf, a name or a call what it is called.

    Kinds: leaf, name, call, storage, and tuple, list, dict, set.
    """

    kind: str
    parts: list[_Value]
    plain: Any = None
    measure: tuple[int, int] | None = None

    def is_leaf(self, *types: type) -> bool:
        """Return whether it is a number, text or the like of exactly one of these types."""
        return self.kind == "leaf" and type(self.plain) in types

    def integers(self) -> list[int]:
        """Return the numbers of a tuple of a few whole numbers from 0 on. Raises ValueError for anything else."""
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
    for value in chain(machine.stack, *machine.marks, machine.memo.values()):  # PyTorch has made them all, used or not
        _measure(value, [0])


def _measure(value: _Value, above: list[int]) -> tuple[int, int]:
    """Return (objects, levels), shared ones counted each time. Raises ValueError for too much or without end."""
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


class _Machine:
    """The stack machine that a pickle is a program for, as far as PyTorch's checkpoints use it.

    `steps` has a function for each instruction, `checks` one for each function that PyTorch itself may call, which
    takes its arguments and returns False, or raises ValueError, for what PyTorch does not write or what is too much.
    """

    def __init__(self, allowed: Collection[str], sizes: Mapping[str, int], room: int) -> None:
        self.allowed, self.sizes, self.room = allowed, dict(sizes), room
        self.stack: list[_Value] = []
        self.marks: list[list[_Value]] = []
        self.memo: dict[int, _Value] = {}
        self.bytes = self.items = self.odd_keys = 0
        stack, rebuild = self.push, "torch._utils._rebuild_"
        self.steps: dict[str, Any] = {
            **dict.fromkeys(_LEAVES, lambda plain: stack("leaf", [], plain)),
            **{name: lambda _, plain=plain: stack("leaf", [], plain) for name, plain in _CONSTANTS.items()},
            **{name: lambda _, kind=kind: stack(kind, []) for name, kind in _EMPTY.items()},
            **{f"TUPLE{n}": lambda _, n=n: stack("tuple", self.pop(n)) for n in (1, 2, 3)},
            **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda place: self.stack.append(self.memo[place])),
            **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda place: self.memo.update({place: self.stack[-1]})),
            **dict.fromkeys(("PROTO", "STOP"), lambda _: None),
            "MARK": self.mark,
            "TUPLE": lambda _: stack("tuple", self.pop_mark()),
            "APPEND": lambda _: self.fill(self.pop(1), is_list=True),
            "APPENDS": lambda _: self.fill(self.pop_mark(), is_list=True),
            "SETITEM": lambda _: self.fill(self.pop(2), is_list=False),
            "SETITEMS": lambda _: self.fill(self.pop_mark(), is_list=False),
            "BUILD": lambda _: self.build(*self.pop(2)),
            "REDUCE": lambda _: self.call(*self.pop(2), new=False),
            "NEWOBJ": lambda _: self.call(*self.pop(2), new=True),
            "GLOBAL": self.name_global,
            "BINPERSID": lambda _: self.load_storage(*self.pop(1)),
        }
        self.checks: dict[str, Callable[..., object]] = {
            _ORDERED: lambda: None,
            **dict.fromkeys(("builtins.set", "__builtin__.set"), self.check_set),
            **dict.fromkeys(
                ("builtins.complex", "__builtin__.complex"),
                lambda *parts: [part.is_leaf(float) for part in parts] == [True, True],
            ),
            "_codecs.encode": self.check_encode,
            "torch.Size": lambda sides: sides.integers(),
            "torch.device": lambda name, *number: (
                name.is_leaf(str) and len(name.plain) <= MAX_DEVICE and all(part.is_leaf(int) for part in number)
            ),
            **dict.fromkeys((f"{rebuild}tensor", f"{rebuild}tensor_v2"), self.check_tensor),
            **dict.fromkeys(  # a tensor, whether it wants a gradient, its hooks, and perhaps its attributes
                (f"{rebuild}parameter", f"{rebuild}parameter_with_state"),
                lambda tensor, wanted, *_: tensor.kind == "call" and wanted.is_leaf(bool),
            ),
        }

    # ---- instructions
    def push(self, kind: str, parts: list[_Value], plain: Any = None) -> None:
        """Put one more on top."""
        self.stack.append(_Value(kind, parts, plain))

    def pop(self, count: int) -> list[_Value]:
        """Take the uppermost values."""
        if len(self.stack) < count:
            raise pickle.UnpicklingError("too few values")
        taken, self.stack[-count:] = self.stack[-count:], []
        return taken

    def mark(self, _: Any) -> None:
        """Begin a stack of its own."""
        self.marks.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[_Value]:
        """Take all since the mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def fill(self, items: list[_Value], is_list: bool) -> None:
        """Put items into a list, or keys and values in turn into a mapping, where PyTorch hashes each key at once."""
        target = self.stack[-1]
        is_mapping = target.kind == "dict" or (target.kind, target.plain) == ("call", _ORDERED)
        if not (target.kind == "list" if is_list else is_mapping):
            raise ValueError("items for what is no list or no mapping")
        for key in () if is_list else items[::2]:
            self.check_key(key)
        target.parts.extend(items)

    def build(self, target: _Value, state: _Value) -> None:
        """Give a state to an object: a mapping to an OrderedDict, anything to the caller's own objects."""
        if target.kind != "call" or (target.plain not in self.allowed and (target.plain, state.kind) != _STATEFUL):
            raise ValueError("a state for an object that PyTorch gives none")
        target.parts.append(state)
        self.stack.append(target)

    def name_global(self, argument: str) -> None:
        """Take a class or function, by name only."""
        name = argument.replace(" ", ".", 1)
        if name not in self.allowed and name not in self.checks and not _PLAIN.fullmatch(name):
            raise pickle.UnpicklingError(f"GLOBAL {re.sub(r'^(__builtin__|builtins)[.]', '', name)}")
        self.push("name", [], name)

    def call(self, function: _Value, arguments: _Value, *, new: bool) -> None:
        """Call a function or class with a tuple of arguments, or make a `new` object of a class the caller allows."""
        if function.kind != "name" or (arguments.kind != "tuple" and not new):
            raise ValueError("a call of what is no function, or without arguments")
        if function.plain not in self.allowed:
            if new or function.plain not in self.checks:
                raise ValueError(f"a call of {function.plain}")
            try:
                is_known = self.checks[function.plain](*arguments.parts) is not False
            except TypeError:
                is_known = False
            if not is_known:
                raise ValueError(f"a call of {function.plain} with other arguments than PyTorch writes")
        self.push("call", [function, arguments], function.plain)

    def load_storage(self, given: _Value) -> None:
        """Take a tensor's numbers: ("storage", kind, key, place, count), in old files with a view, which is none."""
        _, kind, key, place, count, *view = given.parts
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
        self.push("storage", [given], count.plain)

    # ---- functions that may be called
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

    def check_encode(self, text: _Value, codec: _Value) -> None:
        """Bytes, as protocol 2 writes them; any other codec may take any time."""
        if not text.is_leaf(str) or codec.plain != "latin1":
            raise ValueError(f"an encoding other than latin1 ({str(codec.plain)[:20]})")
        self.bytes += len(text.plain)
        if self.bytes > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES:,} bytes")

    def check_tensor(self, storage: _Value, offset: _Value, size: _Value, stride: _Value, *more: _Value) -> None:
        """A view that ends within its storage: PyTorch enlarges a storage that is too small.

        `more` are whether it wants a gradient, and its hooks, which are never written.
        """
        if storage.kind != "storage" or not offset.is_leaf(int) or offset.plain < 0:
            raise ValueError("a tensor without numbers")
        sides, steps = size.integers(), stride.integers()
        last = sum((side - 1) * step for side, step in zip(sides, steps, strict=True)) if all(sides) else -1
        if offset.plain + last >= storage.plain:
            raise ValueError("a tensor that is larger than its storage")
        if more and (
            len(more) != 2 or not more[0].is_leaf(bool) or (more[1].plain, more[1].parts[2:]) != (_ORDERED, [])
        ):
            raise ValueError("a tensor with hooks")
