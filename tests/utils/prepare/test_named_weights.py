"""Weights by name: where they are looked for, and what comes of fetching them from servers that fail."""

from __future__ import annotations

import builtins
import errno
import hashlib
import io
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import detect
import hubconf
import train
import val
from tests.known_detector import write_weights
from tests.processes import statements
from tests.unreliable import Server
from utils.base import paths
from utils.prepare import downloads, named_weights
from utils.prepare.named_weights import KNOWN, PUBLISHED, PYRAMIDS, addresses, cache_folder, weights_folder
from utils.prepare.named_weights import named_weights as find

NAME, HOME = "yolov5n.pt", "/home/me"


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


GOOD, OTHER = saved({"epoch": 1, "model": torch.zeros(3000)}), saved({"epoch": 2, "model": torch.ones(3000)})
HOSTILE = saved({"epoch": 1, "model": type("Attack", (), {"__reduce__": lambda self: (os.system, ("exit 1",))})()})
SHA = hashlib.sha256(GOOD).hexdigest()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str, caplog: pytest.LogCaptureFixture) -> Path:
    """Where weights are fetched to, from the server alone: the release page, and a mirror whose file is known."""
    caplog.set_level(logging.INFO)
    for variable in ("YOLOV5_OFFLINE", "HF_HUB_OFFLINE", "YOLOV5_WEIGHTS_URL"):
        monkeypatch.delenv(variable, raising=False)
    base = server.partition("/a%20")[0]
    monkeypatch.setattr(named_weights, "RELEASE", f"{base}/v6.1")
    monkeypatch.setenv("HF_ENDPOINT", f"{base}/mirror/")
    monkeypatch.setenv("YOLOV5_WEIGHTS_DIR", str(tmp_path / "kept"))
    monkeypatch.setattr(named_weights, "KNOWN", {NAME: (len(GOOD), SHA)})
    monkeypatch.setattr(paths, "ROOT", tmp_path / "repository")
    monkeypatch.chdir(tmp_path)
    Server.body = GOOD
    return tmp_path / "kept"


def error_of(name: str = NAME) -> str:
    with pytest.raises(ValueError) as caught:
        find(name)
    assert str(caught.value).isprintable(), "one line"
    return str(caught.value)


def left(folder: Path) -> list[str]:
    """What lies under a name of its own; of broken transfers only hidden parts may stay."""
    return sorted(re.sub(r"\.[0-9a-f]{8}\.", ".*.", path.name) for path in folder.iterdir())


# ---- looking
def test_no_name_is_the_current_folder_as_ever(folder: Path) -> None:
    assert find("") == Path() and not Server.ranges


def test_where_files_of_a_name_are_looked_for(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the last place to the first, each of which then comes before all others; nothing is asked for."""
    monkeypatch.setattr(named_weights, "cache_folder", lambda: tmp_path / "cache")
    for place in ("cache", "kept", "repository/weights", "weights", "repository", "."):
        for name in (NAME, "mine.onnx", PYRAMIDS[0]):
            (file := tmp_path / place / name).parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            assert find(name).resolve() == file
    assert find(tmp_path / "kept" / NAME) == tmp_path / "kept" / NAME and not Server.ranges


@pytest.mark.parametrize("name", ["a/yolov5n.pt", "../yolov5n.pt", "./yolov5n.pt", "yolov5n.pt/", "yolov5n.pt\n",
                                  "yolov5n.pt\0", "yolov5n.pt?x", "YOLOv5n.pt", "yolov5n.pt ", "yolov5u.pt",
                                  "a\\yolov5n.pt", "/yolov5n.pt", "~/yolov5n.pt"])  # fmt: skip
def test_only_a_known_name_alone_is_fetched(folder: Path, name: str) -> None:
    message = error_of(name)
    hint = "alone, without a folder, would be fetched" if "/" in name else "only yolov5{n,s,m,l,x}.pt and"
    assert hint in message and not Server.ranges and not folder.exists()


def test_a_pipe_of_that_name_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(NAME)
    assert "is a pipe or device" in error_of()


def test_where_fetched_files_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", HOME)
    for value in ("", "relative"):  # which XDG's rules say to ignore
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_folder() == Path(HOME, ".cache/yolov5-biformer/weights")
    monkeypatch.setenv("XDG_CACHE_HOME", "/big")
    assert cache_folder() == Path("/big/yolov5-biformer/weights")
    monkeypatch.setattr(named_weights.sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert cache_folder() == Path("/local/yolov5-biformer/weights")
    monkeypatch.delenv("LOCALAPPDATA")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert cache_folder() == paths.ROOT / "weights"
    monkeypatch.setenv("YOLOV5_WEIGHTS_DIR", "~/w")
    assert weights_folder() == Path(HOME, "w")


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    release, hub = addresses("yolov5s.pt")
    assert release == ("https://github.com/ultralytics/yolov5/releases/download/v6.1/yolov5s.pt", "GPL-3.0", 0, "")
    assert hub[:3] == ("https://huggingface.co/Ultralytics/YOLOv5/resolve/main/yolov5s.pt", "AGPL-3.0", 14_808_437)
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror/")
    assert addresses("yolov5s.pt")[1] == hub._replace(url=hub.url.replace("huggingface.co", "mirror"))
    assert len(PUBLISHED) == 10 and not addresses("yolov5x6.pt")[1].size
    assert set(KNOWN) < set(PUBLISHED) and all(re.fullmatch("[0-9a-f]{64}", sha) for _, sha in KNOWN.values())
    monkeypatch.setenv("YOLOV5_WEIGHTS_URL", "https://own/w/")
    for name in (PUBLISHED[0], PYRAMIDS[0]):
        assert [address.url for address in addresses(name)] == [f"https://own/w/{name}"]


# ---- fetching
def test_it_is_said_what_is_fetched_and_what_came(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    Server.fail = [404]
    assert find(NAME) == folder / NAME and (folder / NAME).read_bytes() == GOOD and left(folder) == [NAME]
    first, failed, second, came = [line for line in caplog.messages if "%" not in line]
    assert f"v6.1/{NAME} to {folder / NAME} (of a size not known before; GPL-3.0)" in first
    assert "404 Not Found); trying the next" in failed
    assert f"mirror/Ultralytics/YOLOv5/resolve/main/{NAME} to" in second and f"({len(GOOD):,} bytes; AGPL-3.0" in second
    assert f"{len(GOOD):,} bytes, SHA-256 {SHA}, the file that Ultralytics/YOLOv5 has at" in came
    assert find(NAME) == folder / NAME and len(Server.ranges) == 2, "once is enough"


RIGHT = {
    "redirected": {"to": ["/elsewhere"]},
    "500, then ok": {"fail": [500, 503]},
    "a break, then the rest": {"cut": [5000, 3000]},
    "no length": {"cut": [5000], "tag": "W/weak"},
    "the first address has another file": {"fail": [403]},
}


@pytest.mark.parametrize("fault", RIGHT)
def test_faults_that_end_with_the_right_file(folder: Path, fault: str) -> None:
    for name, value in RIGHT[fault].items():
        setattr(Server, name, value)
    assert find(NAME).read_bytes() == GOOD and left(folder) == [NAME]
    assert "a break" not in fault or Server.ranges == [None, "bytes=5000-", "bytes=8000-"]


HTML = b"<!DOCTYPE html><title>Log in</title>"
WRONG = {  # what the server does; what is said of the release page, and of the mirror, whose file is known
    "404": ({"fail": [404] * 2}, r"404 Not Found\)", r"404 Not Found\)"),
    "500": ({"fail": [500] * 6}, "500 Internal", "500 Internal"),
    "a page instead": ({"body": HTML}, "is no checkpoint", f"has {len(HTML)} bytes, not the {len(GOOD):,} that"),
    "nothing": ({"body": b""}, r"is no checkpoint, .*\(the file is empty", "has 0 bytes, not the"),
    "hostile": ({"body": HOSTILE}, r"refused: it would use \w+\.system", f"has {len(HOSTILE):,} bytes, not the"),
    "half of it, as if whole": ({"body": GOOD[:9000]}, "is no checkpoint", "has 9,000 bytes, not the"),
    "wrong bytes": ({"body": GOOD[:-1] + b"x"}, "is no checkpoint, or a damaged one", "sha256 is .*, expected"),
    "too large": ({"endless": 1 << 16}, "is larger than the 9.31e-05 GiB", "has more than the"),
    "redirected for ever": ({"to": ["/a"] * 99}, "302 The HTTP server returned a redirect error", "302 The HTTP"),
    "redirected to a file": ({"to": ["file:///etc/hostname"] * 2}, "302 Found - Redirection to url", "302 Found"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_faults_that_leave_nothing(folder: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLOV5_MAX_DOWNLOAD", str(100_000 / (1 << 30)))
    doing, release, mirror = WRONG[fault]
    for name, value in doing.items():
        setattr(Server, name, list(value) if isinstance(value, list) else value)
    message = error_of()
    assert re.search(rf"v6.1/{NAME} \({release}.*main/{NAME} \({mirror}", message), message
    assert f"put the file into {folder}, or give its path" in message
    assert left(folder) == [] or fault == "redirected for ever"
    Server.body, Server.endless, Server.to, Server.fail = GOOD, 0, [], []
    assert find(NAME).read_bytes() == GOOD and left(folder) == [NAME]


def test_what_broke_off_goes_on_but_never_with_another_version(folder: Path) -> None:
    Server.cut = [1000] * 6
    assert f"ended after 3000 of {len(GOOD)} bytes" in error_of()
    parts = [f".{NAME}.*.part", f".{NAME}.*.part", f".{NAME}.*.part.version", f".{NAME}.*.part.version"]
    assert left(folder) == parts and not (folder / NAME).exists()
    Server.body, Server.tag = OTHER, '"v2"'
    assert find(NAME).read_bytes() == OTHER and left(folder) == [NAME] and Server.ranges[-1] == "bytes=3000-"


def test_servers_that_stall_or_are_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "TIMEOUT", 0.05)
    Server.gate.clear()
    assert error_of().count("(timed out)") == 2
    monkeypatch.setattr(downloads, "PATIENCE", 0.1)
    monkeypatch.setattr(downloads, "TIMEOUT", 5)
    Server.gate.set()
    Server.body, Server.endless = b"", 1
    assert error_of().count("(fewer than 1000 bytes a second)") == 2
    monkeypatch.setenv("YOLOV5_WEIGHTS_URL", "http://127.0.0.1:9")
    assert re.search(rf"http://127.0.0.1:9/{NAME} \(.*refused\); check the network and proxies, or put", error_of())
    for base, reason in {"mirror": "only https, http, file", "http://[": "Invalid IPv6", "http://a b": "URL"}.items():
        monkeypatch.setenv("YOLOV5_WEIGHTS_URL", base)
        assert reason in error_of()
    assert not (folder / NAME).exists()


def test_proxies_are_honoured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", os.environ["HF_ENDPOINT"])
    monkeypatch.setenv("YOLOV5_WEIGHTS_URL", "http://weights.invalid")
    assert find(NAME).read_bytes() == GOOD


def test_faults_of_this_machine(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: object, mode: str = "r", **more: object) -> object:
        if mode == "ab":
            raise OSError(errno.ENOSPC, "No space left on device")
        return builtins.open(file, mode, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(downloads, "open", full, raising=False)
    assert re.search(r"cannot be kept: .*No space left.*make room.*; YOLOV5_WEIGHTS_DIR names another", error_of())
    assert len(Server.ranges) == 1, "no other address would help"
    (tmp_path / "file").touch()
    monkeypatch.setenv("YOLOV5_WEIGHTS_DIR", str(tmp_path / "file"))
    assert f"cannot be kept: {tmp_path / 'file'}: File exists; check the path" in error_of()
    monkeypatch.setenv("YOLOV5_WEIGHTS_DIR", str(tmp_path / "file/below"))
    assert f"cannot be kept: {tmp_path / 'file/below'}: Not a directory; check the path" in error_of()


def test_two_processes_fetch_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one is asked for nothing while its server waits for us to wait for it."""
    program = f"from utils.prepare import named_weights as n; n.RELEASE = '{named_weights.RELEASE}'; "
    program += f"n.named_weights('{NAME}')"
    Server.gate.clear()
    environment = os.environ | {"PYTHONPATH": str(Path(train.__file__).parent)}
    other = subprocess.Popen([sys.executable, "-c", program], env=environment)
    assert Server.asked.wait(100)
    monkeypatch.setattr(downloads.time, "sleep", lambda _: Server.gate.set())
    assert find(NAME).read_bytes() == GOOD and other.wait(60) == 0
    assert Server.ranges == [None] and left(folder) == [NAME]


TOGETHER = """
from utils.base.log import set_up_logging
from utils.prepare import named_weights
named_weights.RELEASE = arguments["release"]
found = []
for name in ("yolov5n.pt", "none.pt"):
    try:
        found.append(str(named_weights.weights_of_run(name)))
    except ValueError as error:
        found.append(str(error))
print(json.dumps(found))
"""


def test_of_the_processes_of_a_run_one_fetches(folder: Path) -> None:
    (one, missing), others = statements(TOGETHER, {"release": named_weights.RELEASE})
    assert [one, missing] == others and one == str(folder / NAME) and "none.pt do not exist" in missing
    assert Server.ranges == [None]


# ---- no network
@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    asked = []

    def refuse(*kind: object, **_: object) -> None:
        asked.append(kind)
        raise OSError("a socket")

    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", refuse)
        yield
    assert not asked


@pytest.mark.parametrize("variable", ["YOLOV5_OFFLINE", "HF_HUB_OFFLINE"])
@pytest.mark.usefixtures("folder", "no_sockets")
def test_offline_is_respected(folder: Path, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "True")
    places = " or ".join(address.url for address in addresses(NAME))
    assert error_of() == (
        f"{NAME} is not here, and {variable} forbids to fetch it: get it from {places}, "
        f"and put the file into {folder}, or give its path"
    )
    assert not folder.exists()


@pytest.mark.usefixtures("folder", "no_sockets")
def test_a_pyramids_weights_are_at_their_authors(folder: Path) -> None:
    assert "https://github.com/rayleizhu/BiFormer, and put the file into" in error_of(PYRAMIDS[0])


@pytest.mark.usefixtures("no_sockets")
def test_weights_that_are_here_need_no_network(tmp_path: Path, squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though they have a name that would be fetched."""
    monkeypatch.delenv("YOLOV5_OFFLINE")
    monkeypatch.chdir(tmp_path)
    write_weights(Path("yolov5s.pt"), ["red", "blue", "green"])
    data = squares.read_text(encoding="utf-8").replace("[red, blue]", "[red, blue, green]")
    squares.write_text(data, encoding="utf-8")
    given = {"weights": "yolov5s.pt", "imgsz": 32, "device": "cpu", "project": "runs"}
    train.run(data=str(squares), epochs=1, workers=0, noval=True, nosave=True, batch_size=16, **given)
    val.run(data=str(squares), workers=0, **given)
    detect.run(source=str(squares.parent / "images/val/0.png"), **given)
    assert hubconf.yolov5s(classes=3, verbose=False, device="cpu")
