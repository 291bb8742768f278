"""Whom the server answers: requests that call it by its name, and no page elsewhere that made its own name point here.

A page of evil.example may have that name point to 127.0.0.1 once it was loaded ("DNS rebinding"), and the browser then
lets it read what a server on the reader's own machine answers. The Host of such a request is still evil.example.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from utils.base.files import printable

EVERY = "*"
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^:\[\]/@\s]+))(?::\d{0,5})?", re.ASCII)
_LOOPBACK = "localhost"


@dataclass(frozen=True, slots=True)
class Hosts:
    """The names that the server answers to.

    names: in lower case; "*" for any. plain: names without a dot, which nobody can own on the internet. addresses: any
    IP address, which no name can be made to look like. The names and addresses of loopback are always ours.
    """

    names: frozenset[str] = frozenset()
    plain: bool = True
    addresses: bool = False

    def takes(self, host: str) -> bool:
        """Is a request with this Host header (a name or an address, maybe with a port) for us?"""
        if EVERY in self.names:
            return True
        found = _HOST.fullmatch(host.strip().lower())
        if found is None:
            return False
        name = (found[1] or found[2]).removesuffix(".")
        try:
            address = ip_address(name)
        except ValueError:
            ours = name in self.names or name == _LOOPBACK or name.endswith(f".{_LOOPBACK}")
            return ours or (self.plain and "." not in name)
        return self.addresses or self._takes_address(address)

    def _takes_address(self, address: IPv4Address | IPv6Address) -> bool:
        mapped = getattr(address, "ipv4_mapped", None) or address  # ::ffff:127.0.0.1
        return mapped.is_loopback or not self.names.isdisjoint({str(address), str(mapped)})


def hosts_of(bound: str, given: Sequence[str]) -> Hosts:
    """The names of a server that listens on the address `bound`, or those that were `given`.

    Without any: the bound address, this machine's names, and names without a dot; IP addresses too where others can
    reach it. Raises ValueError for a given name that is none.
    """
    for name in given:
        if name != EVERY and _HOST.fullmatch(name.lower()) is None:
            raise ValueError(f"--hosts {name!r}: give names like detector.example.com, without http:// and path, or *")
    if given:
        found = (_HOST.fullmatch(name.lower()) for name in given)
        names = {_usual(one[1] or one[2]) for one in found if one is not None}
        return Hosts(frozenset(names | {name for name in given if name == EVERY}), plain=False)
    machine = socket.gethostname().lower()
    names = {bound.lower(), machine, f"{machine.partition('.')[0]}.local"}
    try:
        reachable = not ip_address(bound).is_loopback
    except ValueError:
        reachable = bound.lower() != _LOOPBACK
    return Hosts(frozenset(names), addresses=reachable)


def _usual(name: str) -> str:
    """A name as browsers send it: addresses in their shortest form, other letters than ASCII's as `xn--...`."""
    name = name.removesuffix(".")
    try:
        return str(ip_address(name))
    except ValueError:
        try:
            return name.encode("idna").decode("ascii")
        except UnicodeError:
            return name


class OnlyOurs:
    """Turns away requests for other hosts, before anything of them is looked at: 421, and 400 for none."""

    def __init__(self, app: ASGIApp, hosts: Hosts) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's interface."""
        if scope["type"] == "http":
            found = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
            if not (found or EVERY in self.hosts.names) or len(found) > 1:
                refused = JSONResponse({"error": "send one Host header"}, 400, {"Connection": "close"})
                return await refused(scope, receive, send)
            if found and not self.hosts.takes(found[0]):
                asked = printable(found[0][:80])
                message = f"this server is not {asked}; start it with --hosts and its name to have it answer"
                refused = JSONResponse({"error": message}, 421, {"Connection": "close"})
                return await refused(scope, receive, send)
        return await self.app(scope, receive, send)
