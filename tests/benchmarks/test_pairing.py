"""Paired timing with a clock that the test winds itself."""

from benchmarks.pairing import interleave, median_ratio, peak_memory


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


def test_a_slow_round_for_both_does_not_count():
    assert median_ratio([4, 400, 4], [2, 200, 2]) == 2


def _allocate(megabytes):
    return lambda: len(bytearray(megabytes * 2**20))


def test_peak_memory_of_a_fresh_process():
    assert 60 < peak_memory(_allocate, 64) / 2**20 < 80
