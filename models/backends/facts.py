"""What a file of weights tells about itself, and how that is written into it."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from utils.base.files import printable
from utils.base.paths import LARGEST_SIZE, usable_size

SMALLEST_STRIDE = 32  # pictures are padded to at least this, as in v6.1, even for a model that asks for less
NOTES = "yolov5.json"  # name of the entry in formats that keep named texts
PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True, slots=True)
class Facts:
    """What whoever runs the file has to know.

    names: the classes. stride: sides of pictures are multiples of it. imgsz: height and width that every picture has to
    have, None where any size goes. batch: pictures at a time, None where any number goes. letterbox: "fixed" (fit the
    picture into imgsz and pad it to that) or "dynamic" (pad it to multiples of the stride only). nms: the file returns
    detections, not candidates. precision: of its numbers. command: how it was made.
    unit: pixels that 1 stands for in the boxes it returns. trained: side in pixels of the images that the weights were
    trained on, 0 where it is not known.
    """

    names: tuple[str, ...] = ()
    stride: int = SMALLEST_STRIDE
    imgsz: tuple[int, int] | None = None
    batch: int | None = None
    nms: bool = False
    precision: str = "fp32"
    command: str = ""
    unit: int = 1
    trained: int = 0

    @property
    def letterbox(self) -> str:
        """How pictures are brought to size."""
        return "dynamic" if self.imgsz is None else "fixed"

    @property
    def nc(self) -> int:
        """Number of classes, 0 where they are not known."""
        return len(self.names)

    def as_dict(self) -> dict[str, Any]:
        """Builtins only, `letterbox` and `nc` among them; `shape` is what v6.1 looks for."""
        shape = [self.batch or 1, 3, *(self.imgsz or ())] if self.imgsz else None
        return asdict(self) | {
            "names": list(self.names),
            "imgsz": list(self.imgsz) if self.imgsz else None,
            "shape": shape,
            "letterbox": self.letterbox,
            "nc": self.nc,
        }

    def as_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.as_dict(), ensure_ascii=False)

    def as_strings(self) -> dict[str, str]:
        """Every fact as JSON under its own key, for formats that keep pairs of strings."""
        return {key: json.dumps(value, ensure_ascii=False) for key, value in self.as_dict().items()}


def read_facts(given: str | bytes | Mapping[str, Any], file: object) -> Facts:
    """Facts from JSON, or from a mapping whose values are JSON, Python literals or values.

    What v6.1 and later releases write (`shape`, `stride`, `names` as a list or mapping) is understood; keys of others
    are passed over. Raises ValueError naming the file for what is there and cannot be meant.
    """
    try:
        pairs = json.loads(given) if isinstance(given, (str, bytes)) else given
        found = {key: _value(value) for key, value in dict(pairs).items()}
        return _from_values(found)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        reason = printable(str(error))[:200]
        raise ValueError(f"{file}: its metadata cannot be read ({reason}); export it again") from error


def _value(text: Any) -> Any:
    """What a string stands for: JSON, a Python literal, or itself."""
    if not isinstance(text, str):
        return text
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return text


def _from_values(found: Mapping[str, Any]) -> Facts:
    names = found.get("names") or ()
    names = tuple(str(name) for name in (names.values() if isinstance(names, Mapping) else names))
    batch, imgsz = _sizes(found)
    stride = found.get("stride", SMALLEST_STRIDE)
    stride = max(stride) if isinstance(stride, Sequence) else stride
    facts = Facts(names, max(_bounded("stride", stride), SMALLEST_STRIDE), imgsz, batch)
    others = {item.name for item in fields(Facts)} - {"names", "stride", "imgsz", "batch"}
    given = {key: type(getattr(facts, key))(found[key]) for key in others if found.get(key) is not None}
    _bounded("unit", given.get("unit", 1), 1)
    return replace(facts, **given | {"trained": usable_size(given.get("trained"))})


def _sizes(found: Mapping[str, Any]) -> tuple[int | None, tuple[int, int] | None]:
    """Batch, and height and width, as we write them (`imgsz`) or as v6.1 does (`shape`); None where they are open."""
    if found.get("dynamic") is True:  # as later releases say it
        return None, None
    batch, imgsz = found.get("batch"), found.get("imgsz")
    if found.get("shape") and "imgsz" not in found:
        batch, _, *imgsz = found["shape"]
    if imgsz is not None:
        sides = [imgsz, imgsz] if isinstance(imgsz, int) else imgsz
        imgsz = tuple(_bounded("imgsz", side, 1) for side in sides)
        if len(imgsz) != 2:
            raise ValueError(f"imgsz {imgsz}")
    return None if batch is None else _bounded("batch", batch, 1), imgsz


def _bounded(name: str, value: Any, least: int = -LARGEST_SIZE) -> int:
    """A whole number as files state it, ValueError for one that nobody means: room is made for images of such sizes."""
    number = int(value)
    if not least <= number <= LARGEST_SIZE:
        raise ValueError(f"{name} {str(number)[:20]}")
    return number
