"""EngineCore: one step = schedule, run, take in the results. Single-threaded; others wrap it."""

from __future__ import annotations

import gc
import logging
import time
from collections import deque

import torch

from nanochat.engine.admission import Admission
from nanochat.engine.config import BLOCK_SIZE, EngineConfig
from nanochat.engine.kv_cache import KVCache
from nanochat.engine.loading import Loaded
from nanochat.engine.outputs import FinishReason
from nanochat.engine.pace import PrefillPace
from nanochat.engine.replies import Replies
from nanochat.engine.request import Request, Update
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.scheduler import Budget, Chunk, Scheduler
from nanochat.engine.sequence import Sequence, Status
from nanochat.engine.statistics import Statistics
from nanochat.engine.step import PendingStep
from nanochat.engine.steps_ahead import StepsAhead
from nanochat.errors import EngineDead, InvalidSampling, NanochatError
from nanochat.kernels.shortage import comes_from_out_of_memory, is_out_of_memory

log = logging.getLogger("nanochat.engine")

_NOT_FINITE = (
    "the model's logits are NaN or Inf, so the reply was ended and nothing of it was cached: "
    "the weights are damaged, or the dtype is too narrow for this model (try float32)"
)


class EngineCore:
    """The engine without threads: add requests, call `step` until `has_work` is false."""

    def __init__(self, config: EngineConfig, loaded: Loaded) -> None:
        self.config = config
        self.model_config = loaded.model.config
        self.tokenizer = loaded.tokenizer
        self.device = loaded.device
        self.dtype = loaded.dtype
        self.memory = loaded.memory
        self.max_model_len = loaded.memory.max_model_len
        self.cache = KVCache(loaded.memory.num_blocks, BLOCK_SIZE)
        self._pace = PrefillPace.of(config, loaded.device.type)
        budget = Budget(config.max_num_seqs, config.max_num_batched_tokens, self._pace.tokens)
        lookahead = BLOCK_SIZE if loaded.device.type == "cuda" else 0
        self.scheduler = Scheduler(self.cache, budget, lookahead)
        self.statistics = Statistics()
        self.group = loaded.group
        self._runner = loaded.runner
        self._admission = Admission(
            config, self.model_config, loaded.tokenizer, self.max_model_len, loaded.fingerprint
        )
        self._replies = Replies(self.scheduler)
        self._in_flight: deque[PendingStep] = deque()
        self._prepared = False
        self._whole = True  # no step was left in its middle (Ctrl-C, an error) since no request was left
        self._ahead = StepsAhead(loaded.device.type == "cuda")

    @property
    def ranks(self) -> int:
        """Over how many devices the model is split."""
        return 1 if self.group is None else self.group.ranks

    @property
    def has_work(self) -> bool:
        """Whether any sequence is waiting or running."""
        return bool(self._replies)

    @property
    def unprepared(self) -> bool:
        """Whether `prepare` has something to do."""
        return not self._prepared and self._runner.unprepared

    def prepare(self) -> None:
        """While nobody waits: a part of what later steps would have to do first, tens of milliseconds unless kernels are
        compiled in it. Where memory does not allow it, steps do without."""
        try:
            self._runner.prepare()
        except RuntimeError as error:
            if not comes_from_out_of_memory(error):
                raise
            log.warning("no memory to prepare more steps: %s", str(error).splitlines()[0])
            self._prepared = True

    def describe(self) -> str:
        """What computes the model, in a few words: kernels, graphs."""
        return self._runner.describe(self.dtype)

    @property
    def weight_itemsize(self) -> float | None:
        """See `ModelRunner`."""
        return self._runner.weight_itemsize

    # Requests ---------------------------------------------------------------------------------

    def check(self, request: Request) -> SamplingParams:
        """See `Admission.check`."""
        return self._admission.check(request)

    def add(self, request: Request, submitted: float | None = None) -> None:
        """Queue a request; it becomes `params.n` sequences.

        Args:
            submitted: when it was submitted, on `time.perf_counter`'s clock; now, if not given.

        Raises:
            EmptyPrompt, ContextOverflow, InvalidSampling: it can never run as it is, or one of its name is not done yet.
        """
        if request.request_id in self._replies.requests:
            raise InvalidSampling(
                f"a request named {request.request_id!r} is still running: give this one another request_id"
            )
        sequences = self._admission.sequences(
            request, time.perf_counter() if submitted is None else submitted
        )
        self._replies.begin(request.request_id, sequences)

    def abort(self, request_id: str) -> None:
        """End a request now; its text so far is kept and its blocks are free at once. Unknown ids are ignored.

        An abort that was interrupted may be done again.
        """
        self._replies.abort(request_id)

    def take_updates(self) -> list[Update]:
        """What came since the last step: the ends of aborted requests."""
        return self._replies.take_updates()

    def reprioritise(self, request_id: str, priority: int) -> None:
        """Change who goes first from the next step on."""
        for sequence in self._replies.of(request_id):
            self.scheduler.reprioritise(sequence, priority)

    # Steps ------------------------------------------------------------------------------------

    def step(self) -> list[Update]:
        """Run one step and return what it brought, finished and aborted replies included."""
        whole, self._whole = self._whole, False
        self._advance()
        self._whole = whole
        self._check_idle()
        return self.take_updates()

    def _advance(self) -> None:
        self._ahead.look(self._in_flight)
        while self._ahead.takes(self._in_flight) and self._dispatch():
            if self._in_flight and self._in_flight[0].done():
                break  # its tokens do not wait for the launch of others
        if self._in_flight:
            step = self._in_flight.popleft()
            self._take_in(step)
            now = time.perf_counter()
            self.statistics.count(step.chunks, now)
            self._pace.took(step.chunks, now, self.has_work)
            self.scheduler.beside_decodes = self._pace.tokens
        elif self.has_work:
            self._end_stuck()

    def _dispatch(self) -> bool:
        chunks = self.scheduler.schedule()
        if not chunks:
            return False
        now = time.perf_counter()
        if not self._in_flight:
            self.statistics.resume(now)
        for chunk in chunks:
            if not chunk.sequence.started:
                chunk.sequence.started = now
                self.statistics.cached_tokens += chunk.start
        try:
            self._in_flight.append(self._runner.dispatch(chunks))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self._give_way(chunks, error)
        return True

    def _give_way(self, chunks: list[Chunk], error: RuntimeError) -> None:
        """A step ran out of memory: end its largest request, and let the others do theirs again."""
        for chunk in chunks:
            chunk.sequence.num_computed = chunk.start
            chunk.sequence.pending -= chunk.samples
        largest = max(chunks, key=lambda chunk: (chunk.count, chunk.start)).sequence
        reason = str(error).splitlines()[0]
        self._replies.end(
            largest, FinishReason.ERROR, error=f"out of memory in a step of {len(chunks)} requests: {reason}"
        )

    def _end_stuck(self) -> None:
        """Nothing is in flight and nothing may start: to step again would change nothing, for ever."""
        stuck = list(self._replies.requests)
        for request_id in stuck:
            self.abort(request_id)
        raise EngineDead(
            f"{len(stuck)} requests were ended: nothing was in their way, and they did not go on. That is a bug of nanochat's: "
            "load the model again and ask again"
        )

    def _take_in(self, step: PendingStep) -> None:
        healthy, tokens = step.read()
        now = time.perf_counter()
        sampled = iter(tokens)
        for chunk, finite in zip(step.chunks, healthy, strict=True):
            token = next(sampled) if chunk.samples else None
            sequence = chunk.sequence
            sequence.pending -= chunk.samples
            if sequence.status is Status.FINISHED:
                continue  # aborted or stopped while this step was in flight
            if not finite or (token is not None and not token.finite):
                self._replies.end(sequence, FinishReason.ERROR, error=_NOT_FINITE)
                continue
            if sequence.status is Status.RUNNING:
                self.cache.publish(sequence, chunk.start + chunk.count)
            if chunk.start + chunk.count >= len(sequence.prompt):
                sequence.prompt_ready = True
            if token is not None:
                self._replies.grow(sequence, token, now)
            elif sequence.max_tokens == 0 and sequence.prompt_ready:
                sequence.first_token = sequence.last_token = now
                self._replies.end(sequence, FinishReason.LENGTH)

    # Housekeeping -----------------------------------------------------------------------------

    @property
    def sequences(self) -> list[Sequence]:
        """Every sequence that is waiting or running."""
        return self._replies.sequences

    def _check_idle(self) -> None:
        if not self.has_work:
            self._ahead.rest()
            if not self._whole:
                self.scheduler.reclaim()
                self._whole = True
            self.cache.check_idle()

    def check_ranks(self) -> None:
        """Raise EngineDead when another rank is lost, which may happen between steps too."""
        if self.group is not None:
            self.group.check()

    def reset_prefix_cache(self) -> None:
        """Forget every reusable prefix; running requests go on."""
        self.cache.forget()
        for sequence in self.sequences:
            sequence.num_published = 0

    def _run_dry(self) -> None:
        """Nobody waits for what is in flight, but over several ranks it must have ended before one of them goes."""
        try:
            while self._in_flight and (self.group is None or self.group.failure is None):
                self._in_flight.popleft().read()
        except (NanochatError, RuntimeError) as error:  # a device that failed: there is nothing to wait for
            log.info("what was in flight at the end failed: %s", error)
        self._in_flight.clear()

    def close(self) -> None:
        """Give the memory back; the core is of no use after that."""
        self._run_dry()
        self._runner.close()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
