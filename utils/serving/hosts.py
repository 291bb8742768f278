"""Whom the server answers: requests that call it by its name, and no page elsewhere that made its own name point here.

A page of evil.example may have that name point to 127.0.0.1 once it was loaded ("DNS rebinding"), and the browser then
lets it read what a server on the reader's own machine answers. The Host of such a request is still evil.example.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from ipaddress import ip_address

EVERY = "*"
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^:\[\]/@\s]+))(?::\d{0,5})?", re.ASCII)
_LOOPBACK = "localhost"


class Hosts:
    """The names of a server that listens on the address `bound`, or those that were `given`; "*" for any.

    Without given ones: the bound address, this machine's names, and names without a dot, which nobody can own on the
    internet; where others can reach the server any IP address too, which no name can be made to look like. The names
    and addresses of loopback are always ours. Raises ValueError for a given name that is none.
    """

    def __init__(self, bound: str, given: Sequence[str] = ()) -> None:
        self.every, self.plain, self.addresses = EVERY in given, not given, False
        self.names: set[str] = set()
        for name in given:
            found = _HOST.fullmatch(name.lower())
            if found is None and name != EVERY:
                wanted = "names like detector.example.com, without http:// or path, or *"
                raise ValueError(f"--hosts {name!r}: give {wanted}")
            if found is not None:
                self.names.add(_as_browsers_send((found[1] or found[2]).removesuffix(".")))
        if not given:
            machine = socket.gethostname().lower()
            self.names = {bound.lower(), machine, f"{machine.partition('.')[0]}.local"}
            try:
                self.addresses = not ip_address(bound).is_loopback
            except ValueError:
                self.addresses = bound.lower() != _LOOPBACK

    def takes(self, host: str) -> bool:
        """Is a request with this Host header (a name or an address, maybe with a port) for us?"""
        found = _HOST.fullmatch(host.strip().lower())
        if self.every or found is None:
            return self.every
        name = next(filter(None, found.groups())).removesuffix(".")
        try:
            address = ip_address(name)
        except ValueError:
            ours = name in self.names or name == _LOOPBACK or name.endswith(f".{_LOOPBACK}")
            return ours or (self.plain and "." not in name)
        mapped = getattr(address, "ipv4_mapped", None) or address  # ::ffff:127.0.0.1
        return self.addresses or mapped.is_loopback or not self.names.isdisjoint({str(address), str(mapped)})


def _as_browsers_send(name: str) -> str:
    """Addresses in their shortest form, other letters than ASCII's as `xn--...`."""
    try:
        return str(ip_address(name))
    except ValueError:
        try:
            return name.encode("idna").decode("ascii")
        except UnicodeError:
            return name
