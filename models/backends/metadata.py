"""What a file of weights says about itself, and how that is written into it, or beside it."""

from __future__ import annotations

import ast
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from utils.base.files import printable
from utils.base.paths import LARGEST_SIZE, usable_size

SMALLEST_STRIDE = 32  # images are padded to at least this, as in v6.1, even for a model that asks for less
NOTES = "yolov5.json"  # name of the entry in formats that keep named texts
PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True, slots=True)
class Metadata:
    """What whoever runs the file has to know.

    names: the classes. stride: sides of images are multiples of it. imgsz: height and width that every image has to
    have, None where any size goes. batch: images at a time, None where any number goes. nms: the file returns
    detections, not candidates. precision: of its numbers. command: how it was made. unit: pixels that 1 stands for in
    the boxes it returns. trained: side in pixels of the images that the weights were trained on, 0 if unknown.
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

    def as_dict(self) -> dict[str, Any]:
        """Builtins only. `shape` is what v6.1 looks for.

        `letterbox` is "fixed" (fit the image into imgsz and pad it to that) or "dynamic" (to multiples of the stride).
        """
        return asdict(self) | {
            "names": list(self.names),
            "imgsz": list(self.imgsz) if self.imgsz else None,
            "shape": [self.batch or 1, 3, *self.imgsz] if self.imgsz else None,
            "letterbox": "fixed" if self.imgsz else "dynamic",
            "nc": len(self.names),
        }

    def as_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.as_dict(), ensure_ascii=False)

    def as_strings(self) -> dict[str, str]:
        """Every entry as JSON under its own key, for formats that keep pairs of strings."""
        return {key: json.dumps(value, ensure_ascii=False) for key, value in self.as_dict().items()}


def read_metadata(given: str | bytes | Mapping[str, Any], file: object) -> Metadata:
    """Metadata from JSON, or from a mapping whose values are JSON, Python literals or values.

    What v6.1 and later releases write (`shape`, `stride`, `names` as a list or mapping) is understood; keys of others
    are passed over. Raises ValueError naming the file for what is there and cannot be meant.
    """
    try:
        pairs = json.loads(given) if isinstance(given, (str, bytes)) else given
        found = {key: _value(value) for key, value in dict(pairs).items()}
        names = found.get("names") or ()
        names = tuple(str(name) for name in (names.values() if isinstance(names, Mapping) else names))
        batch, imgsz = _sizes(found)
        stride = found.get("stride", SMALLEST_STRIDE)
        stride = _bounded("stride", max(stride) if isinstance(stride, Sequence) else stride)
        metadata = Metadata(names, max(stride, SMALLEST_STRIDE), imgsz, batch)
        others = {item.name for item in fields(Metadata)} - {"names", "stride", "imgsz", "batch"}
        given = {key: type(getattr(metadata, key))(found[key]) for key in others if found.get(key) is not None}
        _bounded("unit", given.get("unit", 1), 1)
        return replace(metadata, **given | {"trained": usable_size(given.get("trained"))})
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        reason = printable(str(error))[:200]
        raise ValueError(f"{file}: its metadata cannot be read ({reason}); export it again") from error


def _value(text: Any) -> Any:
    """What a string stands for: JSON, a Python literal, or itself."""
    for read in (json.loads, ast.literal_eval) if isinstance(text, str) else ():
        try:
            return read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return text


def _sizes(found: Mapping[str, Any]) -> tuple[int | None, tuple[int, int] | None]:
    """Batch, and height and width, as we write them (`imgsz`) or as v6.1 does (`shape`); None where they are open."""
    if found.get("dynamic") is True:  # as later releases say it
        return None, None
    batch, imgsz = found.get("batch"), found.get("imgsz")
    if found.get("shape") and "imgsz" not in found:
        batch, _, *imgsz = found["shape"]
    batch = None if batch is None else _bounded("batch", batch, 1)
    if imgsz is None:
        return batch, None
    height, width = [imgsz, imgsz] if isinstance(imgsz, int) else imgsz
    return batch, (_bounded("imgsz", height, 1), _bounded("imgsz", width, 1))


def _bounded(name: str, value: Any, least: int = -LARGEST_SIZE) -> int:
    """A whole number as files state it, ValueError for one that nobody means: room is made for images of such sizes."""
    number = int(value)
    if not least <= number <= LARGEST_SIZE:
        raise ValueError(f"{name} {str(number)[:20]}")
    return number


def with_shape(metadata: Metadata, shape: Sequence[Any], file: object) -> Metadata:
    """The metadata with the batch and image size that the file's own input asks for, whatever else is written there.

    Raises ValueError, naming the file, for an input that is no image, or larger than any that room is made for.
    """
    sides = [side if isinstance(side, int) and side > 0 else None for side in shape]
    if len(sides) != 4 or sides[1] not in (3, None) or max(filter(None, sides), default=0) > LARGEST_SIZE:
        found = printable(" x ".join(map(str, shape)))[:80]
        raise ValueError(f"{file}: its input is {found or 'missing'}, not images of 3 colours; export it again")
    batch, _, height, width = sides
    return replace(metadata, batch=batch, imgsz=(height, width) if height and width else None)


def keep_metadata(file: Path, metadata: Metadata) -> None:
    """Write metadata into a model's folder, into an archive at the end of a .tflite file, or beside another file."""
    if file.suffix.lower() == ".tflite":  # where such files keep what is not the model
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr(NOTES, metadata.as_json())
    else:
        place = file / NOTES if file.is_dir() else file.with_name(f"{file.name}.json")
        place.write_text(json.dumps(metadata.as_dict(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def kept_metadata(file: Path) -> Metadata:
    """Read what `keep_metadata` wrote. Raises ValueError where it is missing or damaged."""
    if file.suffix.lower() != ".tflite":
        place = file / NOTES if file.is_dir() else file.with_name(f"{file.name}.json")
        if not place.is_file():
            raise ValueError(f"{file}: {place.name}, which says its classes and sizes, is missing; copy it along")
        return read_metadata(place.read_bytes(), place)
    try:
        with zipfile.ZipFile(file) as archive:
            return read_metadata(archive.read(NOTES), file)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(
            f"{file}: does not tell its classes and sizes; export it again, from the .pt weights if it is v6.1's"
        ) from error
    except (zlib.error, OSError, EOFError) as error:
        raise ValueError(f"{file}: its metadata cannot be read ({error}); export it again") from error
