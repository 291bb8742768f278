from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lively import write_lively
from tests.served import TINY, need_server, running, some_image

need_server()

from benchmarks.serve_load import Outcome, crowd, form, mean_batch  # noqa: E402 - only where there is a server


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with running(write_lively(tmp_path_factory.mktemp("served") / "tiny.pt", TINY), window=10.0) as number:
        yield number


def test_percentiles_and_rate() -> None:
    outcome = Outcome([0.001 * i for i in range(100, 0, -1)], [], 5.0)
    assert outcome.rate == 20
    assert [round(outcome.milliseconds(percent)) for percent in (0, 50, 95, 100)] == [1, 51, 96, 100]


def test_a_crowd_is_answered_in_batches(port: int, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(some_image())
    outcome = asyncio.run(crowd(port, [form(tmp_path / "x.png", "/v1/object-detection/any")], 8, 0.5))
    assert not outcome.errors and len(outcome.seconds) > 8 and outcome.spent >= 0.5
    assert mean_batch(port) > 1.5
