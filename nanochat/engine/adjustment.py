"""What a request wants of its logits before a token is drawn: biases, penalties, no end before `min_tokens`, no bad words.

All rows of a step together, in a few operations that wait for nothing: the numbers are counted on the host, see `SeenTokens`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

import torch
from torch import Tensor

from nanochat.engine.bad_words import completing
from nanochat.engine.device_copies import send_array
from nanochat.engine.seen_tokens import Bends
from nanochat.engine.sequence import Sequence

_BANNED = 1e30  # taken from a logit; not all there is, since a row with an infinity is taken for a broken one


class _Changes:
    """Numbers for single logits, each named once."""

    def __init__(self) -> None:
        self._rows, self._counts = array("q"), array("q")
        self._all = Bends()

    def add(self, row: int, bends: Bends) -> None:
        """Those of a row."""
        if bends.tokens:
            self._rows.append(row)
            self._counts.append(len(bends.tokens))
            self._all.tokens.extend(bends.tokens)
            self._all.numbers.extend(bends.numbers)

    def make(self, logits: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Put what `change` makes of the logits and their numbers in the logits' place."""
        if self._rows:
            rows, counts, tokens, numbers = (
                send_array(numbers, logits.device)
                for numbers in (self._rows, self._counts, self._all.tokens, self._all.numbers)
            )
            # The sum is told, since the host would wait for it.
            at = (torch.repeat_interleave(rows, counts, output_size=len(self._all.tokens)), tokens)
            logits.index_put_(at, change(logits[at], numbers))


def adjust(logits: Tensor, sequences: list[Sequence]) -> None:
    """Bend logits as their requests want it, in place.

    Args:
        logits: float32 [rows, vocab]; the first rows are those of `sequences`.
    """
    biases, repeated, lowered, banned = _Changes(), _Changes(), _Changes(), _Changes()
    vocabulary = logits.shape[1]
    for row, sequence in enumerate(sequences):
        params = sequence.params
        if params.logit_bias:
            known = {token: bias for token, bias in params.logit_bias.items() if token < vocabulary}
            biases.add(row, Bends(array("q", known.keys()), array("f", known.values())))
        if params.needs_history:
            sequence.seen.extend(sequence.tokens, len(sequence.prompt), params)
            repeated.add(row, sequence.seen.repeated)
            lowered.add(row, sequence.seen.lowered)
        if sequence.bad_words or sequence.counter < params.min_tokens:
            out = completing(sequence.bad_words, sequence.tokens, len(sequence.prompt))
            if sequence.counter < params.min_tokens:
                out |= {token for token in (*sequence.eos_ids, *params.stop_token_ids) if token < vocabulary}
            banned.add(row, Bends(array("q", out), array("f", [_BANNED]) * len(out)))
    biases.make(logits, lambda values, bias: values + bias)
    repeated.make(logits, lambda values, penalty: (values * penalty).where(values < 0, values / penalty))
    lowered.make(logits, lambda values, by: values - by)
    banned.make(logits, lambda values, by: values - by)
