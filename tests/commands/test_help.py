"""What every command says of itself, on a terminal of 80 columns; and options that stand where no command sees them."""

from __future__ import annotations

import os
import pty
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from nanochat.cli import nanochat
from nanochat.errors import UsageError


def commands(group: click.Group, *path: str) -> Iterator[tuple[str, ...]]:
    """Every command below a group, and the group."""
    yield path
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)
        else:
            yield (*path, name)


@pytest.mark.parametrize("path", commands(nanochat), ids=" ".join)
def test_help_fits_80_columns_cuts_no_sentence_and_leaves_no_option_unsaid(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(nanochat, [*path, "--help"], terminal_width=80, prog_name="nanochat")
    assert result.exit_code == 0
    _usage, *lines = result.stdout.splitlines()
    assert [line for line in lines if len(line) > 80 or line.endswith("...")] == []
    command: click.Command = nanochat
    for name in path:
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), name) or command
    options = [each for each in command.params if isinstance(each, click.Option)]
    assert [each.name for each in options if not each.help] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["models", "--json", "list"], "give --json after the command: nanochat models list --json"),
        (["chats", "--json", "search", "x"], "give --json after the command: nanochat chats search --json"),
        (["chats", "--json", "check"], "nanochat chats check takes no --json"),
        (["bench", "--preset", "quick", "list"], "nanochat bench list takes no --preset"),
    ],
)
def test_an_option_before_a_command_is_refused_not_dropped(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(nanochat, arguments, prog_name="nanochat")
    assert isinstance(result.exception, UsageError) and str(result.exception) == said


def in_a_terminal(arguments: list[str], home: Path, term: str) -> tuple[int, str]:
    """(exit code, everything that was written) of a command in a terminal of that name."""
    ours, its = pty.openpty()
    environment = os.environ | {"NANOCHAT_HOME": str(home), "TERM": term, "HF_ENDPOINT": "http://127.0.0.1:9"}
    process = subprocess.Popen(
        [sys.executable, "-m", "nanochat", *arguments], stdin=its, stdout=its, stderr=its,
        env=environment, start_new_session=True,
    )  # fmt: skip
    os.close(its)
    end = threading.Timer(60.0, process.kill)  # who opened the chat after all stays in it
    end.start()
    written = b""
    try:
        while read := os.read(ours, 65536):
            written += read
    except OSError:  # its end was closed
        pass
    os.close(ours)
    end.cancel()
    return process.wait(60), written.decode()


@pytest.mark.parametrize("arguments", ["models pull org/none", "models verify starter", "chats search sky"])
def test_a_terminal_that_obeys_nothing_gets_no_escapes(starter_home: Path, arguments: str) -> None:
    from nanochat.history import History
    from nanochat.storage.records import Role

    with History.open(starter_home / "data" / "chats") as history:
        history.messages.add(history.chats.create().id, Role.USER, "Why is the sky blue?")
    assert "\x1b" in in_a_terminal(shlex.split(arguments), starter_home, "xterm")[1]
    for term in ("dumb", ""):
        assert "\x1b" not in in_a_terminal(shlex.split(arguments), starter_home, term)[1]


def test_the_chat_does_not_open_where_it_cannot_be_drawn(tmp_path: Path) -> None:
    code, written = in_a_terminal([], tmp_path, "dumb")
    assert code == 2 and "TERM=dumb" in written and "nanochat run" in written and "\x1b" not in written
