"""Small changes that turn something valid into something that is nearly so."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from random import Random

NUMBERS = (
    *(0, 1, 2, 3, 5, 7, 64, 127, 128, 255, 256, 4096, 65535, 65536),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1),
)
WORDS = (
    *("", "0", "-1", "-0", "1e308", "-1e999", "nan", "inf", "-inf", "0x1F", "0b1", "1_0", "٣", "½", "1e-320"),
    *("9" * 400, "a" * 5000, "é" * 300, "2020-13-45", "1:2:3:4", "=1+1", "%00", "../../x", "..\\x", "C:\\x"),
    *("null", "true", "no", "~", "[]", "{}", "[[[[", "{{{{", "}]", "'", '"', "\\", "\0", "\n", "\r", "\t", "\x1b[31m"),
    *("/etc/passwd", "~root", "~nobody-here/x", "\u2028", "\ufeff", "😀", "图", "\ud800", "&a [*a]", "*a", "<<: *a"),
    *("!!python/object/apply:os.system ['true']", "!!binary x", "__import__('os').system('true')"),
    *("<!ENTITY a 'b'>", "&a;", "<![CDATA[", "</"),
)  # fmt: skip


def damaged(rng: Random, content: bytes) -> bytes:
    """The bytes with one to three things wrong with them."""
    for _ in range(rng.randrange(1, 4)):
        content = rng.choice(_DAMAGES)(rng, content)
    return content


def _place(rng: Random, content: bytes) -> int:
    return rng.randrange(len(content) + 1)


def _flipped(rng: Random, content: bytes) -> bytes:
    if not content:
        return content
    place, bit = rng.randrange(len(content)), 1 << rng.randrange(8)
    return content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]


def _without(rng: Random, content: bytes) -> bytes:
    start = _place(rng, content)
    return content[:start] + content[start + rng.randrange(1, 65) :]


def _number(rng: Random, content: bytes) -> bytes:
    """Some bytes replaced by a number at the edge of what they can hold."""
    form = rng.choice(("B", "<H", ">H", "<I", ">I", "<Q"))
    packed = struct.pack(form, rng.choice(NUMBERS) % (1 << 8 * struct.calcsize(form)))
    start = _place(rng, content)
    return content[:start] + packed + content[start + len(packed) :]


def _inserted(rng: Random, content: bytes) -> bytes:
    """A word, or some bytes of its own once more or very often."""
    start = _place(rng, content)
    word = rng.choice(WORDS).encode("utf-8", "surrogatepass")
    again = content[start : start + rng.randrange(1, 257)] * rng.choice((1, 2, 19))
    return content[:start] + rng.choice((word, again)) + content[start:]


_DAMAGES = (lambda rng, content: content[: _place(rng, content)], _flipped, _flipped, _without, _number, _number)
_DAMAGES += (_inserted, _inserted)


def odd_text(rng: Random, text: str, words: Sequence[str] = ()) -> bytes:
    """A text with some words or lines replaced, repeated or dropped; sometimes its bytes are damaged too."""
    lines = text.split("\n")
    for _ in range(rng.randrange(1, 5)):
        place = rng.randrange(len(lines))
        parts = lines[place].split(" ")
        where, change = rng.randrange(len(parts)), rng.randrange(6)
        if change <= 2:
            parts[where] = rng.choice((*words, *words, *WORDS))
        elif change == 3:
            parts[where:where] = [rng.choice(WORDS)] * rng.choice((1, 2, 30))
        elif change == 4:
            del parts[where]
        lines[place] = " ".join(parts)
        if change == 5:
            lines[place:place] = lines[place : place + 3] * rng.choice((1, 2, 20))
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    return damaged(rng, content) if rng.randrange(5) == 0 else content
