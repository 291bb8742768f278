from __future__ import annotations

import socket

import pytest

from tests.served import need_server

need_server()

from utils.serving.hosts import Hosts, hosts_of  # noqa: E402 - only where it is installed

MACHINE = socket.gethostname().lower()
ALWAYS = [
    "[::ffff:127.0.0.1]",
    "localhost",
    "LOCALHOST:5000",
    "app.localhost:80",
    "127.0.0.1",
    "127.1.2.3:5000",
    "[::1]:5000",
    "localhost.",
]
NEVER = ["evil.example", "evil.example:5000", "localhost.evil.example", "127.0.0.1.evil.example", "evil.local.example."]
BROKEN = ["", " ", "a b", "user@localhost", "localhost:x", "localhost:123456", "[::1", "[evil]", "a/b", "a,b.example"]


def test_no_names_are_loopback_alone() -> None:
    hosts = Hosts(plain=False)
    assert hosts.takes("localhost") and not hosts.takes("detector") and not hosts.takes("10.0.0.1")


@pytest.mark.parametrize("bound", ["127.0.0.1", "localhost", "::1", "0.0.0.0", "::", "192.0.2.7"])
@pytest.mark.parametrize("given", [[], ["detector.example.com"]])
def test_loopback_always_and_strangers_never(bound: str, given: list[str]) -> None:
    hosts = hosts_of(bound, given)
    assert all(hosts.takes(name) for name in ALWAYS)
    assert not any(hosts.takes(name) for name in NEVER)
    assert not any(hosts.takes(name) for name in BROKEN)


@pytest.mark.parametrize(
    "bound, taken, refused",
    [
        ("127.0.0.1", ["detector", MACHINE, f"{MACHINE.partition('.')[0]}.local:5000"], ["192.0.2.7", "[2001:db8::1]"]),
        ("0.0.0.0", ["detector:5000", MACHINE, "192.0.2.7:5000", "[2001:db8::1]:80"], ["other.local"]),
        ("192.0.2.7", ["192.0.2.7", "192.0.2.7:5000"], ["other.local"]),
        ("detector.lan", ["detector.lan:5000"], ["other.lan"]),
    ],
)
def test_names_by_the_address(bound: str, taken: list[str], refused: list[str]) -> None:
    """Names without a dot are a container's or a machine's of one's own network."""
    hosts = hosts_of(bound, [])
    assert all(hosts.takes(name) for name in taken) and not any(hosts.takes(name) for name in refused)


def test_given_names_replace_the_usual_ones() -> None:
    hosts = hosts_of("0.0.0.0", ["Detector.example.com", "192.0.2.7", "[2001:0DB8:0::1]", "Bücher.example"])
    for name in (
        "xn--bcher-kva.example",
        "[::ffff:192.0.2.7]",
        "detector.EXAMPLE.com:443",
        "detector.example.com.",
        "192.0.2.7:5000",
        "[2001:db8:0::1]",
    ):
        assert hosts.takes(name), name
    for name in ("detector", "www.detector.example.com", "192.0.2.8"):
        assert not hosts.takes(name), name


def test_any() -> None:
    assert all(hosts_of("127.0.0.1", ["*"]).takes(name) for name in ALWAYS + NEVER + BROKEN)


@pytest.mark.parametrize("name", ["", "http://x.example", "x.example/y", "*.example.com/", "a b"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ValueError, match="--hosts .*: give names like"):
        hosts_of("127.0.0.1", [name])
