from __future__ import annotations

import socket

import pytest

from utils.serving.hosts import Hosts

MACHINE = socket.gethostname().lower()
ALWAYS = "[::ffff:127.0.0.1] localhost LOCALHOST:5000 app.localhost:80 127.0.0.1 127.1.2.3:5000 [::1]:5000 localhost."
NEVER = "evil.example evil.example:5000 localhost.evil.example 127.0.0.1.evil.example evil.local.example."
BROKEN = ["", " ", "a b", "user@localhost", "localhost:x", "localhost:123456", "[::1", "[evil]", "a/b", "a,b.example"]


@pytest.mark.parametrize("bound", ["127.0.0.1", "localhost", "::1", "0.0.0.0", "::", "192.0.2.7"])
@pytest.mark.parametrize("given", [[], ["detector.example.com"]])
def test_loopback_always_and_others_never(bound: str, given: list[str]) -> None:
    hosts = Hosts(bound, given)
    assert all(map(hosts.takes, ALWAYS.split())) and not any(map(hosts.takes, NEVER.split() + BROKEN))


@pytest.mark.parametrize("bound, given, taken, refused", [
    ("127.0.0.1", [], f"detector {MACHINE} {MACHINE.partition('.')[0]}.local:5000", "192.0.2.7 [2001:db8::1]"),
    ("0.0.0.0", [], f"detector:5000 {MACHINE} 192.0.2.7:5000 [2001:db8::1]:80", "other.local"),
    ("192.0.2.7", [], "192.0.2.7 192.0.2.7:5000", "other.local"),
    ("detector.lan", [], "detector.lan:5000", "other.lan"),
    (
        "0.0.0.0", ["Detector.example.com", "192.0.2.7", "[2001:0DB8:0::1]", "Bücher.example"],
        "xn--bcher-kva.example [::ffff:192.0.2.7] detector.EXAMPLE.com:443 detector.example.com. 192.0.2.7:5000 "
        "[2001:db8:0::1]",
        "detector www.detector.example.com 192.0.2.8",
    ),
])  # fmt: skip
def test_names_by_the_address_or_the_given_ones(bound: str, given: list[str], taken: str, refused: str) -> None:
    """Names without a dot are a container's or a machine's of one's own network."""
    hosts = Hosts(bound, given)
    assert all(map(hosts.takes, taken.split())) and not any(map(hosts.takes, refused.split()))


def test_any() -> None:
    assert all(map(Hosts("127.0.0.1", ["*"]).takes, [*ALWAYS.split(), *NEVER.split(), *BROKEN]))


@pytest.mark.parametrize("name", ["", "http://x.example", "x.example/y", "*.example.com/", "a b"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ValueError, match=r"--hosts .*: give names like .*, or \*$"):
        Hosts("127.0.0.1", [name])
