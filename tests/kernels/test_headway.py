"""Who is told that work comes further, and how often."""

from __future__ import annotations

import threading

import pytest
import torch

from nanochat.kernels import headway
from nanochat.kernels.headway import in_its_time, longer, made, witnessed
from nanochat.kernels.invariant import InvariantKernels
from nanochat.kernels.widened import Widened


class Told:
    def __init__(self) -> None:
        self.pieces, self.allowed, self.most = 0, 0, 0

    def advance(self) -> None:
        self.pieces += 1


def test_a_thread_tells_its_own_witness_and_nobody_elsewhere() -> None:
    one, other = Told(), Told()

    def work() -> None:
        with witnessed(other):
            made()
            made()

    with witnessed(one):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        made()
    made()
    assert (one.pieces, other.pieces) == (1, 2)


def test_time_is_given_to_one_call_and_taken_back_even_if_it_fails() -> None:
    told = Told()
    with witnessed(told):
        with longer(3.2), longer(1.0):
            assert told.allowed == 5
        assert (told.allowed, told.pieces) == (0, 2)
        with pytest.raises(ValueError), longer(7.0):
            raise ValueError
    assert told.allowed == 0


def test_a_product_is_given_time_by_its_size_and_a_small_one_none() -> None:
    told = Told()
    with witnessed(told):
        assert in_its_time(10**6, lambda: told.allowed) == 0
        assert in_its_time(7 * 10**9, lambda: told.allowed) == 7
    assert told.pieces == 2


def test_products_of_many_rows_are_many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()
    x, weight = torch.ones(16, 512, dtype=torch.bfloat16), torch.ones(8192, 512, dtype=torch.bfloat16)
    monkeypatch.setattr(headway, "_PRODUCTS", 1.0)
    with witnessed(told):
        Widened([torch.bfloat16])(x, weight)
        assert told.pieces == 4
        Widened([])(x, weight)
        assert told.pieces == 5


def test_each_token_of_the_deterministic_experts_is_a_piece() -> None:
    told, x = Told(), torch.ones(5, 8)
    router, gate_up, down = torch.ones(4, 8), torch.ones(4, 12, 8), torch.ones(4, 8, 6)
    with witnessed(told):
        InvariantKernels(torch.device("cpu")).experts(x, router, gate_up, down, 2, True, "silu")
    assert told.pieces == 5
