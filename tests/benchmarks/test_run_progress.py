"""What a run tells of itself while it goes on."""

from __future__ import annotations

from nanochat.benchmarks.measuring import Progress
from nanochat.benchmarks.run_progress import RunProgress
from nanochat.benchmarks.time_left import TimeLeft


def test_a_case_is_told_with_the_time_of_the_whole_run_and_then_with_the_rate() -> None:
    left, told = TimeLeft([1.0, 1.0, 1.0], passes=1), list[Progress]()
    progress = RunProgress(left, told.append)
    progress.tell_rate(5.0)
    assert not told, "nobody knows yet of what it is the rate"
    left.ended(2.0)
    progress.tell(Progress("decode", "nanochat", case=2, cases=3, repeat=1, repeats=5, seconds_left=0.5))
    progress.tell_rate(7.0)
    assert [(each.run_seconds_left, each.rate) for each in told] == [(2.5, None), (2.5, 7.0)]
