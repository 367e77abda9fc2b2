"""What a request wants of its logits before a token is drawn: biases, penalties, no end before `min_tokens`.

All rows of a step together, in a few operations that wait for nothing: the numbers are counted on the host.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Collection
from itertools import repeat

from torch import Tensor

from nanochat.engine.device_copies import send_array
from nanochat.engine.sequence import Sequence

_BANNED = 1e30  # taken from a logit; not all there is, since a row with an infinity is taken for a broken one


class _Changes:
    """Numbers for single logits; no logit is named twice unless its numbers are the same."""

    def __init__(self) -> None:
        self._rows, self._tokens, self._numbers = array("q"), array("q"), array("f")

    def add(self, row: int, tokens: Collection[int], numbers: Collection[float]) -> None:
        """Those of a row."""
        self._rows.extend(repeat(row, len(tokens)))
        self._tokens.extend(tokens)
        self._numbers.extend(numbers)

    def make(self, logits: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Put what `change` makes of the logits and their numbers in the logits' place."""
        if self._rows:
            at = (send_array(self._rows, logits.device), send_array(self._tokens, logits.device))
            logits.index_put_(at, change(logits[at], send_array(self._numbers, logits.device)))


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
            biases.add(row, known.keys(), known.values())
        if params.repetition_penalty is not None and params.repetition_penalty != 1.0:
            seen = set(sequence.tokens)
            repeated.add(row, seen, [params.repetition_penalty] * len(seen))
        if params.presence_penalty or params.frequency_penalty:
            counts = Counter(sequence.output_ids)
            by = [params.presence_penalty + params.frequency_penalty * count for count in counts.values()]
            lowered.add(row, counts.keys(), by)
        if sequence.counter < params.min_tokens:
            ends = {token for token in (*sequence.eos_ids, *params.stop_token_ids) if token < vocabulary}
            banned.add(row, ends, [_BANNED] * len(ends))
    biases.make(logits, lambda values, bias: values + bias)
    repeated.make(logits, lambda values, penalty: (values * penalty).where(values < 0, values / penalty))
    lowered.make(logits, lambda values, by: values - by)
    banned.make(logits, lambda values, by: values - by)
