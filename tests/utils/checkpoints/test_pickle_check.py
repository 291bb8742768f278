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
    """A text."""
    encoded = content.encode()
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def number(value: int) -> bytes:
    """A whole number of any size."""
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a%c" % len(content) + content


def called(name: str, *arguments: bytes) -> bytes:
    """A call of a function."""
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n".encode() + b"(" + b"".join(arguments) + b"tR"


TEN = storage(b"FloatStorage", b"X\x01\0\0\x000", b"K\x0a")  # ten numbers, of the 80 bytes that are there
HOOKS = called("collections.OrderedDict")
V2 = "torch._utils._rebuild_tensor_v2"


def sides(*values: int) -> bytes:
    """A size or stride."""
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
    "a tuple that doubles": HEAD + doubled(40) + b".",
    "a list that doubles": HEAD + doubled(40, b"]") + b".",
    "as a key": HEAD + b"}" + doubled(40) + b"Ns.",
    "one of several keys": HEAD + b"}(X\x01\0\0\0aN" + doubled(40) + b"Nu.",
    "in a set": HEAD + b"c__builtin__\nset\n](" + doubled(40) + b"e\x85R.",
    "as a key of an ordered mapping": HEAD + b"ccollections\nOrderedDict\n]](" + doubled(40) + b"Nea\x85R.",
    "called": HEAD + doubled(40) + b")R.",
    "left behind": HEAD + doubled(40) + b"q\x01N.",
    "left behind a mark": HEAD + doubled(40) + b"(N.",
    "as the key of numbers": HEAD + storage(b"FloatStorage", doubled(40), b"K\x01") + b".",
    "as the kind of numbers": HEAD + b"(X\x07\0\0\0storage" + doubled(40) + b"X\x01\0\0\0aNK\x01tQ.",
    "huge, as one of many keys": HEAD + b"}(" + b"".join(number((n << 61) - n) + b"N" for n in range(2, 1003)) + b"u.",
    "tuples, as many keys": HEAD + b"}(" + b"".join(number(n) + b"\x85N" for n in range(1001)) + b"u.",
    "a long tuple as a key": HEAD + b"}(" + b"N" * 17 + b"tNs.",
    "a list in a key": HEAD + b"}](K\1e\x85Ns.",
    "a list as a key": HEAD + b"}]Ns.",
    "a name as a key": HEAD + b"}ctorch\nfloat32\nNs.",
    "a text that is appended to": HEAD + text("a") + b"Na.",
    "a text with items": HEAD + text("a") + b"NNs.",
    "a tensor with items": HEAD + tensor(sides(2), sides(1)) + b"NNs.",
    "a tuple with several items": HEAD + b")(NNu.",
    "a tensor with a state": HEAD + tensor(sides(2), sides(1)) + b"}b.",
    "an ordered mapping with a list as state": HEAD + HOOKS + b"](K\1K\1\x86eb.",
    "a list with a state": HEAD + b"]}b.",
    "a number that is called": HEAD + b"K\1)R.",
    "a call with a list": HEAD + b"ccollections\nOrderedDict\n]R.",
    "a type that is called": HEAD + called("torch.float32") + b".",
    "numbers that are called": HEAD + called("torch.storage.UntypedStorage", number(1 << 40)) + b".",
    "an ordered mapping of pairs": HEAD + called("collections.OrderedDict", b"]") + b".",
    "a new storage": HEAD + b"ctorch.storage\nUntypedStorage\n" + number(1 << 40) + b"\x85\x81.",
    "a new number": HEAD + b"K\1)\x81.",
    "a set of a tuple": HEAD + called("builtins.set", b")") + b".",
    "a set of nothing": HEAD + called("builtins.set") + b".",
    "a complex text": HEAD + called("builtins.complex", text("1" * 9)) + b".",
    "a huge complex number": HEAD + called("builtins.complex", number(1 << 1999), b"K\0") + b".",
    "another codec": HEAD + called("_codecs.encode", text("a"), text("punycode")) + b".",
    "no codec": HEAD + called("_codecs.encode", text("a")) + b".",
    "bytes of no text": HEAD + called("_codecs.encode", b"]", text("latin1")) + b".",
    "a size of texts": HEAD + called("torch.Size", text("a") + b"\x85") + b".",
    "a size of a list": HEAD + called("torch.Size", b"]") + b".",
    "a size of too many sides": HEAD + called("torch.Size", sides(*range(65))) + b".",
    "a size below 0": HEAD + called("torch.Size", sides(-1)) + b".",
    "a size that says yes": HEAD + called("torch.Size", b"\x88\x85") + b".",
    "a long device": HEAD + called("torch.device", text("x" * 33)) + b".",
    "a device of no name": HEAD + called("torch.device", b"K\1") + b".",
    "a device of two names": HEAD + called("torch.device", text("cuda"), text("x" * 99)) + b".",
    "a tensor larger than its numbers": HEAD + tensor(sides(11), sides(1)) + b".",
    "a tensor that begins behind its numbers": HEAD + tensor(sides(1), sides(1), b"K\x0a") + b".",
    "an empty tensor that begins behind its numbers": HEAD + tensor(sides(0), sides(1), b"K\x0b") + b".",
    "a tensor of wide steps": HEAD + tensor(sides(2, 2), sides(9, 1)) + b".",
    "a tensor that begins before its numbers": HEAD + tensor(sides(1), sides(1), b"J\xff\xff\xff\xff") + b".",
    "a tensor that begins nowhere": HEAD + tensor(sides(1), sides(1), b"N") + b".",
    "a tensor of fewer steps": HEAD + tensor(sides(1, 1), sides(1)) + b".",
    "a tensor with negative steps": HEAD + tensor(sides(2), sides(-1)) + b".",
    "a tensor of no numbers": HEAD + called(V2, b"K\x0a", b"K\0", sides(1), sides(1), b"\x89", HOOKS) + b".",
    "a tensor with metadata": HEAD + tensor(sides(1), sides(1), more=b"\x89" + HOOKS + b"}") + b".",
    "a tensor that wants a text": HEAD + tensor(sides(1), sides(1), more=text("a") + HOOKS) + b".",
    "a tensor with a list of hooks": HEAD + tensor(sides(1), sides(1), more=b"\x89]") + b".",
    "a tensor with hooks": HEAD + tensor(sides(1), sides(1), more=b"\x89" + HOOKS + text("a") + b"Ns") + b".",
    "a parameter of no tensor": HEAD + called("torch._utils._rebuild_parameter", b"]", b"\x89", HOOKS) + b".",
    "a parameter that wants a text": HEAD
    + called("torch._utils._rebuild_parameter", tensor(sides(1), sides(1)), text("a"), HOOKS)
    + b".",
    "a parameter alone": HEAD + called("torch._utils._rebuild_parameter", tensor(sides(1), sides(1))) + b".",
    "numbers of an unknown width": HEAD + storage(b"float32", b"X\x01\0\0\x000", b"K\1") + b".",
    "numbers whose kind is a text": HEAD
    + b"("
    + text("storage")
    + text("FloatStorage")
    + text("0")
    + text("cpu")
    + b"K\1tQ.",
    "numbers whose key is a number": HEAD + storage(b"FloatStorage", b"K\0", b"K\1") + b".",
    "numbers in no place": HEAD + storage(b"FloatStorage", text("0"), b"K\1", place=b"]") + b".",
    "numbers without a count": HEAD + storage(b"FloatStorage", text("0"), b"N") + b".",
    "a count that says yes": HEAD + storage(b"FloatStorage", text("0"), b"\x88") + b".",
    "a view of numbers": HEAD + storage(b"FloatStorage", text("0"), b"K\1", view=b")") + b".",
    "numbers with two views": HEAD + storage(b"FloatStorage", text("0"), b"K\1", view=b"NN") + b".",
    "a text with a state": HEAD + text("collections.OrderedDict") + b"}b.",
    "a text that is called": HEAD + text("collections.OrderedDict") + b")R.",
    "one complex part": HEAD + called("builtins.complex", b"G" + bytes(8)) + b".",
    "three complex parts": HEAD + called("builtins.complex", *[b"G" + bytes(8)] * 3) + b".",
    "bytes of a name": HEAD + called("_codecs.encode", b"ctorch\nfloat32\n", text("latin1")) + b".",
    "a device of a type": HEAD + called("torch.device", b"ctorch\nfloat32\n") + b".",
    "a tensor that begins at yes": HEAD + tensor(sides(1), sides(1), b"\x88") + b".",
    "itself": HEAD + b"]q\x01h\x01a.",
    "without end": HEAD + b"]" * (MAX_LEVELS + 1) + b"a" * MAX_LEVELS + b".",
    "more numbers than the file": HEAD + storage(b"FloatStorage", b"X\x01\0\0\x000", b"J\xff\xff\xff\x7f") + b".",
    "fewer than none": HEAD + storage(b"FloatStorage", b"X\x01\0\0\x000", b"J\xff\xff\xff\xff") + b".",
    "numbers of another file": HEAD + storage(b"FloatStorage", b"X\x01\0\0\x009", b"K\x01") + b".",
    "numbers that are wider": HEAD + storage(b"DoubleStorage", b"X\x01\0\0\x000", b"K\x0b") + b".",
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    with pytest.raises(ValueError):
        check(REFUSED[case], sizes={"0": 80})


ALLOWED = {
    "as many tuples as there may be": HEAD + b"}(" + b"".join(number(n) + b"\x85N" for n in range(1000)) + b"u.",
    "a tuple of 16 as a key": HEAD + b"}(" + b"N" * 16 + b"tNs.",
    "no numbers": HEAD + storage(b"FloatStorage", text("0"), b"K\0") + b".",
    "a device of 32 letters": HEAD + called("torch.device", text("x" * 32)) + b".",
    "a few huge keys": HEAD + b"}" + b"".join(number((n << 61) - n) + b"Ns" for n in range(2, 900)) + b".",
    "many texts and numbers as keys": HEAD + b"}(" + b"".join(number(n) + b"N" for n in range(5000)) + b"u.",
    "largest plain keys": HEAD + b"}(" + b"".join(number((1 << 61) - 2 - n) + b"N" for n in range(1500)) + b"u.",
    "a key of texts": HEAD + b"}" + text("a") + text("b") + b"\x86Ns.",
    "True, None and a float as keys": HEAD + b"}(\x88NNNG?\xf0\0\0\0\0\0\0Nu.",
    "an ordered mapping": HEAD + HOOKS + text("a") + b"Ns}" + text("_metadata") + b"Nsb.",
    "a set": HEAD + called("__builtin__.set", b"](K\1K\2e") + b".",
    "a complex number": HEAD + called("builtins.complex", b"G" + bytes(8), b"G" + bytes(8)) + b".",
    "bytes": HEAD + called("_codecs.encode", text("\xe4"), text("latin1")) + b".",
    "a size": HEAD + called("torch.Size", sides(*range(64))) + b".",
    "devices": HEAD + called("torch.device", text("cpu")) + called("torch.device", text("cuda"), b"K\1") + b".",
    "a tensor": HEAD + tensor(sides(2, 5), sides(5, 1)) + b".",
    "the last number": HEAD + tensor(sides(1), sides(1), b"K\x09") + b".",
    "a tensor of one number": HEAD + tensor(b")", b")") + b".",
    "an empty tensor": HEAD + tensor(sides(0, 99), sides(99, 1), b"K\x0a") + b".",
    "an empty tensor of many rows": HEAD + tensor(sides(99, 0), sides(1, 1)) + b".",
    "an older tensor": HEAD + called("torch._utils._rebuild_tensor", TEN, b"K\0", sides(10), sides(1)) + b".",
    "a parameter": HEAD
    + called("torch._utils._rebuild_parameter", tensor(sides(1), sides(1)), b"\x88", HOOKS)
    + called("torch._utils._rebuild_parameter_with_state", tensor(sides(1), sides(1)), b"\x88", HOOKS, b"}")
    + b".",
    "numbers of an old file": HEAD + storage(b"FloatStorage", text("0"), b"K\1", view=b"N") + b".",
}


@pytest.mark.parametrize("case", ALLOWED)
def test_what_pytorch_writes_is_allowed(case: str) -> None:
    assert check(ALLOWED[case], sizes={"0": 80}) == len(ALLOWED[case])


def test_the_callers_own_classes_take_anything() -> None:
    program = HEAD + b"ca\nB\n(K\1](K\2eetR)b" + b"ca\nB\n)\x81}b."
    check(program.replace(b"(K\1](K\2eetR", b"(K\1tR"), allowed={"a.B"})
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
    one = storage(b"ByteStorage", text("a"), b"K\x32")
    check(HEAD + one + one + storage(b"ByteStorage", text("b"), b"K\x1e") + b".", room=80)
    with pytest.raises(ValueError, match="more than the file"):
        check(HEAD + one + storage(b"ByteStorage", text("b"), b"K\x1f") + b".", room=80)
    with pytest.raises(ValueError, match="more than the file"):
        check(HEAD + storage(b"ByteStorage", text("b"), b"K\x51") + b".", room=80)


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


@pytest.mark.timeout(60)
def test_what_is_shared_is_measured_once() -> None:
    check(HEAD + doubled(19) + b"q\1" + b"h\1" * 5000 + b".")


def test_programs_may_not_be_endless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_check, "MAX_STEPS", 100)
    check(HEAD + b"N" * 99 + b".")
    with pytest.raises(ValueError, match="more than 100 instructions"):
        check(HEAD + b"N" * 200 + b".")


def test_numbers_that_are_there() -> None:
    for kind, count in ((b"DoubleStorage", 10), (b"FloatStorage", 20), (b"HalfStorage", 40), (b"ByteStorage", 80)):
        for more in (0, 1):
            program = HEAD + storage(kind, b"X\x01\0\0\x000", b"K%c" % (count + more)) + b"."
            if more:
                with pytest.raises(ValueError, match="more than the file"):
                    check(program, sizes={"0": 80})
            else:
                check(program, sizes={"0": 80})
                check(program, room=80)


@pytest.mark.parametrize(
    "program, name",
    [
        (b"cos\nsystem\n.", "os.system"),
        (b"c__builtin__\neval\n.", "eval"),
        (b"cbuiltins\nbytearray\n.", "bytearray"),
        (b"ctorch\nTensor\n.", "torch.Tensor"),
        (b"ctorch\nFloatTensor\n.", "torch.FloatTensor"),
        (b"ctorch._tensor\n_rebuild_from_type_v2\n.", "torch._tensor._rebuild_from_type_v2"),
        (b"ctorch.hub\nload\n.", "torch.hub.load"),
        (b"ctorch\nQInt32Storage\n.", "torch.QInt32Storage"),
        (b"ctorch.storage\nTypedStorage\n.", "torch.storage.TypedStorage"),
    ],
)
def test_other_names_are_refused(program: bytes, name: str) -> None:
    with pytest.raises(pickle.UnpicklingError, match=f"GLOBAL {name}$"):
        check(HEAD + program)
    check(HEAD + program, allowed={program[1:-2].decode().replace("\n", ".")})


@pytest.mark.parametrize(
    "program", [b"R.", b"(.", b"t.", b"h\x07.", b"\x86.", b"s.", b"u.", b"P1\n.", b"\x93.", b"0.", b"Q."]
)
def test_programs_that_make_no_sense(program: bytes) -> None:
    if program == b"(.":
        check(HEAD + program)  # PyTorch says that nothing is left
        return
    with pytest.raises((pickle.UnpicklingError, LookupError)):
        check(HEAD + program)


@pytest.mark.parametrize("step", [b"P1\n", b"0", b"2", b"I1\n", b"S'a'\n", b"i0\na\n", b"\x8c\1a", b"\x95" + bytes(8)])
def test_instructions_that_pytorch_does_not_know(step: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError, match="unsupported instruction"):
        check(HEAD + step + b".")


def test_every_kind_of_number_is_allowed() -> None:
    for kind in (
        torch.float32,
        torch.bfloat16,
        torch.int8,
        torch.uint8,
        torch.bool,
        torch.complex64,
        torch.float8_e4m3fn,
    ):
        check(HEAD + b"c" + str(kind).replace(".", "\n").encode() + b"\n.")
    for count in (2, 3):
        check(HEAD + b"ctorch\nSize\n" + b"K\x02" * count + (b"\x86" if count == 2 else b"\x87") + b"\x85R.")
