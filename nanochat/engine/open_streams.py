"""The streams of the requests that run: who gets what a step brought, and who learns of an end. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from nanochat.engine.request import Update
from nanochat.engine.stream import Stream
from nanochat.errors import NanochatError

if TYPE_CHECKING:
    from nanochat.engine.sequence import Sequence


class OpenStreams:
    """By the names of their requests. Owned by the engine's thread."""

    def __init__(self) -> None:
        self._streams: dict[str, Stream] = {}

    def __contains__(self, stream: Stream) -> bool:
        return self._streams.get(stream.request_id) is stream

    @property
    def requests(self) -> list[str]:
        """The names of the requests that somebody may still read."""
        return list(self._streams)

    def add(self, stream: Stream) -> None:
        """Its request was queued."""
        self._streams[stream.request_id] = stream

    def deliver(self, updates: Iterable[Update]) -> None:
        """Give each stream what came for it; those that got their last are open no more."""
        for update in updates:
            stream = self._streams.get(update.request_id)
            if stream is not None:
                stream.put(update)
                if update.last:
                    del self._streams[update.request_id]

    def show_prefill(self, sequences: Iterable[Sequence]) -> None:
        """Tell how much of each prompt is computed that is not whole yet."""
        for sequence in sequences:
            if (
                not sequence.prompt_ready
                and sequence.started
                and (stream := self._streams.get(sequence.request_id))
            ):
                stream.state = "prefilling"
                stream.prefill_progress = (sequence.num_computed, len(sequence.prompt))

    def fail(self, error: NanochatError) -> None:
        """End all of them with an error."""
        streams, self._streams = list(self._streams.values()), {}
        for stream in streams:
            stream.fail(error)
