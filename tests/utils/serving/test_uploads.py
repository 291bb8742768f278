from __future__ import annotations

import asyncio
import io
import tempfile
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.api.autoshape import load_image
from tests.hostile import COSTLY, USUAL, file_of, many_scans
from tests.served import EDGE, form, need_server

need_server()

from starlette.requests import Request  # noqa: E402

from utils.serving.uploads import FORMATS, GONE, Decoder, Gate, Limits, Refusal, drained, read_files, unless_gone  # noqa: E402

LIMITS = Limits(upload=3_000_000, upload_seconds=0.2)
MULTIPART = f"multipart/form-data; boundary={EDGE}"


def upload(chunks: list[bytes], pause: float = 0.0, ends: bool = True, **headers: str) -> Request:
    """A request whose body comes in these pieces; one that does not end breaks off."""
    left = list(chunks)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause)
        if left:
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left) or not ends}
        return {"type": "http.disconnect"}

    pairs = {"content-type": MULTIPART} | {name.replace("_", "-"): value for name, value in headers.items()}
    raw = [(name.encode(), value.encode()) for name, value in pairs.items()]
    return Request({"type": "http", "method": "POST", "headers": raw}, receive)


def read(request: Request, fields: list[str] | None = None, most: int = 1, gate: Gate | None = None) -> list[bytes]:
    async def whole() -> list[bytes]:
        with (gate or Gate(1, 10**9)).let_in() as hold:
            return await read_files(request, LIMITS, hold, fields or ["image"], most)

    return asyncio.run(whole())


def refusal(request: Request, **options: Any) -> tuple[int, str]:
    with pytest.raises(Refusal) as refused:
        read(request, **options)
    return refused.value.status, refused.value.message


TEXT = f'--{EDGE}\r\nContent-Disposition: form-data; name="image"\r\n\r\n/etc/passwd\r\n--{EDGE}--\r\n'.encode()
LONG = form([bytes(500)])
EMPTY = "no image came; send a file in a field named image"
FORM = "multipart/form-data"


@pytest.mark.parametrize("chunks, options, status, message", [
    ([b""], {}, 400, EMPTY),
    ([form([])], {}, 400, EMPTY),
    *[([LONG], {"content_type": kind}, 415, "send the image as") for kind in ("", "image/jpeg", "multipart/mixed")],
    *[([LONG], {"content_type": FORM + edge}, 400, "damaged") for edge in ("", "; boundary=", "; boundary=y")],
    ([form([b"x"], "file")], {}, 400, "unknown field 'file'; send files in a field named image"),
    ([form([b"x"] * 3)], {}, 400, "damaged"),
    ([TEXT], {}, 400, "field image holds text"),
    ([form([b"x"])], {"content_length": "3000001"}, 413, "the upload has 3,000,001 bytes; at most"),
    ([form([bytes(4_000_000)])[:2_000_000]] * 2, {}, 413, "more than 3,000,000 bytes"),
    ([LONG[:300]], {"ends": False}, 400, "the upload broke off before its end"),
    ([LONG[i : i + 1] for i in range(len(LONG))], {"pause": 0.01}, 408, "the upload took longer than 0.2 s"),
])  # fmt: skip
def test_uploads_that_are_refused(chunks: list[bytes], options: dict[str, Any], status: int, message: str) -> None:
    found, text = refusal(upload(chunks, **options), most=2)
    assert found == status and message in text


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_files_in_pieces_of_any_size_are_never_written_to_disk(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", lambda self: pytest.fail("written to disk"))
    large = bytes(2_900_000)
    assert read(upload([form([large])])) == [large]
    files = [b"one", b"", b"\r\n--" * 9, bytes(range(256))]
    content = form(files, "images")
    pieces = [content[i : i + size] for i in range(0, len(content), size)]
    assert read(upload(pieces), ["images", "image"], 4) == files


def test_the_rest_goes_by() -> None:
    async def whole(request: Request) -> bool:
        with pytest.raises(Refusal), Gate(1, 10**9).let_in() as hold:
            await read_files(request, LIMITS, hold, ["image"], 1)
        return await drained(request)

    assert asyncio.run(whole(upload([b"x"] * 50, content_type="text/plain")))
    assert not asyncio.run(whole(upload([b"x"] * 500, pause=0.01, content_type="text/plain")))


def test_work_for_clients_that_stay_and_for_those_that_are_gone() -> None:
    log: list[str] = []

    async def slow() -> str:
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            log.append("dropped")
            raise
        return "answer"

    async def fail() -> None:
        raise KeyError("x")

    async def whole() -> None:
        stays = Request({"type": "http", "method": "POST", "headers": []}, asyncio.Event().wait)
        with pytest.raises(KeyError):
            await unless_gone(stays, fail())
        assert await unless_gone(stays, slow()) == "answer" and not log
        with pytest.raises(Refusal) as refused:
            await unless_gone(upload([form([b"x"])]), slow())
        assert refused.value.status == GONE
        await asyncio.sleep(0)

    asyncio.run(whole())
    assert log == ["dropped"]


def test_the_gate_counts_requests_and_bytes() -> None:
    gate = Gate(2, 10)
    with gate.let_in() as one, gate.let_in() as other:
        with pytest.raises(Refusal, match="try again") as refused, gate.let_in():
            pass
        assert (refused.value.status, refused.value.retry_after) == (503, 1)
        one(6)
        other(4)
        assert refusal(upload([form([b"x"])]), gate=Gate(1, 9))[0] == 413  # it would never fit
        with pytest.raises(Refusal, match="too many uploads"):
            other(1)
        assert (gate.inside, gate.held) == (2, 10)
    assert (gate.inside, gate.held) == (0, 0)


# ---- images
DECODE = Decoder(lambda image: np.array(image.convert("RGB")), 10_000)
SERVER = Decoder(lambda image: load_image(image)[0], 50_000_000)  # as serve.py has it
SAME = ("jpeg_with_exif_and_comment", "mpo_of_two", "tiff_lzw", "webp_lossless", "bmp_of_runs")


def fail(image: Image.Image) -> np.ndarray:
    raise OSError("broken\n\x1b[31m" + "x" * 500)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format(kind: str) -> None:
    image = Image.linear_gradient("L").resize((40, 30)).convert("RGB")
    found = DECODE(file_of(image, kind))
    assert found.shape == (30, 40, 3) and found.dtype == np.uint8
    assert np.abs(found.astype(int) - np.asarray(image)).mean() < 4


@pytest.mark.parametrize("size, kind, status, message", [
    *[((101, 100), kind, 413, "101 x 100 pixels; at most 10,000") for kind in FORMATS],  # known before it is decoded
    *[((16, 16), kind, 415, "is no JPEG, PNG") for kind in ("PPM", "ICO", "TGA", "PCX", "DDS")],
    ((16, 16), "PNG", 400, "is damaged: broken"),
])  # fmt: skip
def test_images_that_are_refused(size: tuple[int, int], kind: str, status: int, message: str) -> None:
    with pytest.raises(Refusal, match=message) as refused:
        Decoder(fail, 10_000)(file_of(Image.new("RGB", size), kind))
    assert refused.value.status == status and refused.value.message.isprintable() and len(refused.value.message) < 150


def test_empty_files_sizes_that_cannot_be_and_endless_scans() -> None:
    cases = [(lambda: DECODE(b"", "image 3"), 400, "image 3 is an empty file")]
    cases += [(lambda: DECODE(many_scans(90, 101)), 413, "more than 100 scans")]
    for size, status in (((0, 5), 400), ((5, -1), 400), ((101, 100), 413)):
        cases.append((lambda size=size: DECODE.check_size("it", *size), status, "it is"))
    for refuse, status, message in cases:
        with pytest.raises(Refusal, match=message) as refused:
            refuse()
        assert refused.value.status == status
    DECODE.check_size("it", 100, 100)
    assert DECODE(many_scans(90, 99)).shape == (90, 90, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert SERVER(file_of(Image.new("RGB", (40, 30)), "WEBP", exif=exif)).shape == (40, 30, 3), "turned upright"


@pytest.mark.parametrize("name", COSTLY)
def test_costly_images_are_refused_before_they_cost_anything(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Pillow's help: its newer versions refuse some of these themselves."""
    data, refuse = COSTLY[name][1](), SERVER.measure
    if name == "png_with_greedy_exif_in_a_text":  # it is seen when the texts are unpacked
        refuse = SERVER
    else:
        monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("was opened"))
    start = time.process_time()
    with pytest.raises(Refusal) as refused:
        refuse(data)
    assert time.process_time() - start < 2
    assert refused.value.status in (400, 413, 415) and refused.value.message.isprintable()
    assert len(refused.value.message) < 200
    assert name != "tiff_of_one_huge_tile" or "1 tiles of 32,000 x 60,000 pixels" in refused.value.message


@pytest.mark.parametrize("name", USUAL)
def test_unusual_images_are_taken(name: str) -> None:
    (width, height), make = USUAL[name]
    data, few = make(), Decoder(SERVER.read, 4_000_000)
    assert SERVER.measure(data).work <= SERVER.most_work
    if width * height <= few.pixels:  # tables, for instance, that a format needs whatever the image, are no reason
        assert few.measure(data).work <= few.most_work
    if width * height < 10_000_000:  # the others take their time
        found = SERVER(data)
        assert found.shape == (height, width, 3)
        assert name not in SAME or (found == np.array(Image.open(io.BytesIO(data)).convert("RGB"))).all()
