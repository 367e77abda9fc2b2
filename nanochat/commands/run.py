"""`nanochat run`: one answer to one prompt, or a chat in plain text."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from nanochat import hub
from nanochat.commands.count import Count
from nanochat.commands.piped_text import read_piped_text
from nanochat.commands.progress_line import ProgressLine
from nanochat.engine.config import EngineConfig
from nanochat.engine.outputs import CompletionOutput, FinishReason
from nanochat.engine.sampling_params import SamplingParams
from nanochat.errors import EmptyPrompt, InvalidSampling, UsageError
from nanochat.hub import LocalModel
from nanochat.modelhub.suggestion import Suggestion
from nanochat.settings import Paths, Settings

if TYPE_CHECKING:
    from nanochat.commands.writer import Writer

INTERRUPTED = 130
# A model that has lost the thread never stops. What nobody watches must end all the same; the starter model is
# small enough to lose it often.
_LONGEST_REPLY = 16_384
_LONGEST_STARTER_REPLY = 512
_DTYPES = click.Choice(["auto", "bfloat16", "float16", "float32"])


@click.command()
@click.argument("prompt", required=False)
@click.option("-m", "--model", metavar="MODEL", help="A name from `nanochat models`, a folder, or `starter`.")
@click.option("-s", "--system", metavar="TEXT", help="The system prompt.")
@click.option("--temperature", type=float, metavar="X", help="0 always takes the likeliest token. 0 to 100.")
@click.option(
    "--top-p",
    type=float,
    metavar="X",
    help="Only the likeliest tokens that together reach this share. Above 0, at most 1.",
)
@click.option("--top-k", type=int, metavar="N", help="Only so many of the likeliest tokens; 0 is all.")
@click.option(
    "--min-p", type=float, metavar="X", help="No token less likely than this times the likeliest. 0 to 1."
)
@click.option(
    "--repetition-penalty", type=float, metavar="X",
    help="Above 1: what was said is less likely again. Above 0, at most 10.",
)  # fmt: skip
@click.option(
    "--presence-penalty", type=float, default=0.0, metavar="X",
    help="Above 0: what was said once is less likely. -2 to 2.",
)  # fmt: skip
@click.option(
    "--frequency-penalty", type=float, default=0.0, metavar="X",
    help="Above 0: the more often, the less likely. -2 to 2.",
)  # fmt: skip
@click.option(
    "--max-tokens", type=int, metavar="N",
    help="The longest reply; by default 16384, and 512 for the starter model.",
)  # fmt: skip
@click.option("--seed", type=int, metavar="N", help="The same seed gives the same reply.")
@click.option(
    "--stop", multiple=True, metavar="TEXT", help="End the reply before this text; may be repeated."
)
@click.option("--thinking/--no-thinking", default=None, help="Reason before the answer, where the model can.")
@click.option("--dtype", type=_DTYPES, help="Numbers of weights and cache.")
@click.option("--device", metavar="DEVICE", help="auto, cpu, cuda, or one device such as cuda:1.")
@click.option(
    "--deterministic/--no-deterministic",
    default=None,
    help="The same bits whatever else runs and was cached; slower.",
)
@click.option(
    "--tp", type=Count(), metavar="N",
    help="Over how many devices the model is split; by default as few as hold it.",
)  # fmt: skip
@click.option("--max-model-len", type=int, metavar="N", help="The longest prompt plus reply in tokens.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the text.")
def run(prompt: str | None, model: str | None, as_json: bool, thinking: bool | None, **options: Any) -> None:
    """Answer PROMPT, or chat in plain text when there is none.

    The answer goes to standard output and nothing else does; one line of figures goes to standard error.
    Text that is piped in comes before PROMPT: `cat notes.txt | nanochat run "Summarise this."`

    Values that are not given are the model's own. Ctrl-C stops the reply, keeps what was printed, and exits
    with 130; `nanochat --help` lists the exit codes.
    """
    for given in (prompt, options["system"], *options["stop"]):
        _check_text(given)
    settings, paths = Settings.load(), Paths.find()
    params = _sampling(options)
    config = _engine(options, settings)
    text = _prompt_text(prompt)
    if text is None and as_json:
        raise UsageError("--json needs a PROMPT or text on standard input")
    local = _find_model(model, settings)
    if params.max_tokens is None:
        params = replace(
            params, max_tokens=_LONGEST_STARTER_REPLY if local.source == "starter" else _LONGEST_REPLY
        )
    from nanochat.commands.answering import Answerer
    from nanochat.commands.plain_chat import PlainChat
    from nanochat.commands.writer import Writer
    from nanochat.engine.models.config import ModelConfig

    ModelConfig.from_folder(
        local.path
    )  # what does not run is refused as that, not for want of a chat template
    with Answerer(config(local)) as answerer:
        chat = PlainChat(local.path, system=options["system"] or settings.system_prompt, thinking=thinking)
        if text is None:
            from nanochat.commands.repl import Repl

            Repl(answerer, chat, local.name, params).run()
            return
        suggestion = Suggestion(chosen=model is not None, settings=settings, paths=paths)
        prompt_ids = chat.ask(text)
        writer = Writer(chat.splitter(), silent=as_json)
        reply = answerer.answer(prompt_ids, chat.decoding(params), writer.write)
        writer.end()
        if as_json:
            content = _as_json(reply, writer, local, params)
            click.echo(
                json.dumps(content, ensure_ascii=sys.stdout.isatty())
            )  # a terminal gets no raw characters
        _print_figures(reply, options["max_tokens"] is None, suggestion.line())
    if reply.finish_reason is FinishReason.ABORT:
        sys.exit(INTERRUPTED)


def _check_text(text: str | None) -> None:
    """Python passes undecodable bytes of the command line on as lone surrogates."""
    if text is not None and any("\ud800" <= character <= "\udfff" for character in text):
        raise UsageError("the command line holds bytes that are not UTF-8 text: convert them first")


def _sampling(options: dict[str, Any]) -> SamplingParams:
    """The sampling parameters; a seed is drawn when none was given, so that it can be reported."""
    names = (
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
    )
    if options["max_tokens"] is not None and options["max_tokens"] < 1:
        raise UsageError(f"--max-tokens must be at least 1, not {options['max_tokens']}")
    seed = options["seed"] if options["seed"] is not None else secrets.randbelow(2**31)
    chosen = {name: options[name] for name in (*names, "max_tokens", "stop")}
    try:
        return SamplingParams(**chosen, seed=seed)
    except InvalidSampling as error:  # it begins with the field's name: here it is the option's
        name, _, rest = str(error).partition(" ")
        raise InvalidSampling(f"--{name.replace('_', '-')} {rest}") from error


def _engine(options: dict[str, Any], settings: Settings) -> Callable[[LocalModel], EngineConfig]:
    """What makes the engine's configuration of a model; values are checked before anything is fetched."""
    longest = options["max_model_len"]
    if longest is not None and longest < 1:
        raise UsageError(f"--max-model-len must be at least 1, not {longest}")

    def config(model: LocalModel) -> EngineConfig:
        return EngineConfig(
            model=model.path,
            dtype=options["dtype"] or settings.dtype,
            device=options["device"] or settings.device,
            tensor_parallel_size=options["tp"] or settings.tensor_parallel_size or None,
            max_model_len=longest or settings.max_model_len or None,
            kv_cache_bytes=int(settings.kv_cache_gib * 2**30) or None,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            deterministic=settings.deterministic
            if options["deterministic"] is None
            else options["deterministic"],
            max_num_seqs=8,
        )

    return config


def _prompt_text(prompt: str | None) -> str | None:
    """The piped text and then the prompt; None when the user wants to chat at the terminal."""
    piped = read_piped_text(optional=prompt is not None and prompt != "-")
    parts = [part for part in (piped and piped.rstrip("\n"), None if prompt == "-" else prompt) if part]
    if not parts and prompt is None and piped is None and sys.stdin is not None and sys.stdin.isatty():
        return None
    text = "\n\n".join(parts)
    if not text.strip():
        raise EmptyPrompt('the prompt is empty: write nanochat run "PROMPT", or pipe text into it')
    return text


def _find_model(name: str | None, settings: Settings) -> LocalModel:
    """The model's folder; fetches the starter model, with progress on stderr, when that is the one."""
    line = ProgressLine()
    try:
        return hub.resolve(name, settings=settings, progress=line.starter)
    finally:
        line.erase()


def _print_figures(reply: CompletionOutput, by_default: bool, tip: str | None) -> None:
    """The line of figures; a word when a limit that the user did not set has cut the reply; the tip."""
    print(reply.metrics.line(), file=sys.stderr)
    if by_default and reply.finish_reason is FinishReason.LENGTH:
        count = reply.metrics.output_tokens
        print(
            f"nanochat: cut after {count:,} tokens; --max-tokens allows more, if the context has room",
            file=sys.stderr,
        )
    if tip is not None:
        print(f"nanochat: {tip}", file=sys.stderr)


def _as_json(
    reply: CompletionOutput, writer: Writer, model: LocalModel, params: SamplingParams
) -> dict[str, Any]:
    return {
        "model": model.name,
        "path": str(model.path),
        "text": writer.answer,
        "reasoning": writer.reasoning or None,
        "token_ids": list(reply.token_ids),
        "finish_reason": reply.finish_reason,
        "stop_reason": reply.stop_reason,
        "seed": params.seed,
        "metrics": reply.metrics.as_dict(),
    }
