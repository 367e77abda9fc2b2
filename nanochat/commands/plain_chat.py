"""A chat as the plain command line keeps it: messages whose replies hold their token ids, and the next prompt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.tokenizer import Tokenizer
from nanochat.errors import UsageError
from nanochat.prompt import ChatTemplate, Message, Options, Prompt
from nanochat.templating.reasoning import ReasoningSplitter


class PlainChat:
    """One chat with one model. Turn N + 1 begins with the very ids of turn N, so the engine has them cached."""

    def __init__(self, folder: Path, *, system: str = "", thinking: bool | None = None) -> None:
        """Read the tokenizer and the template in `folder`.

        Raises:
            InvalidModel, InvalidTemplate, UnsupportedModel: there is none, or it is damaged.
            UsageError: thinking is to be switched and the model has no switch.
        """
        self._template = ChatTemplate.from_folder(folder, Tokenizer.from_folder(folder))
        if thinking is not None and not self._template.can_switch_thinking:
            raise UsageError(
                f"{folder.name} has no switch for thinking: leave --thinking and --no-thinking out"
            )
        self._options = Options(thinking=thinking)
        self.system = system
        self._turns: list[Message] = []
        self._former: Message | None = None  # the reply that is being made anew
        self._prompt: Prompt | None = None

    def ask(self, text: str) -> tuple[int, ...]:
        """Add the user's message and return the prompt for the reply.

        Raises:
            ChatRejected, InvalidTemplate: the template does not take this chat; the message is not added.
        """
        self._turns.append(Message("user", text))
        try:
            return self._render()
        except BaseException:
            self._turns.pop()
            raise

    @property
    def can_repeat(self) -> bool:
        """Whether there is a reply to make anew."""
        return len(self._turns) > 1

    def ask_again(self) -> tuple[int, ...]:
        """Take the last reply back and return the prompt for another one.

        Raises:
            ChatRejected, InvalidTemplate: the template does not take this chat; the reply stays.
        """
        self._former = self._turns.pop()
        try:
            return self._render()
        except BaseException:
            self.withdraw()
            raise

    def replied(self, token_ids: tuple[int, ...]) -> None:
        """Add the reply to the last prompt."""
        if self._prompt is not None:
            self._turns.append(self._template.reply(self._prompt, token_ids, self._options))
            self._former = None

    def withdraw(self) -> None:
        """No reply came: take back the message that got none, or put back the reply that was to be made anew."""
        if self._former is not None:
            self._turns.append(self._former)
            self._former = None
        elif self._turns and self._turns[-1].role == "user":
            self._turns.pop()

    def reset(self) -> None:
        """Begin a new chat under the same system prompt."""
        self._turns.clear()
        self._prompt = self._former = None

    def splitter(self) -> ReasoningSplitter:
        """Tells the reasoning from the answer in the text of the reply to the last prompt."""
        assert self._prompt is not None
        return self._template.splitter(self._prompt)

    def decoding(self, params: SamplingParams) -> SamplingParams:
        """`params` so that the markers of reasoning are in the text that the splitter sees."""
        return replace(params, skip_special_tokens=self._template.skips_special)

    def _render(self) -> tuple[int, ...]:
        system = [Message("system", self.system)] if self.system else []
        self._prompt = self._template.render([*system, *self._turns], self._options)
        return self._prompt.ids
