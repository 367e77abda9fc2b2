"""What a screen waits for, in processor time: it does not depend on what else the machine does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from busy import BUSY

from nanochat.exchange.planting import Turn, plant
from nanochat.history import History
from nanochat.storage.records import Role, pack_ids, unpack_ids

WORDS = "the sky is blue because light of short waves is scattered more " * 12
CHATS, MESSAGES = 1_000, 500


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    with History.open(tmp_path_factory.mktemp("speed")) as opened:
        long = [
            Turn(
                role=(Role.USER, Role.ASSISTANT)[n % 2],
                content=f"{n} {WORDS}",
                parent=n - 1 if n else None,
                created=n,
            )
            for n in range(MESSAGES)
        ]
        bundles = [plant("f" * 16, "long", long, head=MESSAGES - 1, created=1, updated=9e9)]
        for number in range(CHATS):
            short = [Turn(role=Role.USER, content=f"chat {number}", parent=None, created=1.0)]
            bundles.append(
                plant(f"{number:016x}", f"title {number}", short, head=0, created=1, updated=number)
            )
        opened.take_in(bundles)
        yield opened


def best(call: Callable[[], object]) -> float:
    """The least processor time of seven calls, in milliseconds."""
    taken: list[float] = []
    for _ in range(7):
        start = time.process_time()
        call()
        taken.append((time.process_time() - start) * 1e3)
    return min(taken)


def test_a_chat_of_500_messages_opens_in_20_ms(history: History) -> None:
    assert len(history.messages.open("f" * 16).messages) == MESSAGES
    assert best(lambda: history.messages.open("f" * 16)) < BUSY * 20


def test_1000_chats_are_listed_in_20_ms(history: History) -> None:
    assert len(history.chats.list()) == CHATS + 1
    assert best(history.chats.list) < BUSY * 20


def test_a_checkpoint_of_10000_tokens_takes_less_than_5_ms(history: History) -> None:
    running = history.replies.begin("f" * 16, history.chats.get("f" * 16).head, model="m")
    text, ids = WORDS * 60, range(10_000)
    assert best(lambda: history.replies.checkpoint(running.id, text, token_ids=ids)) < BUSY * 5


def test_a_search_takes_less_than_50_ms(history: History) -> None:
    for query in ("scattered waves", "sk", "title 99", "no such words anywhere"):
        assert best(lambda query=query: history.search(query)) < BUSY * 50


def test_ids_unpack_fast_enough_for_a_long_chat() -> None:
    packed = pack_ids(range(512))
    assert best(lambda: [unpack_ids(packed) for _ in range(MESSAGES)]) < BUSY * 20
