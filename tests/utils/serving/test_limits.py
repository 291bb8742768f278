from __future__ import annotations

import pytest

from utils.serving.limits import Gate, Limits, Refusal


def test_nobody_inside() -> None:
    gate = Gate(1, 10)
    assert (gate.inside, gate.held) == (0, 0)


def test_the_gate_counts_requests_and_bytes() -> None:
    gate = Gate(2, 10)
    with gate.let_in() as one, gate.let_in() as other:
        with pytest.raises(Refusal, match="try again") as refused, gate.let_in():
            pass
        assert (refused.value.status, refused.value.retry_after) == (503, 1)
        one.hold(6)
        other.hold(4)
        with pytest.raises(Refusal, match="too many uploads"):
            other.hold(1)
        assert (gate.inside, gate.held) == (2, 10)
    assert (gate.inside, gate.held) == (0, 0)


def test_whoever_fails_leaves_too() -> None:
    gate = Gate(1, 10)
    with pytest.raises(KeyError), gate.let_in() as admission:
        admission.hold(3)
        raise KeyError
    assert (gate.inside, gate.held) == (0, 0)


@pytest.mark.parametrize("name", ["upload", "files", "pixels", "seconds", "requests", "memory", "detections"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_limits_that_leave_nothing(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"limit {name}="):
        Limits(**{name: value})


def test_no_size_is_left() -> None:
    with pytest.raises(ValueError, match="nothing is left"):
        Limits(smallest=64, largest=32)
