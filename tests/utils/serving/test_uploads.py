from __future__ import annotations

import asyncio
import tempfile
from typing import Any

import pytest

from tests.served import EDGE, form, need_server

need_server()

from starlette.requests import Request  # noqa: E402 - only where it is installed

from utils.serving.limits import Gate, Limits, Refusal  # noqa: E402
from utils.serving.uploads import GONE, Body, read_files  # noqa: E402

LIMITS = Limits(upload=3_000_000, upload_seconds=0.2)
MULTIPART = f"multipart/form-data; boundary={EDGE}"


def body_of(chunks: list[bytes], pause: float = 0.0, ends: bool = True, **headers: str) -> Body:
    """A request whose body comes in these pieces; one that does not end breaks off."""
    left = list(chunks)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause)
        if left:
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left) or not ends}
        return {"type": "http.disconnect"}

    pairs = {"content-type": MULTIPART} | {name.replace("_", "-"): value for name, value in headers.items()}
    raw = [(name.encode(), value.encode()) for name, value in pairs.items()]
    return Body(Request({"type": "http", "method": "POST", "headers": raw}, receive), LIMITS)


def read(body: Body, fields: list[str] | None = None, most: int = 1, gate: Gate | None = None) -> list[bytes]:
    async def whole() -> list[bytes]:
        with (gate or Gate(1, 10**9)).let_in() as admission:
            return await read_files(body, admission, fields or ["image"], most)

    return asyncio.run(whole())


def refusal(body: Body, **options: Any) -> tuple[int, str]:
    with pytest.raises(Refusal) as refused:
        read(body, **options)
    return refused.value.status, refused.value.message


@pytest.mark.parametrize("content", [b"", form([])])
def test_nothing_came(content: bytes) -> None:
    assert refusal(body_of([content])) == (400, "no picture came; send a file in a field named image")


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_files_in_pieces_of_any_size(size: int) -> None:
    files = [b"one", b"", b"\r\n--" * 9, bytes(range(256))]
    content = form(files, "images")
    pieces = [content[i : i + size] for i in range(0, len(content), size)]
    assert read(body_of(pieces), ["images"], 4) == files


def test_nothing_is_written_to_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", lambda self: pytest.fail("written to disk"))
    large = bytes(2_900_000)
    assert read(body_of([form([large])])) == [large]


@pytest.mark.parametrize("kind", ["", "application/json", "multipart/mixed; boundary=x", "image/jpeg"])
def test_other_contents(kind: str) -> None:
    assert refusal(body_of([form([b"x"])], content_type=kind))[0] == 415


@pytest.mark.parametrize(
    "kind", ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=y"]
)
def test_boundaries_that_are_none(kind: str) -> None:
    status, message = refusal(body_of([form([b"x"])], content_type=kind))
    assert status == 400 and ("damaged" in message or "no picture" in message)


def test_fields_and_counts() -> None:
    assert refusal(body_of([form([b"x"], "file")])) == (400, "unknown field 'file'; send files in a field named image")
    assert refusal(body_of([form([b"x"] * 3)]), most=2)[0] == 400
    assert read(body_of([form([b"x"], "image")]), ["images", "image"]) == [b"x"]
    text = f'--{EDGE}\r\nContent-Disposition: form-data; name="image"\r\n\r\n/etc/passwd\r\n--{EDGE}--\r\n'
    assert "holds text" in refusal(body_of([text.encode()]))[1]


def test_a_length_that_is_too_large_is_believed() -> None:
    status, message = refusal(body_of([form([b"x"])], content_length="3000001"))
    assert status == 413 and "3,000,001 bytes; at most" in message


def test_a_body_that_is_too_large_is_noticed_on_the_way() -> None:
    content = form([bytes(4_000_000)])
    assert refusal(body_of([content[:2_000_000], content[2_000_000:]]))[0] == 413


def test_memory_of_all_together() -> None:
    gate = Gate(1, 100)
    assert refusal(body_of([form([bytes(200)])]), gate=gate)[0] == 503
    assert gate.held == 0


def test_an_upload_that_breaks_off() -> None:
    content = form([bytes(500)])
    assert refusal(body_of([content[:300]], ends=False)) == (400, "the upload broke off before its end")


def test_an_upload_that_takes_too_long() -> None:
    content = form([bytes(500)])
    status, message = refusal(body_of([content[i : i + 1] for i in range(len(content))], pause=0.01))
    assert (status, message) == (408, "the upload took longer than 0.2 s")


def test_the_rest_goes_by() -> None:
    async def whole(body: Body) -> bool:
        with pytest.raises(Refusal), Gate(1, 10**9).let_in() as admission:
            await read_files(body, admission, ["image"], 1)
        return await body.drained()

    assert asyncio.run(whole(body_of([b"x"] * 50, content_type="text/plain")))
    assert not asyncio.run(whole(body_of([b"x"] * 500, pause=0.01, content_type="text/plain")))


async def _slow(log: list[str]) -> str:
    try:
        await asyncio.sleep(0.05)
        log.append("done")
        return "answer"
    except asyncio.CancelledError:
        log.append("dropped")
        raise


def test_work_for_a_client_that_stays() -> None:
    async def whole() -> str:
        waiting = asyncio.Event()
        body = Body(Request({"type": "http", "method": "POST", "headers": []}, waiting.wait), LIMITS)
        return await body.unless_gone(_slow([]))

    assert asyncio.run(whole()) == "answer"


def test_work_for_a_client_that_is_gone_is_dropped() -> None:
    log: list[str] = []

    async def whole() -> None:
        body = body_of([form([b"x"])])
        with pytest.raises(Refusal) as refused:
            await body.unless_gone(_slow(log))
        assert refused.value.status == GONE
        await asyncio.sleep(0)

    asyncio.run(whole())
    assert log == ["dropped"]


def test_what_goes_wrong_in_the_work_is_raised_here() -> None:
    async def fail() -> None:
        raise KeyError("x")

    async def whole() -> None:
        body = Body(Request({"type": "http", "method": "POST", "headers": []}, asyncio.Event().wait), LIMITS)
        with pytest.raises(KeyError):
            await body.unless_gone(fail())

    asyncio.run(whole())
