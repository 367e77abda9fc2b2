"""Bad words: which tokens spell them, and that none of them comes, also where the device is steps ahead of the reader."""

from __future__ import annotations

import random

import pytest
import torch
from hash_model import VOCABULARY, hash_core, next_token
from lagging_device import lag
from tokenizer_kinds import KINDS, backend_json
from tokenizers import Tokenizer as Backend

from nanochat.engine.adjustment import adjust
from nanochat.engine.admission import Admission
from nanochat.engine.bad_words import Spellings, completing, spell
from nanochat.engine.request import Request
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.sequence import Sequence
from nanochat.engine.tokenizer import Tokenizer
from nanochat.errors import InvalidSampling

TABLE = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(3))
PROMPT = [1, 2, 3]


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_is_spelled_at_the_beginning_and_after_a_blank(kind: str) -> None:
    tokenizer = Tokenizer(Backend.from_str(backend_json(kind)), {})

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.backend.encode(text, add_special_tokens=False).ids)

    vocabulary = tokenizer.backend.get_vocab_size()
    assert set(spell(["the", "  cat"], tokenizer, vocabulary)) == {
        ids(t) for t in ("the", " the", "cat", " cat")
    }
    assert spell(["the"], tokenizer, max(ids("the"))) == ()  # what the model cannot draw
    if kind == "byte_level":
        assert spell(["\n"], tokenizer, vocabulary) == (ids("\n"),)
        assert len(spell(["the"], tokenizer, vocabulary)) == 2


def test_a_word_without_tokens_is_refused() -> None:
    tokenizer = Tokenizer(Backend.from_str(backend_json("wordpiece")), {})
    with pytest.raises(InvalidSampling, match="makes nothing"):
        spell(["\u200b\x00"], tokenizer, 10**6)


def test_banned_are_the_tokens_that_transformers_bans() -> None:
    from transformers import NoBadWordsLogitsProcessor

    draw = random.Random(5)
    for _ in range(100):
        words = {tuple(draw.choices(range(6), k=draw.randint(1, 4))) for _ in range(draw.randint(1, 6))}
        reply = draw.choices(range(6), k=draw.randint(0, 8))
        banned = completing(tuple(words), [0, 1, 2, *reply], 3)
        theirs = NoBadWordsLogitsProcessor([list(word) for word in words], eos_token_id=99)
        scores: torch.Tensor = theirs(torch.tensor([reply], dtype=torch.long).view(1, -1), torch.zeros(1, 6))  # type: ignore[arg-type]
        assert banned == set(scores[0].isneginf().nonzero()[:, 0].tolist())


def test_a_token_that_two_wishes_ban_is_banned_once_and_comes_back() -> None:
    params = SamplingParams(min_tokens=1, stop_token_ids=(4,), logit_bias={4: 100.0}).resolved({})
    sequence = Sequence(
        request_id="r", index=0, prompt=(4, 4), params=params, seed=1, priority=0, arrival=0, submitted=0.0, max_tokens=9,
        root=b"", eos_ids=frozenset({5}), bad_words=((4,), (4, 4, 6), (7, 8), (9,)),
    )  # fmt: skip
    sequence.pending = 1
    for tokens, banned in (([], {4, 5, 9}), ([7], {4, 8, 9}), ([4, 4], {4, 6, 9})):
        sequence.tokens = [4, 4, *tokens]
        logits = torch.zeros(1, 10)
        adjust(logits, [sequence])
        assert set((logits[0] < -1e20).nonzero()[:, 0].tolist()) == banned


def reference(spellings: Spellings, length: int) -> list[int]:
    tokens = list(PROMPT)
    for _ in range(length):
        row = TABLE[next_token(tokens)].clone()
        for ids in spellings:
            if tuple(tokens[3:][len(tokens) - 2 - len(ids) :]) == ids[:-1] or len(ids) == 1:
                row[ids[-1]] = -100.0
        tokens.append(int(row.argmax()))
    return tokens[3:]


@pytest.mark.parametrize("ahead", [0, 3])
def test_replies_are_those_of_a_loop_that_looks_at_every_token(
    ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spellings: Spellings = ()
    for start, stop in ((4, 6), (7, 10), (20, 21)):  # what would come next time
        spellings += (tuple(reference(spellings, 40)[start:stop]),)
    monkeypatch.setattr(Admission, "_spell", lambda self, words: spellings[: len(words)])
    core = hash_core(64)
    core._runner.model.logits = lambda hidden: TABLE[hidden[:, 0].long()].clone()  # type: ignore[attr-defined]
    lag(core, ahead)
    done: dict[str, list[int]] = {}
    requests = [
        Request(
            PROMPT, SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True, bad_words=["w"] * number)
        )
        for number in (0, 1, 3)
    ]
    for request in requests:
        core.add(request)
    while core.has_work:
        done |= {u.request_id: list(u.finished.token_ids) for u in core.step() if u.finished is not None}
    for request, number in zip(requests, (0, 1, 3), strict=True):
        assert done[request.request_id] == reference(spellings[:number], 40)
