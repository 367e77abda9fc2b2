"""The Python API: the engine's LLM, with models found by name and chats rendered by their template."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from nanochat import hub
from nanochat.engine import llm
from nanochat.engine.outputs import RequestOutput
from nanochat.engine.sampling_params import SamplingParams
from nanochat.errors import UsageError
from nanochat.modelhub import starter
from nanochat.prompt import ChatTemplate, Message, Options

Turn = Message | Mapping[str, Any]
Chat = Sequence[Turn]


class LLM(llm.LLM):
    """A model in memory, for scripts: the `LLM` of vLLM and Nano-vLLM.

    `model` is a folder, the name of a model on this machine such as "Qwen/Qwen3-0.6B", or "starter", which is
    fetched when it is not there yet. See `nanochat.engine.llm.LLM` for the other arguments.
    """

    def _find(self, model: str | Path) -> Path:
        if not str(model):
            raise UsageError(
                'a model is a folder, the name of one on this machine, or "starter", not an empty text'
            )
        if str(model) == "starter":
            return starter.ensure()
        return hub.resolve(str(model)).path

    @cached_property
    def template(self) -> ChatTemplate:
        """The model's chat template.

        Raises:
            InvalidTemplate: it has none, or it cannot be read.
        """
        return ChatTemplate.from_folder(self.config.model, self.tokenizer)

    def chat(
        self,
        messages: Chat | Sequence[Chat],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        thinking: bool | None = None,
    ) -> list[RequestOutput]:
        """Answer chats.

        Args:
            messages: one chat or several. A chat is a list of `{"role": ..., "content": ...}` or `Message`.
            sampling_params: one for all, or one for each chat.
            thinking: on or off where the template has such a switch; `None` leaves it to the template.

        Raises:
            UsageError: a message that is not one; and whatever `generate` raises.
        """
        options = Options(thinking=thinking)
        rendered = [
            self.template.render([_message(turn) for turn in chat], options) for chat in _chats(messages)
        ]
        prompts = [{"prompt": prompt.text, "prompt_token_ids": prompt.ids} for prompt in rendered]
        return self.generate(prompts, sampling_params, use_tqdm)


def _chats(messages: Chat | Sequence[Chat]) -> list[list[Any]]:
    """One chat or several, each a list of what should be messages."""
    many = _listed(messages)
    return [many] if many and isinstance(many[0], (Message, Mapping)) else [_listed(chat) for chat in many]


def _listed(given: object) -> list[Any]:
    if isinstance(given, (str, bytes, Mapping, Message)) or not isinstance(given, Iterable):
        raise UsageError(
            f'a chat is a list of messages such as {{"role": "user", "content": "Hi"}}, not {given!r:.80}'
        )
    return list(cast(Iterable[Any], given))


def _message(turn: object) -> Message:
    if isinstance(turn, Message):
        return turn
    if not isinstance(turn, Mapping):
        raise UsageError(f"a message needs a role and a content that are texts, not {turn!r:.200}")
    turn = cast(Mapping[str, Any], turn)
    role, content = turn.get("role"), turn.get("content")
    if not isinstance(role, str) or not isinstance(content, str):
        raise UsageError(f"a message needs a role and a content that are texts, not {dict(turn)!r:.200}")
    return Message(role, content)
