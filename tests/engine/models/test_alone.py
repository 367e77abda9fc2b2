"""Whose turn it is to let Transformers make a model."""

from __future__ import annotations

import threading

import torch

from nanochat.engine.models.alone import Turn

WAIT = 20.0


def test_a_turn_that_is_given_up_is_the_next_ones_and_stays_it_when_the_first_wakes() -> None:
    """Also for one that waited already; defaults of torch are as they were before."""
    turn, inside, wakes, goes = Turn(), threading.Event(), threading.Event(), threading.Event()
    dtypes: list[torch.dtype] = []

    def hangs() -> None:
        with turn.alone():
            torch.set_default_dtype(torch.bfloat16)
            inside.set()
            wakes.wait(WAIT)

    def waits() -> None:
        with turn.alone():
            dtypes.append(torch.get_default_dtype())
            goes.set()

    first, second = threading.Thread(target=hangs), threading.Thread(target=waits)
    try:
        first.start()
        assert inside.wait(WAIT)
        second.start()
        turn.give_up(second.ident or 0)  # it has none
        assert not goes.is_set()
        turn.give_up(first.ident or 0)
        assert goes.wait(WAIT) and dtypes == [torch.float32]
        second.join(WAIT)
        with turn.alone():
            wakes.set()
            first.join(WAIT)
            third = threading.Thread(target=waits)
            goes.clear()
            third.start()
            assert not goes.wait(0.2)
        assert goes.wait(WAIT)
        third.join(WAIT)
    finally:
        torch.set_default_dtype(torch.float32)
