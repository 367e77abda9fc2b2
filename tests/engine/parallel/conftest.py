import sys

import pytest
import torch


@pytest.fixture
def rank_threads(monkeypatch):
    """Ranks 1 and on are threads of this process."""
    from thread_ranks import ThreadWorkers

    from nanochat.engine.parallel import group

    monkeypatch.setattr(group, "Workers", ThreadWorkers)
    threads, interval = torch.get_num_threads(), sys.getswitchinterval()
    sys.setswitchinterval(1e-4)  # threads hand each other the interpreter at every collective
    yield
    sys.setswitchinterval(interval)
    torch.set_num_threads(threads)


@pytest.fixture
def sums_here(rank_threads, monkeypatch):
    """These threads add up in the process's memory, and not through gloo."""
    from sums_here import Meetings

    from nanochat.engine.parallel import collectives

    monkeypatch.setattr(collectives, "_gloo", Meetings().connect)
