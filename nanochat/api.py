"""The Python API: the engine's LLM, with models found by name and chats rendered by their template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from nanochat import hub
from nanochat.engine import llm
from nanochat.engine.outputs import RequestOutput
from nanochat.engine.sampling_params import SamplingParams
from nanochat.errors import UsageError
from nanochat.modelhub import starter
from nanochat.prompt import ChatTemplate, Options
from nanochat.templating.plain import Plain
from nanochat.templating.template import Template
from nanochat.templating.turns import Chat, read_chats

_ARGUMENTS = frozenset((
    "messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize",
))  # fmt: skip


class LLM(llm.LLM):
    """A model in memory, for scripts: the `LLM` of vLLM and Nano-vLLM.

    `model` is a folder, the name of a model on this machine such as "Qwen/Qwen3-0.6B", or "starter", which is
    fetched when it is not there yet. See `nanochat.engine.llm.LLM` for the other arguments and errors.

    Raises:
        DownloadError: the starter model is not here and cannot be fetched.
    """

    _other: ChatTemplate | None = None  # the last one that a script gave

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

    @cached_property
    def _tool_template(self) -> ChatTemplate | None:
        return ChatTemplate.for_tools(self.config.model, self.tokenizer)

    def chat(
        self,
        messages: Chat | Sequence[Chat],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        lora_request: object = None,
        chat_template: str | None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tokenization_kwargs: object = None,
        mm_processor_kwargs: object = None,
        *,
        thinking: bool | None = None,
    ) -> list[RequestOutput]:
        """Answer chats. The arguments are those of vLLM's `LLM.chat`, in their order, and `thinking`.

        Texts in messages, tools and `chat_template_kwargs` never become special tokens, whatever they spell.

        Args:
            messages: one chat or several. A chat is a list of `{"role": ..., "content": ...}` or `Message`. A content
                is a text or a list of `{"type": "text", "text": ...}`. A reply may have `tool_calls` and
                `reasoning_content`, an answer of a tool `name` and `tool_call_id`; what else is in it is left out.
            sampling_params: one for all, or one for each chat.
            use_tqdm: show a progress bar on stderr.
            lora_request: refused, as are `tokenization_kwargs` and `mm_processor_kwargs`.
            chat_template: the text of a Jinja template in place of the model's own; it runs in the same sandbox.
            chat_template_content_format: how the template gets contents: "string": as texts, parts in a line each;
                "openai": as lists of parts; "auto": lists as lists where the template takes them, else as texts.
            add_generation_prompt: begin a reply; without it, the model goes on behind the last message.
            continue_final_message: the model goes on with the last message's text. Needs `add_generation_prompt=False`.
            tools: what the model may call: JSON schemas. Its calls are in the text of its reply.
            chat_template_kwargs: variables for the template, such as `enable_thinking`; those that it does not know
                have no effect.
            tokenization_kwargs: refused.
            mm_processor_kwargs: refused.
            thinking: on or off where the template has such a switch, else nothing; `None` leaves it to the template.

        Raises:
            UsageError: a message that is not one, an argument that means nothing here; and whatever `generate` raises.
            ChatRejected, InvalidTemplate: the template does not take the chat, or fails.
        """
        llm.refuse({
            "lora_request": lora_request, "tokenization_kwargs": tokenization_kwargs,
            "mm_processor_kwargs": mm_processor_kwargs,
        })  # fmt: skip
        if chat_template is not None:
            template = self._other_template(chat_template)
        else:
            template = (self._tool_template if tools else None) or self.template
        chats = read_chats(
            messages,
            chat_template_content_format,
            takes_text=template.takes_text,
            takes_parts=template.takes_parts,
        )
        options = _options(template, tools, chat_template_kwargs, thinking)
        ends = {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
        }
        _check_switches(ends)
        rendered = [template.render(chat, options, **ends) for chat in chats]
        prompts = [{"prompt": prompt.text, "prompt_token_ids": prompt.ids} for prompt in rendered]
        return self.generate(prompts, sampling_params, use_tqdm)

    def _other_template(self, source: object) -> ChatTemplate:
        if not isinstance(source, str) or "{" not in source:
            raise UsageError(
                f"chat_template is the text of a Jinja template, not {source!r:.80}: read the file that holds it"
            )
        other = self._other
        if other is None or other.template.source != source:
            self._other = other = ChatTemplate(Template(source), self.tokenizer)
        return other


def _check_switches(given: Mapping[str, object]) -> None:
    for name, value in given.items():
        if not isinstance(value, bool):
            raise UsageError(f"{name} must be True or False, not {value!r:.80}")


def _options(
    template: ChatTemplate,
    tools: Sequence[Mapping[str, Any]] | None,
    variables: Mapping[str, Any] | None,
    thinking: bool | None,
) -> Options:
    """How the chats are rendered; a template's switch for thinking is `thinking`, under whichever name it is given."""
    if thinking is not None:
        _check_switches({"thinking": thinking})
    own = _variables(variables)
    switch = template.thinking_switch
    if switch is not None and isinstance(own.get(switch), bool):
        if thinking not in (None, own[switch]):
            raise UsageError(
                f"thinking is {thinking}, and {switch} of chat_template_kwargs {own[switch]}: give one"
            )
        thinking = own.pop(switch)
    if tools is not None:
        own["tools"] = _tools(tools)
        if own["tools"] and not template.takes_tools:
            raise UsageError(
                "this chat template writes no tools, so the model would never see them: give another chat_template"
            )
    return Options(thinking, variables=Plain.of("what is for the template", own) if own else None)


def _variables(given: object) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise UsageError(f"chat_template_kwargs is a dict of variables for the template, not {given!r:.80}")
    own = Plain.of("chat_template_kwargs", cast("Mapping[str, Any]", given)).copy(str)
    for name in _ARGUMENTS & own.keys():
        raise UsageError(f"chat_template_kwargs cannot hold {name}, which is an argument of its own")
    return own


def _tools(given: object) -> list[Any]:
    if not isinstance(given, (list, tuple)):
        raise UsageError(f"tools is a list of JSON schemas, not {given!r:.80}")
    for tool in cast("Sequence[object]", given):
        if not isinstance(tool, Mapping):
            raise UsageError(f"a tool is a JSON schema, a dict, not {tool!r:.80}")
    return list(cast("Sequence[Any]", given))
