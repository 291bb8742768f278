"""The server's page in a browser: what people click, and what they see then."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lively import NAMES, write_lively
from tests.served import TINY, detections, need_server, running, some_image

need_server()
playwright = pytest.importorskip(
    "playwright.sync_api", reason="the page is tested in a browser: pip install playwright", exc_type=ImportError
)
BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
if BROWSER is None:
    pytest.skip("the page is tested in a browser: install chromium", allow_module_level=True)

QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
FAKE_CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
WIDTHS = {"phone": 375, "desk": 1280}
FILE = some_image(200, 240, seed=11)
DROP = """([bytes, kind, event]) => {
    const files = new DataTransfer();
    files.items.add(new File([new Uint8Array(bytes)], "dropped.png", { type: kind }));
    const name = event === "paste" ? "clipboardData" : "dataTransfer";
    document.dispatchEvent(Object.assign(new Event(event, { bubbles: true, cancelable: true }), { [name]: files }));
}"""


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    weights = write_lively(tmp_path_factory.mktemp("served") / "tiny.pt", TINY)
    with running(weights, max_upload=1.0) as number:
        yield number


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as one:
        flags = ["--no-sandbox", "--disable-gpu", *QUIET, *FAKE_CAMERA]
        chromium = one.chromium.launch(executable_path=BROWSER, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any, port: int) -> Iterator[Callable[..., Any]]:
    """Open the page as a browser of some language and width; at the end no script has failed."""
    contexts, failures = [], []

    def go(language: str = "en-GB", width: int = 1280, **options: Any) -> Any:
        context = browser.new_context(locale=language, viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(8000)
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.on("request", lambda request: failures.append(request.url) if is_foreign(request.url) else None)
        page.goto(f"http://127.0.0.1:{port}/")
        until(page, "state.model !== null")
        return page

    def is_foreign(url: str) -> bool:
        return not url.startswith((f"http://127.0.0.1:{port}/", "blob:", "data:"))

    yield go
    for context in contexts:
        context.close()
    assert not failures


def until(page: Any, condition: str) -> None:
    """Wait for a condition. The page's policy forbids the browser's own way to do so, which evaluates strings."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(25)
    raise AssertionError(f"never came true: {condition}")


def upload(page: Any, content: bytes = FILE, name: str = "photo.png", kind: str = "image/png") -> None:
    page.set_input_files("#file", files=[{"name": name, "mimeType": kind, "buffer": content}])


def seen(page: Any) -> Any:
    """Wait for an image's boxes."""
    page.wait_for_selector("#canvas:not([hidden])")
    return page


def count(page: Any) -> int:
    return page.evaluate("state.shown.length")


def slide(page: Any, slider: str, value: float) -> None:
    """As a hand on the slider does it."""
    page.eval_on_selector(slider, "(node, to) => { node.value = to; node.dispatchEvent(new Event('input')); }", value)


def drawn(page: Any) -> str:
    return page.evaluate("document.getElementById('canvas').toDataURL()")


def test_before_any_image(visit: Callable[..., Any]) -> None:
    page = visit()
    assert page.is_visible("text=Drop an image here") and page.is_visible("text=Choose an image")
    assert page.text_content("#model") == "tiny · 3 classes · 128 px"
    assert not page.is_visible("#canvas") and not page.is_visible("#error") and not page.is_visible("#download")


def test_upload_shows_what_the_server_finds(visit: Callable[..., Any], port: int) -> None:
    page = visit()
    upload(page)
    expected = detections(port, FILE)
    assert count(seen(page)) == len(expected) > 3
    assert page.evaluate("state.shown") == expected
    words = page.locator("#list li .word").all_text_contents()
    assert words == [row["name"] for row in expected[:60]] and set(words) <= set(NAMES)
    assert page.text_content("#summary").startswith("240 × 200 px")


def test_sliders_answer_at_once(visit: Callable[..., Any], port: int) -> None:
    page = visit()
    upload(page)
    before, asked = drawn(seen(page)), []
    page.on("request", lambda request: asked.append(request.url))
    slide(page, "#conf", 0.4)
    assert page.evaluate("state.shown") == detections(port, FILE, "?conf=0.4")
    assert page.text_content("#confOut") == "40%" and drawn(page) != before
    assert not asked, "what is there already need not be asked for"
    slide(page, "#conf", 0.25)
    for value in (0.05, 0.9):
        slide(page, "#iou", value)
        until(page, f"state.iou === '{value}' && !state.asking")
        assert page.evaluate("state.shown") == detections(port, FILE, f"?iou={value}")
    slide(page, "#conf", 0.1)
    assert count(page) > len(detections(port, FILE, "?conf=0.1"))
    for value in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6):  # a slider that moves ends where it stops
        slide(page, "#iou", value)
    until(page, "state.iou === '0.6' && !state.asking")
    slide(page, "#conf", 0.25)
    assert page.evaluate("state.shown") == detections(port, FILE, "?iou=0.6")
    page.focus("#conf")
    usual = count(page)
    page.keyboard.press("End")
    assert count(page) < usual
    page.keyboard.press("Home")
    assert count(page) > usual
    page.evaluate("state.kept = []; show()")
    assert page.is_visible("text=Nothing found at this confidence.")


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_routing(visit: Callable[..., Any], width: int) -> None:
    page = visit(width=width)
    upload(page)
    seen(page).click("#routing")
    page.wait_for_selector("#routes:not([hidden])")
    layer = page.evaluate("layer()")
    names = page.evaluate("state.routes.layers.map(({ name }) => name)")
    assert page.locator("#layer option").all_text_contents() == names == [layer["name"], names[1]]
    row, column = 2, 3
    spot = [(edges[i - 1] + edges[i]) / 2 for edges, i in ((layer["x"], column), (layer["y"], row))]
    scale = float(page.get_attribute("#canvas", "data-scale"))
    before = drawn(page)
    page.click("#canvas", position={"x": spot[0] * scale, "y": spot[1] * scale})
    assert page.text_content("#region") == "Row 2, column 3 looks at" and drawn(page) != before
    chosen = layer["index"][(row - 1) * layer["cols"] + column - 1]
    words = page.locator("#targets .word").all_text_contents()
    expected = [f"Row {target // layer['cols'] + 1}, column {target % layer['cols'] + 1}" for target in chosen]
    assert [word.removesuffix(" (padding)") for word in words] == expected
    page.keyboard.press("ArrowLeft")  # the canvas has the focus from the click
    assert page.text_content("#region") == "Row 2, column 2 looks at"
    for change in (lambda: page.check("#heat"), lambda: page.select_option("#layer", names[1])):
        before = drawn(page)
        change()
        assert drawn(page) != before
    assert page.evaluate("layer().name") == names[1]
    page.click("#boxes")
    assert page.is_visible("#found") and not page.is_visible("#routes")


def test_errors_are_shown_and_go_away(visit: Callable[..., Any]) -> None:
    page = visit()
    for content, message in (
        (b"no image at all", "The image is no JPEG, PNG"),
        (FILE[:3000], "The image is damaged"),
        (b"", "empty file"),
        (bytes(2**21), "The file has 2.0 MiB; at most 1.0 MiB are taken."),
        (None, "The server does not answer. Is it still running?"),
    ):
        if content is None:
            page.route("**/v1/**", lambda route: route.abort())
        upload(page, FILE if content is None else content)
        page.wait_for_selector("#error:not([hidden])")
        assert message in page.text_content("#error p") and page.get_attribute("#error", "role") == "alert"
        assert not page.is_visible("#busy")
        if content is None:
            page.click("#error button")
        else:
            upload(page)
        page.wait_for_selector("#error", state="hidden")


def test_languages(visit: Callable[..., Any]) -> None:
    page = visit("zh-CN")
    assert page.is_visible("text=选择图片") and page.get_attribute("html", "lang") == "zh-CN"
    upload(page, b"no image")
    page.wait_for_selector("#error:not([hidden])")
    assert "不是可识别的图片" in page.text_content("#error p")
    page.click("#language")
    assert page.get_attribute("html", "lang") == "en" and "The image is no" in page.text_content("#error p")
    page.reload()
    until(page, "state.model !== null")
    assert page.is_visible("text=Choose an image"), "the choice is remembered"
    english, chinese = page.evaluate("[WORDS.en, WORDS.zh]")
    statuses = {key for key in chinese if key.isdecimal()}  # English has the server's own messages for them
    assert set(english) == set(chinese) - statuses and statuses >= {"400", "408", "413", "415", "503"}
    assert visit("fr-FR").is_visible("text=Choose an image")


def test_download(visit: Callable[..., Any], tmp_path: Path) -> None:
    page = visit()
    upload(page, name="照片 1.png")
    seen(page)
    slide(page, "#conf", 0.3)
    with page.expect_download() as waiting:
        page.click("#download")
    assert waiting.value.suggested_filename == "照片 1.json"
    waiting.value.save_as(tmp_path / "x.json")
    content = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert content["detections"] == page.evaluate("state.shown")
    assert content["image"] == {"name": "照片 1.png", "width": 240, "height": 200}
    assert content["settings"] == {"conf": 0.3, "iou": 0.45} and content["model"] == "tiny"


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_drop_and_paste(visit: Callable[..., Any], port: int, event: str) -> None:
    page = visit()
    page.evaluate(DROP, [list(FILE), "image/png", event])
    assert seen(page).evaluate("state.shown") == detections(port, FILE)


def test_webcam(visit: Callable[..., Any]) -> None:
    page = visit()
    page.click("#camera")
    seen(page)
    until(page, "state.frames >= 3")
    assert "images a second" in page.text_content("#summary") and not page.is_visible("#views")
    page.click("#stop")
    page.wait_for_selector("#stop", state="hidden")
    frames = page.evaluate("state.frames")
    page.wait_for_timeout(300)
    assert page.evaluate("state.frames") == frames and page.is_visible("#canvas")
