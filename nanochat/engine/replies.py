"""The replies under way: each grows by the tokens that steps sample, and ends; what came of them waits to be taken."""

from __future__ import annotations

from collections import abc

from nanochat.engine.outputs import FinishReason
from nanochat.engine.request import Update
from nanochat.engine.scheduler import Scheduler
from nanochat.engine.sequence import Sequence
from nanochat.engine.step import Token


class Replies:
    """Every sequence that did not end, by its request. Owned by the core.

    What is interrupted anywhere in here is undone by an `abort` of the request.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._sequences: dict[str, list[Sequence]] = {}
        self._updates: list[Update] = []

    def __bool__(self) -> bool:
        return bool(self._sequences)

    @property
    def requests(self) -> abc.Collection[str]:
        """The names of the requests that have a reply under way."""
        return self._sequences.keys()

    @property
    def sequences(self) -> list[Sequence]:
        """Every sequence that is waiting or running."""
        return [sequence for group in self._sequences.values() for sequence in group]

    def of(self, request_id: str) -> abc.Sequence[Sequence]:
        """A request's sequences that did not end; none for an unknown name."""
        return self._sequences.get(request_id, ())

    def begin(self, request_id: str, sequences: list[Sequence]) -> None:
        """Queue a request's sequences."""
        self._sequences[request_id] = sequences  # first: whatever comes between, `abort` finds them
        for sequence in sequences:
            self._scheduler.add(sequence)

    def abort(self, request_id: str) -> None:
        """End a request's replies now; their text so far is kept. Unknown names are ignored; may be done again."""
        for sequence in list(self._sequences.get(request_id, ())):
            self.end(sequence, FinishReason.ABORT)
        self._sequences.pop(request_id, None)  # empty, where an interrupt came between its last end and here

    def take_updates(self) -> list[Update]:
        """What came since the last call."""
        updates, self._updates = self._updates, []
        return updates

    def grow(self, sequence: Sequence, token: Token, now: float) -> None:
        """Append a token that was sampled, and end the reply where it is the last one."""
        sequence.tokens.append(token.id)
        sequence.first_token = sequence.first_token or now
        sequence.last_token = now
        if token.logprobs is not None and token.logprob is not None:
            sequence.logprobs.append(token.logprobs)
            sequence.cumulative_logprob += token.logprob
        params, ends = sequence.params, sequence.num_output > sequence.params.min_tokens
        if ends and token.id in sequence.eos_ids:
            self.end(sequence, FinishReason.STOP, (token.id,))
        elif ends and token.id in params.stop_token_ids:
            self.end(sequence, FinishReason.STOP, (token.id,), stop_reason=token.id)
        else:
            self._release_text(sequence, token.id)

    def _release_text(self, sequence: Sequence, token: int) -> None:
        detokenizer = sequence.detokenizer
        text = detokenizer.push((token,)) if detokenizer is not None else ""
        stopped = detokenizer.stopped if detokenizer is not None else None
        if stopped is not None or sequence.num_output >= sequence.max_tokens:
            reason = FinishReason.LENGTH if stopped is None else FinishReason.STOP
            self.end(sequence, reason, (token,), text=text, stop_reason=stopped)
        else:
            first = sequence.metrics() if sequence.num_output == 1 else None
            self._updates.append(Update(sequence.request_id, sequence.index, text, (token,), first=first))

    def end(
        self,
        sequence: Sequence,
        reason: FinishReason,
        token_ids: tuple[int, ...] = (),
        *,
        text: str = "",
        stop_reason: int | str | None = None,
        error: str | None = None,
    ) -> None:
        """End a reply: its blocks are free at once, and its last update holds the whole of it.

        Args:
            token_ids, text: what came with its last step, and was not told yet.
        """
        self._scheduler.remove(sequence)
        sequence.prompt_ready = True  # followers go on by themselves
        siblings = self._sequences[sequence.request_id]
        siblings.remove(sequence)
        if not siblings:
            del self._sequences[sequence.request_id]
        detokenizer = sequence.detokenizer
        if detokenizer is not None:
            if (
                reason is FinishReason.STOP
                and stop_reason is None
                and not sequence.params.skip_special_tokens
            ):
                text += detokenizer.push(token_ids)  # the end-of-sequence token itself is wanted in the text
            text += detokenizer.finish()
        output = sequence.completion(reason, stop_reason, error)
        self._updates.append(
            Update(sequence.request_id, sequence.index, text, token_ids, output, last=not siblings)
        )
