"""A chat in plain lines, for screen readers, dumb terminals and everybody who likes it so."""

from __future__ import annotations

import importlib
import os
import secrets
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

from nanochat import __version__
from nanochat.commands.answering import Answerer
from nanochat.commands.plain_chat import PlainChat
from nanochat.commands.typed_ahead import is_terminal, kept_for_the_prompt
from nanochat.commands.writer import Writer
from nanochat.engine.outputs import FinishReason
from nanochat.engine.sampling_params import SamplingParams
from nanochat.errors import ContextOverflow, EngineDead, ModelError, NanochatError, OutOfMemory
from nanochat.sanitize import sanitize_line

_PROMPT = "> "
_FATAL = (EngineDead, ModelError, OutOfMemory)


@dataclass(frozen=True, slots=True)
class _Command:
    """What is typed, what it does, and who does it."""

    names: tuple[str, ...]
    help: str
    act: Callable[[str], None]


class Repl:
    """Reads a line, answers it, and again. Every turn reuses the cached prefix; its figures say how much."""

    def __init__(self, answerer: Answerer, chat: PlainChat, model: str, params: SamplingParams) -> None:
        """`params` hold the first seed; every further reply has one of its own, drawn after it."""
        self._answerer, self._chat, self._model, self._params = answerer, chat, model, params
        self._over = self._edits = False
        self._commands = (
            _Command(("/help", "/?"), "show this", self._help),
            _Command(("/regenerate", "/retry", "/again"), "answer the last message anew", self._regenerate),
            _Command(("/system",), "show the system prompt, or set it: /system TEXT", self._system),
            _Command(("/reset", "/new"), "begin a new chat", self._reset),
            _Command(("/exit", "/quit", "/bye"), "leave; so do Ctrl-D, and Ctrl-C at the prompt", self._exit),
        )

    def run(self) -> None:
        """Chat until the user leaves."""
        self._say(
            f"nanochat {__version__}, {sanitize_line(self._model)}. /help lists the commands, Ctrl-D leaves."
        )
        self._edits = _enable_line_editing()
        while not self._over:
            try:
                text = self._read()
            except (EOFError, KeyboardInterrupt):
                self._say("")
                return
            if text.startswith("/") and ("\n" not in text.strip() or self._named(text) is not None):
                self._command(text)
            elif text.strip():
                self._answer(lambda text=text: self._chat.ask(text))

    def _read(self) -> str:
        """One message; a backslash at the end of a line continues it on the next."""
        lines: list[str] = []
        while True:
            line = _read_line(_PROMPT if not lines else ". ")
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])

    def _answer(self, prompt: Callable[[], tuple[int, ...]]) -> None:
        """Stream one reply; an error is one line, and the chat goes on where it was."""
        try:
            prompt_ids = prompt()
            writer = Writer(self._chat.splitter())
            with kept_for_the_prompt() if self._edits else nullcontext():
                reply = self._answerer.answer(prompt_ids, self._chat.decoding(self._params), writer.write)
        except _FATAL:
            raise
        except NanochatError as error:
            self._chat.withdraw()
            self._say(f"nanochat: {sanitize_line(str(error))}")
            if isinstance(error, ContextOverflow):
                self._say("nanochat: /reset begins a new chat")
            return
        except KeyboardInterrupt:
            self._chat.withdraw()
            self._say("\nnanochat: stopped")
            return
        self._chat.replied(reply.token_ids)
        writer.end()
        stopped = " · stopped" if reply.finish_reason is FinishReason.ABORT else ""
        self._say(reply.metrics.line() + stopped)
        self._params = replace(self._params, seed=secrets.randbelow(2**31))

    def _command(self, text: str) -> None:
        name, command = text.split(maxsplit=1)[0], self._named(text)
        if command is None:
            self._say(f"nanochat: there is no command {sanitize_line(name)}; /help lists them")
        else:
            command.act(text.removeprefix(name).strip())

    def _named(self, text: str) -> _Command | None:
        """The command that a text's first word names; a paste that begins with any other slash is a message."""
        return next((each for each in self._commands if text.split(maxsplit=1)[0] in each.names), None)

    def _help(self, rest: str) -> None:
        for command in self._commands:
            self._say(f"  {command.names[0]:<12} {command.help}")
        self._say(
            "  A backslash at the end of a line continues the message; a paste is one. Ctrl-C stops a reply."
        )

    def _regenerate(self, rest: str) -> None:
        if not self._chat.can_repeat:
            self._say("nanochat: there is no reply yet to make anew")
            return
        self._answer(self._chat.ask_again)

    def _system(self, rest: str) -> None:
        if rest:
            self._chat.system = rest
            self._chat.reset()
            self._say("The system prompt is set; a new chat begins.")
        else:
            self._say(self._chat.system or "There is no system prompt but the model's own.")

    def _reset(self, rest: str) -> None:
        self._chat.reset()
        self._say("A new chat begins.")

    def _exit(self, rest: str) -> None:
        self._over = True

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def _enable_line_editing() -> bool:
    """Arrow keys, pastes as one message and a history where the terminal can; nothing is written to disk.

    Returns whether pastes are one message.
    """
    if (os.environ.get("TERM") or "dumb") == "dumb":
        return False
    try:
        readline = importlib.import_module("readline")  # importing it is what turns it on
    except ImportError:  # a Python built without it: plain lines
        return False
    if "libedit" in (readline.__doc__ or ""):
        return False
    readline.parse_and_bind("set enable-bracketed-paste on")  # Python turns it off for its own prompt
    return is_terminal()


def _read_line(prompt: str) -> str:
    """One line from the terminal. The prompt never goes to standard output when that is a file or a pipe."""
    if sys.stdout.isatty():
        return input(prompt)
    print(prompt, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")
