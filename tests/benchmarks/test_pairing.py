"""Paired timing with a clock that the test winds itself."""

import os

import pytest

from benchmarks.pairing import geometric_mean, interleave, median_ratio, peak_memory


class Clock:
    """Time passes only when a rival says so."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def rival(self, name, seconds):
        def run():
            self.calls.append(name)
            self.now += seconds

        return run


def test_interleaves_and_reverses():
    clock = Clock()
    rivals = {"slow": clock.rival("slow", 3.0), "fast": clock.rival("fast", 1.5)}
    seconds = interleave(rivals, rounds=2, warm_up=1, clock=lambda: clock.now)
    assert clock.calls == ["slow", "fast"] * 2 + ["fast", "slow"]
    assert seconds == {"slow": [3.0, 3.0], "fast": [1.5, 1.5]}
    assert median_ratio(seconds["slow"], seconds["fast"]) == 2.0


def test_no_rivals_and_no_rounds():
    assert interleave({}, rounds=1) == {}
    with pytest.raises(ValueError, match="rounds=0"):
        interleave({}, rounds=0)


@pytest.mark.parametrize(
    "budget, rounds",
    [(100, 6), (19, 4), (20, 5), (0.1, 3)],  # a round takes 4 seconds
)
def test_as_many_rounds_as_the_budget_allows_but_three(budget, rounds):
    clock = Clock()
    rivals = {"slow": clock.rival("slow", 3.0), "fast": clock.rival("fast", 1.0)}
    seconds = interleave(rivals, rounds=6, warm_up=0, clock=lambda: clock.now, budget=budget)
    assert seconds == {"slow": [3.0] * rounds, "fast": [1.0] * rounds}


def test_a_budget_never_adds_rounds_and_warming_up_does_not_spend_it():
    clock = Clock()
    assert interleave({"a": clock.rival("a", 5.0)}, 1, 1, lambda: clock.now, budget=100) == {"a": [5.0]}
    assert len(interleave({"a": clock.rival("a", 5.0)}, 9, 4, lambda: clock.now, budget=10, least=1)["a"]) == 2
    with pytest.raises(ValueError, match="budget=0"):
        interleave({}, budget=0)


def test_a_slow_round_for_both_does_not_count():
    assert median_ratio([4, 400, 4], [2, 200, 2]) == 2


def test_geometric_mean():
    assert geometric_mean([4.0, 0.25]) == pytest.approx(1)
    with pytest.raises(ValueError, match="no ratios"):
        geometric_mean([])


def _allocate(megabytes):
    return lambda: len(bytearray(megabytes * 2**20))


def test_peak_memory_of_a_fresh_process():
    assert 60 < peak_memory(_allocate, 64) / 2**20 < 80


def _allocate_after_more(megabytes):
    bytearray(3 * megabytes * 2**20)
    return _allocate(megabytes)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the kernel cannot forget peaks")
def test_peaks_of_the_preparation_are_forgotten():
    assert 60 < peak_memory(_allocate_after_more, 64) / 2**20 < 80
