"""Programs in pickles that would take all memory or all time are refused before anything of them is built."""

from __future__ import annotations

import collections
import io
import pathlib
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.checkpoints import pickle_check
from utils.checkpoints.checkpoint import load_checkpoint
from utils.checkpoints.pickle_check import MAX_LEVELS, check_pickle

HEAD = b"\x80\x02"


def check(program: bytes, allowed: set[str] | None = None, sizes: dict[str, int] | None = None, room: int = 0) -> int:
    """Follow a program; where the stream is left."""
    stream = io.BytesIO(program)
    check_pickle(stream, allowed or set(), sizes or {}, room)
    return stream.tell()


def doubled(levels: int, start: bytes = b")") -> bytes:
    """A tuple of a tuple twice, of a tuple twice ..."""
    return start + b"".join(b"q%ch%c\x86" % (n, n) for n in range(10, 10 + levels))


def storage(kind: bytes, key: bytes, count: bytes, place: bytes = b"X\x03\0\0\0cpu", view: bytes = b"") -> bytes:
    """The numbers of a tensor."""
    return b"(X\x07\0\0\0storagectorch\n" + kind + b"\n" + key + place + count + view + b"tQ"


def text(content: str) -> bytes:
    encoded = content.encode()
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def number(value: int) -> bytes:
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a%c" % len(content) + content


def called(name: str, *arguments: bytes) -> bytes:
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n".encode() + b"(" + b"".join(arguments) + b"tR"


TEN = storage(b"FloatStorage", b"X\x01\0\0\x000", b"K\x0a")  # ten numbers, of the 80 bytes that are there
HOOKS = called("collections.OrderedDict")
V2, PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"


def sides(*values: int) -> bytes:
    return b"(" + b"".join(number(value) for value in values) + b"t"


def tensor(size: bytes, stride: bytes, offset: bytes = b"K\0", more: bytes = b"\x89" + HOOKS) -> bytes:
    """A view of the ten numbers."""
    return called(V2, TEN, offset, size, stride, more)


def test_nothing_at_all() -> None:
    assert check(HEAD + b"N.") == 4
    with pytest.raises(ValueError, match="exhausted|no opcode"):
        check(b"")


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=3), inner)
        ),
        max_leaves=20,
    )
)
def test_what_python_pickles_is_followed_to_its_end(value: object) -> None:
    program = pickle.dumps(value, 2)
    assert check(program + b"more") == len(program)


REFUSED = {
    "a tuple that doubles": doubled(40), "a list that doubles": doubled(40, b"]"),
    "as a key": b"}" + doubled(40) + b"Ns", "one of several keys": b"}(X\x01\0\0\0aN" + doubled(40) + b"Nu",
    "in a set": b"c__builtin__\nset\n](" + doubled(40) + b"e\x85R",
    "as a key of an ordered mapping": b"ccollections\nOrderedDict\n]](" + doubled(40) + b"Nea\x85R",
    "called": doubled(40) + b")R", "left behind": doubled(40) + b"q\x01N", "left behind a mark": doubled(40) + b"(N",
    "as the key of numbers": storage(b"FloatStorage", doubled(40), b"K\x01"),
    "as the kind of numbers": b"(X\x07\0\0\0storage" + doubled(40) + b"X\x01\0\0\0aNK\x01tQ",
    "huge, as one of many keys": b"}(" + b"".join(number((n << 61) - n) + b"N" for n in range(2, 1003)) + b"u",
    "tuples, as many keys": b"}(" + b"".join(number(n) + b"\x85N" for n in range(1001)) + b"u",
    "a long tuple as a key": b"}(" + b"N" * 17 + b"tNs", "a list in a key": b"}](K\1e\x85Ns",
    "a list as a key": b"}]Ns", "a name as a key": b"}ctorch\nfloat32\nNs",
    "a text that is appended to": text("a") + b"Na", "a text with items": text("a") + b"NNs",
    "a tensor with items": tensor(sides(2), sides(1)) + b"NNs", "a tuple with several items": b")(NNu",
    "a tensor with a state": tensor(sides(2), sides(1)) + b"}b",
    "an ordered mapping with a list as state": HOOKS + b"](K\1K\1\x86eb", "a list with a state": b"]}b",
    "a number that is called": b"K\1)R", "a call with a list": b"ccollections\nOrderedDict\n]R",
    "a type that is called": called("torch.float32"),
    "numbers that are called": called("torch.storage.UntypedStorage", number(1 << 40)),
    "an ordered mapping of pairs": called("collections.OrderedDict", b"]"),
    "a new storage": b"ctorch.storage\nUntypedStorage\n" + number(1 << 40) + b"\x85\x81", "a new number": b"K\1)\x81",
    "a set of a tuple": called("builtins.set", b")"), "a set of nothing": called("builtins.set"),
    "a complex text": called("builtins.complex", text("1" * 9)),
    "a huge complex number": called("builtins.complex", number(1 << 1999), b"K\0"),
    "another codec": called("_codecs.encode", text("a"), text("punycode")),
    "no codec": called("_codecs.encode", text("a")), "bytes of no text": called("_codecs.encode", b"]", text("latin1")),
    "a size of texts": called("torch.Size", text("a") + b"\x85"), "a size of a list": called("torch.Size", b"]"),
    "a size of too many sides": called("torch.Size", sides(*range(65))),
    "a size below 0": called("torch.Size", sides(-1)), "a size that says yes": called("torch.Size", b"\x88\x85"),
    "a long device": called("torch.device", text("x" * 33)), "a device of no name": called("torch.device", b"K\1"),
    "a device of two names": called("torch.device", text("cuda"), text("x" * 99)),
    "a tensor larger than its numbers": tensor(sides(11), sides(1)),
    "a tensor that begins behind its numbers": tensor(sides(1), sides(1), b"K\x0a"),
    "an empty tensor that begins behind its numbers": tensor(sides(0), sides(1), b"K\x0b"),
    "a tensor of wide steps": tensor(sides(2, 2), sides(9, 1)),
    "a tensor that begins before its numbers": tensor(sides(1), sides(1), b"J\xff\xff\xff\xff"),
    "a tensor that begins nowhere": tensor(sides(1), sides(1), b"N"),
    "a tensor of fewer steps": tensor(sides(1, 1), sides(1)),
    "a tensor with negative steps": tensor(sides(2), sides(-1)),
    "a tensor of no numbers": called(V2, b"K\x0a", b"K\0", sides(1), sides(1), b"\x89", HOOKS),
    "a tensor with metadata": tensor(sides(1), sides(1), more=b"\x89" + HOOKS + b"}"),
    "a tensor that wants a text": tensor(sides(1), sides(1), more=text("a") + HOOKS),
    "a tensor with a list of hooks": tensor(sides(1), sides(1), more=b"\x89]"),
    "a tensor with hooks": tensor(sides(1), sides(1), more=b"\x89" + HOOKS + text("a") + b"Ns"),
    "a parameter of no tensor": called(PARAMETER, b"]", b"\x89", HOOKS),
    "a parameter that wants a text": called(PARAMETER, tensor(sides(1), sides(1)), text("a"), HOOKS),
    "a parameter alone": called(PARAMETER, tensor(sides(1), sides(1))),
    "numbers of an unknown width": storage(b"float32", b"X\x01\0\0\x000", b"K\1"),
    "numbers whose kind is a text": b"(" + b"".join(map(text, ("storage", "FloatStorage", "0", "cpu"))) + b"K\1tQ",
    "numbers whose key is a number": storage(b"FloatStorage", b"K\0", b"K\1"),
    "numbers in no place": storage(b"FloatStorage", text("0"), b"K\1", place=b"]"),
    "numbers without a count": storage(b"FloatStorage", text("0"), b"N"),
    "a count that says yes": storage(b"FloatStorage", text("0"), b"\x88"),
    "a view of numbers": storage(b"FloatStorage", text("0"), b"K\1", view=b")"),
    "numbers with two views": storage(b"FloatStorage", text("0"), b"K\1", view=b"NN"),
    "a text with a state": text("collections.OrderedDict") + b"}b",
    "a text that is called": text("collections.OrderedDict") + b")R",
    "one complex part": called("builtins.complex", b"G" + bytes(8)),
    "three complex parts": called("builtins.complex", *[b"G" + bytes(8)] * 3),
    "bytes of a name": called("_codecs.encode", b"ctorch\nfloat32\n", text("latin1")),
    "a device of a type": called("torch.device", b"ctorch\nfloat32\n"),
    "a tensor that begins at yes": tensor(sides(1), sides(1), b"\x88"), "itself": b"]q\x01h\x01a",
    "without end": b"]" * (MAX_LEVELS + 1) + b"a" * MAX_LEVELS,
    "more numbers than the file": storage(b"FloatStorage", b"X\x01\0\0\x000", b"J\xff\xff\xff\x7f"),
    "fewer than none": storage(b"FloatStorage", b"X\x01\0\0\x000", b"J\xff\xff\xff\xff"),
    "numbers of another file": storage(b"FloatStorage", b"X\x01\0\0\x009", b"K\x01"),
    "numbers that are wider": storage(b"DoubleStorage", b"X\x01\0\0\x000", b"K\x0b"),
}  # fmt: skip


@pytest.mark.timeout(30)
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    with pytest.raises(ValueError):
        check(HEAD + REFUSED[case] + b".", sizes={"0": 80})


ALLOWED = {
    "as many tuples as there may be": b"}(" + b"".join(number(n) + b"\x85N" for n in range(1000)) + b"u",
    "a tuple of 16 as a key": b"}(" + b"N" * 16 + b"tNs", "no numbers": storage(b"FloatStorage", text("0"), b"K\0"),
    "a device of 32 letters": called("torch.device", text("x" * 32)),
    "a few huge keys": b"}" + b"".join(number((n << 61) - n) + b"Ns" for n in range(2, 900)),
    "many texts and numbers as keys": b"}(" + b"".join(number(n) + b"N" for n in range(5000)) + b"u",
    "largest plain keys": b"}(" + b"".join(number((1 << 61) - 2 - n) + b"N" for n in range(1500)) + b"u",
    "what is shared, measured once": doubled(19) + b"q\1" + b"h\1" * 5000,
    "a key of texts": b"}" + text("a") + text("b") + b"\x86Ns",
    "True, None and a float as keys": b"}(\x88NNNG?\xf0\0\0\0\0\0\0Nu",
    "an ordered mapping": HOOKS + text("a") + b"Ns}" + text("_metadata") + b"Nsb",
    "a set": called("__builtin__.set", b"](K\1K\2e"),
    "a complex number": called("builtins.complex", b"G" + bytes(8), b"G" + bytes(8)),
    "bytes": called("_codecs.encode", text("\xe4"), text("latin1")), "a size": called("torch.Size", sides(*range(64))),
    "devices": called("torch.device", text("cpu")) + called("torch.device", text("cuda"), b"K\1"),
    "a tensor": tensor(sides(2, 5), sides(5, 1)), "the last number": tensor(sides(1), sides(1), b"K\x09"),
    "a tensor of one number": tensor(b")", b")"), "an empty tensor": tensor(sides(0, 99), sides(99, 1), b"K\x0a"),
    "an empty tensor of many rows": tensor(sides(99, 0), sides(1, 1)),
    "an older tensor": called("torch._utils._rebuild_tensor", TEN, b"K\0", sides(10), sides(1)),
    "a parameter": called(PARAMETER, tensor(sides(1), sides(1)), b"\x88", HOOKS),
    "its state": called(f"{PARAMETER}_with_state", tensor(sides(1), sides(1)), b"\x88", HOOKS, b"}"),
    "numbers of an old file": storage(b"FloatStorage", text("0"), b"K\1", view=b"N"),
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", ALLOWED)
def test_what_pytorch_writes_is_allowed(case: str) -> None:
    program = HEAD + ALLOWED[case] + b"."
    assert check(program, sizes={"0": 80}) == len(program)


def test_the_callers_own_classes_take_anything() -> None:
    program = HEAD + b"ca\nB\n(K\1tR)b" + b"ca\nB\n)\x81}b."
    check(program, allowed={"a.B"})
    with pytest.raises(pickle.UnpicklingError, match="GLOBAL a.B"):
        check(program)
    with pytest.raises(ValueError, match="a call of what is no function"):
        check(HEAD + text("a.B") + b")\x81.", allowed={"a.B"})


@pytest.mark.parametrize(
    "limit, programs",
    [
        ("MAX_BYTES", [called("_codecs.encode", text("a" * 100), text("latin1"))] * 2),
        ("MAX_VALUES", [called("builtins.set", b"](" + b"N" * 60 + b"e")] * 2),
        ("MAX_ODD_KEYS", [b"}(" + b"".join(number(n) + b"\x85N" for n in range(60)) + b"u"] * 2),
    ],
)
def test_limits_are_for_all_calls_together(monkeypatch: pytest.MonkeyPatch, limit: str, programs: list[bytes]) -> None:
    monkeypatch.setattr(pickle_check, limit, 100)
    check(HEAD + programs[0] + b".")
    with pytest.raises(ValueError, match="more than 100|too many items"):
        check(HEAD + b"".join(programs) + b".")


def test_numbers_of_an_old_file_are_all_from_it() -> None:
    one, other, another = (
        storage(b"ByteStorage", text(key), b"K%c" % n) for key, n in (("a", 50), ("b", 30), ("b", 31))
    )
    check(HEAD + one + one + other + b".", room=80)
    for programs in (one + another, storage(b"ByteStorage", text("b"), b"K\x51")):
        with pytest.raises(ValueError, match="more than the file"):
            check(HEAD + programs + b".", room=80)


def test_what_shares_parts_has_a_largest_size_and_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_check, "MAX_VALUES", 100)
    check(HEAD + b"](" + b"N" * 99 + b"e.")
    with pytest.raises(ValueError, match="more than 100 objects"):
        check(HEAD + b"](" + b"N" * 100 + b"e.")
    monkeypatch.undo()
    deep = b")" + b"\x85" * (MAX_LEVELS - 1)
    check(HEAD + deep + b".")
    with pytest.raises(ValueError, match="nested without end|too deep"):
        check(HEAD + deep + b"\x85.")
    half = b")" + b"\x85" * (MAX_LEVELS // 2)  # measured one after the other, from the inside
    with pytest.raises(ValueError, match="too deep"):
        check(HEAD + half + b"q\1h\1" + b"\x85" * (MAX_LEVELS - 10) + b".")


@pytest.mark.parametrize("legacy", [False, True])
def test_what_pytorch_saves_is_followed(tmp_path: pathlib.Path, legacy: bool) -> None:
    content = {
        "tensors": [torch.arange(6.0).reshape(2, 3).T, torch.ones(2, dtype=torch.bool), torch.tensor(1j)],
        "parameter": torch.nn.Parameter(torch.ones(2)), "set": {1, "a"}, "bytes": b"\xff\0", "size": torch.Size([2]),
        "complex": 1j, "device": torch.device("cpu"), "dtype": torch.float16, (1, "a"): collections.OrderedDict(a=1),
    }  # fmt: skip
    content["parameter"].mine = 3
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    found = load_checkpoint(tmp_path / "a.pt")
    assert found["bytes"] == b"\xff\0" and found["complex"] == 1j and found["size"] == (2,)
    assert torch.equal(found["tensors"][0], content["tensors"][0])


def test_programs_may_not_be_endless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_check, "MAX_STEPS", 100)
    check(HEAD + b"N" * 99 + b".")
    with pytest.raises(ValueError, match="more than 100 instructions"):
        check(HEAD + b"N" * 200 + b".")


@pytest.mark.parametrize("kind, count", [("Double", 10), ("Float", 20), ("Half", 40), ("Byte", 80)])
def test_numbers_that_are_there(kind: str, count: int) -> None:
    programs = [HEAD + storage(f"{kind}Storage".encode(), text("0"), b"K%c" % n) + b"." for n in (count, count + 1)]
    check(programs[0], sizes={"0": 80})
    check(programs[0], room=80)
    with pytest.raises(ValueError, match="more than the file"):
        check(programs[1], sizes={"0": 80})


FOREIGN = """
    os.system torch.Tensor torch.FloatTensor torch._tensor._rebuild_from_type_v2 torch.hub.load torch.QInt32Storage
    torch.storage.TypedStorage __builtin__.eval builtins.bytearray
"""


@pytest.mark.parametrize("name", FOREIGN.split())
def test_other_names_are_refused(name: str) -> None:
    module, _, function = name.rpartition(".")
    program = HEAD + f"c{module}\n{function}\n.".encode()
    with pytest.raises(
        pickle.UnpicklingError, match=f"GLOBAL {name.replace('__builtin__.', '').replace('builtins.', '')}$"
    ):
        check(program)
    check(program, allowed={name})


@pytest.mark.parametrize("program", [b"R", b"t", b"h\x07", b"\x86", b"s", b"u", b"P1\n", b"\x93", b"0", b"Q"])
def test_programs_that_make_no_sense(program: bytes) -> None:
    check(HEAD + b"(.")  # PyTorch says that nothing is left
    with pytest.raises((pickle.UnpicklingError, LookupError)):
        check(HEAD + program + b".")


@pytest.mark.parametrize("step", [b"P1\n", b"0", b"2", b"I1\n", b"S'a'\n", b"i0\na\n", b"\x8c\1a", b"\x95" + bytes(8)])
def test_instructions_that_pytorch_does_not_know(step: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError, match="unsupported instruction"):
        check(HEAD + step + b".")


def test_every_kind_of_number_is_allowed() -> None:
    for kind in "float32 bfloat16 int8 uint8 bool complex64 float8_e4m3fn".split():
        check(HEAD + f"ctorch\n{kind}\n.".encode())
    for count, tuple_of in ((2, b"\x86"), (3, b"\x87")):
        check(HEAD + b"ctorch\nSize\n" + b"K\x02" * count + tuple_of + b"\x85R.")
