"""Programs in pickles that would take all memory or all time are refused before anything of them is built."""

from __future__ import annotations

import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import pickle_check
from utils.pickle_check import MAX_LEVELS, check_pickle

HEAD = b"\x80\x02"


def check(program: bytes, allowed: set[str] | None = None, sizes: dict[str, int] | None = None, room: int = 0) -> int:
    """Follow a program; where the stream is left."""
    stream = io.BytesIO(program)
    check_pickle(stream, allowed or set(), sizes or {}, room)
    return stream.tell()


def doubled(levels: int, start: bytes = b")") -> bytes:
    """A tuple of a tuple twice, of a tuple twice ..."""
    return start + b"".join(b"q%ch%c\x86" % (n, n) for n in range(10, 10 + levels))


def storage(kind: bytes, key: bytes, count: bytes) -> bytes:
    """The numbers of a tensor."""
    return b"(X\x07\0\0\0storagectorch\n" + kind + b"\n" + key + b"X\x03\0\0\0cpu" + count + b"tQ"


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
    ("program", "name"),
    [
        (b"cos\nsystem\n.", "os.system"),
        (b"c__builtin__\neval\n.", "eval"),
        (b"cbuiltins\nbytearray\n.", "bytearray"),
        (b"ctorch\nTensor\n.", "torch.Tensor"),
        (b"ctorch\nFloatTensor\n.", "torch.FloatTensor"),
        (b"ctorch._tensor\n_rebuild_from_type_v2\n.", "torch._tensor._rebuild_from_type_v2"),
        (b"ctorch.hub\nload\n.", "torch.hub.load"),
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
