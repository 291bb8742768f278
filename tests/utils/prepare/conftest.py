"""What tests of fetching share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.unreliable import unreliable
from utils.prepare import downloads


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a file at `tests.unreliable.Server`, which is asked without a proxy, and again without a pause."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(downloads.time, "sleep", lambda _: None)
    with unreliable() as address:
        yield f"{address}/a%20file.bin?raw=1"
