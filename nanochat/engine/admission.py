"""What may run, and as what: a request becomes sequences, or is refused before anything is queued."""

from __future__ import annotations

import hashlib
import secrets
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING

from nanochat.engine.bad_words import Spellings, spell
from nanochat.engine.config import EngineConfig
from nanochat.engine.detokenizer import IncrementalDetokenizer
from nanochat.engine.request import Request
from nanochat.engine.sampler import reply_seed
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.sequence import Sequence
from nanochat.errors import ContextOverflow, EmptyPrompt, InvalidSampling

if TYPE_CHECKING:
    from nanochat.engine.models.config import ModelConfig
    from nanochat.engine.tokenizer import Tokenizer


class Admission:
    """Owned by the core."""

    def __init__(
        self,
        config: EngineConfig,
        model_config: ModelConfig,
        tokenizer: Tokenizer | None,
        max_model_len: int,
        fingerprint: str,
    ) -> None:
        self._config = config
        self._model_config = model_config
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len
        self._root = hashlib.sha256(f"{fingerprint}|{config.prefix_salt}".encode()).digest()
        self._arrivals = count()
        self._spelled = lru_cache(16)(self._spell)

    def check(self, request: Request) -> SamplingParams:
        """Refuse what can never run, before anything is queued; the parameters with the model's defaults filled in.

        Raises:
            EmptyPrompt, ContextOverflow, InvalidSampling.
        """
        length, vocabulary = len(request.prompt_ids), self._model_config.vocab_size
        if length == 0:
            raise EmptyPrompt("the prompt has no tokens: there is nothing to continue")
        if length > self._max_model_len - (request.params.max_tokens != 0):
            longer = ", or load the model with a longer context (max_model_len, --max-model-len)"
            raise ContextOverflow(
                f"the prompt has {length:,} tokens and the context holds {self._max_model_len:,}, one of them for the "
                f"reply: shorten it{longer if self._max_model_len < self._model_config.max_position_embeddings else ''}"
            )
        worst = max(request.prompt_ids) if min(request.prompt_ids) >= 0 else min(request.prompt_ids)
        if not 0 <= worst < vocabulary:
            raise InvalidSampling(f"token id {worst} is outside the model's vocabulary of {vocabulary:,}")
        for token in (*request.params.stop_token_ids, *(request.params.logit_bias or ())):
            if token >= vocabulary:
                raise InvalidSampling(f"token id {token} is outside the model's vocabulary of {vocabulary:,}")
        if request.params.stop_strings and self._tokenizer is None:
            raise InvalidSampling(
                "stop strings need a tokenizer, and this engine was loaded with skip_tokenizer"
            )
        self._spelled(request.params.bad_words or ())
        return request.params.resolved(self._model_config.generation_defaults)

    def sequences(self, request: Request, submitted: float) -> list[Sequence]:
        """The request's `params.n` sequences. Raises as `check` does.

        Args:
            submitted: when, on `time.perf_counter`'s clock.
        """
        params = self.check(request)
        prompt = tuple(request.prompt_ids)
        room = self._max_model_len - len(prompt)
        seed = params.seed if params.seed is not None else self._draw_seed()
        root = self._root
        if not self._config.enable_prefix_caching:
            root = hashlib.sha256(
                root + request.request_id.encode()
            ).digest()  # shared by the request's own replies only
        sequences: list[Sequence] = []
        for index in range(params.n):
            sequence = Sequence(
                request_id=request.request_id,
                index=index,
                prompt=prompt,
                params=params,
                seed=reply_seed(seed, index),
                priority=request.priority,
                arrival=next(self._arrivals),
                submitted=submitted,
                max_tokens=room if params.max_tokens is None else min(params.max_tokens, room),
                root=root,
                eos_ids=frozenset() if params.ignore_eos else frozenset(self._model_config.eos_token_ids),
                bad_words=self._spelled(params.bad_words or ()),
                leader=sequences[0] if sequences else None,
            )
            if self._tokenizer is not None:
                sequence.detokenizer = IncrementalDetokenizer(self._tokenizer, params, prompt)
            sequences.append(sequence)
        return sequences

    def _spell(self, words: tuple[str, ...]) -> Spellings:
        if not words:
            return ()
        if self._tokenizer is None:
            raise InvalidSampling(
                "bad_words need a tokenizer, and this engine was loaded with skip_tokenizer"
            )
        return spell(words, self._tokenizer, self._model_config.vocab_size)

    def _draw_seed(self) -> int:
        if self._config.seed is None:
            return secrets.randbits(64)
        return reply_seed(self._config.seed, next(self._arrivals) + 1)
