"""The command line: which commands there are, and how every failure becomes one line and an exit code.

Nothing heavy is imported here: each command lives in a module of its own that is imported when it is run.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import click

from nanochat import __version__, disk_faults
from nanochat.commands.count import Count
from nanochat.commands.misplaced import refuse_misplaced
from nanochat.commands.output import guarded_streams
from nanochat.environment import debugging, end_at_once, log_to, set_variables
from nanochat.errors import NanochatError, UsageError
from nanochat.sanitize import sanitize_line
from nanochat.settings import Paths

INTERRUPTED = 130
BROKEN_PIPE = 141
INTERNAL_ERROR = 70


@dataclass(frozen=True, slots=True)
class _Entry:
    """A command that is not imported yet."""

    module: str
    attribute: str
    help: str


_COMMANDS = {
    "run": _Entry("nanochat.commands.run", "run", "Answer one prompt, or chat in plain text."),
    "models": _Entry("nanochat.commands.models", "models", "The models on this machine."),
    "chats": _Entry(
        "nanochat.commands.chats", "chats", "Your chats: list, search, show, export, import, check."
    ),
    "bench": _Entry("nanochat.commands.bench", "bench", "Measure how fast this machine runs a model."),
    "doctor": _Entry(
        "nanochat.commands.doctor", "doctor", "Say what was found on this machine, and what is wrong."
    ),
}

_EXIT_CODES = """\b
Exit codes:
  0    done
  1    something failed
  2    wrong usage, a value outside its range, no such chat or kept run, or no
       file of chats
  3    model not found, damaged or not supported
  4    download failed, or no network
  5    longer than the model's context
  6    not enough memory
  7    the model produced no valid numbers
  8    the engine stopped
  9    the chats on disk cannot be read or written
  70   a bug in nanochat: the log has the details
  130  interrupted with Ctrl-C
  141  the reader of the output went away
"""


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are run, not when they are listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, entry in _COMMANDS.items() if importlib.util.find_spec(entry.module)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        entry = _COMMANDS[cmd_name]
        return getattr(importlib.import_module(entry.module), entry.attribute)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. Ctrl-C and a reader that went away end the process at once: threads may be in torch."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            leave_quietly()
        except KeyboardInterrupt:
            interrupted()
        return result

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _COMMANDS[name].help) for name in self.list_commands(ctx)])


@click.group(
    cls=_LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_EXIT_CODES,
)
@click.version_option(__version__, "-V", "--version", message="nanochat %(version)s")
@click.option("-m", "--model", metavar="MODEL", help="A name from `nanochat models`, a folder, or `starter`.")
@click.option(
    "--tp", type=Count(), metavar="N",
    help="Over how many devices a model is split; by default as few as hold it.",
)  # fmt: skip
@click.pass_context
def nanochat(context: click.Context, model: str | None, tp: int | None) -> None:
    """Talk to a language model that runs in this program.

    Without a command the chat opens.
    """
    if context.invoked_subcommand is not None:
        refuse_misplaced(context, ": it is for the chat, `run` and `bench`")
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError('the chat needs a terminal; for one answer use `nanochat run "PROMPT"`')
    if os.environ.get("TERM") == "dumb":
        raise UsageError(
            "this terminal is TERM=dumb, which cannot show the chat: use `nanochat run`, which chats in plain text"
        )
    if importlib.util.find_spec("nanochat.ui.launch") is None:
        raise UsageError("this build has no chat screen: use `nanochat run`, which chats in plain text")
    app: Any = importlib.import_module("nanochat.ui.launch")
    app.main(model, tp)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit. `arguments` default to the process's own."""
    end_at_once()
    set_variables()
    log_to(Paths.find().log_file)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # a terminal that cannot show a character shows "?" in its place
            reconfigure(errors="replace")
    with guarded_streams():
        try:
            sys.exit(_run(arguments))
        except BrokenPipeError:
            leave_quietly()
        except Exception as error:
            fail(error)


def _run(arguments: Sequence[str] | None) -> int:
    """Run the command line; returns the exit code when all that was written has arrived."""
    try:
        code = nanochat.main(arguments, prog_name="nanochat", standalone_mode=False)
    finally:
        sys.stdout.flush()
    return code if isinstance(code, int) else 0


def fail(error: Exception) -> NoReturn:
    """End with one line on stderr and the error's exit code; the traceback goes to the log."""
    if debugging():
        raise error
    if isinstance(error, click.exceptions.Abort):
        interrupted()
    if isinstance(error, click.exceptions.Exit):
        sys.exit(error.exit_code)
    if isinstance(error, click.UsageError):
        where = f" (see `{error.ctx.command_path} --help`)" if error.ctx is not None else ""
        _complain(error.format_message() + where, error.exit_code)
    if isinstance(error, click.ClickException):
        _complain(error.format_message(), error.exit_code)
    if isinstance(error, NanochatError):
        _complain(str(error), error.exit_code)
    logging.getLogger("nanochat").error("an unexpected error", exc_info=error)
    if isinstance(error, OSError) and disk_faults.is_of_the_disk(error):
        _complain(disk_faults.explain(error), NanochatError.exit_code)
    log_file = Paths.find().log_file
    where = "" if disk_faults.why_unwritable(log_file) else f" The details are in {log_file};"
    _complain(
        f"a bug: {type(error).__name__}: {error}.{where} NANOCHAT_DEBUG=1 shows them here".rstrip(),
        INTERNAL_ERROR,
    )


def interrupted() -> NoReturn:
    """End at once after Ctrl-C; threads that still import torch are not waited for."""
    if sys.stderr.isatty():
        print(file=sys.stderr)  # the terminal has echoed ^C
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(INTERRUPTED)


def leave_quietly() -> NoReturn:
    """End because nobody reads the output any more; nothing may be flushed into it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os._exit(BROKEN_PIPE)


def _complain(message: str, code: int) -> NoReturn:
    print(f"nanochat: {sanitize_line(message)}", file=sys.stderr)
    sys.exit(code)
