"""`nanochat chats`: list, search, show, export and import the chats on this machine, and check that they are whole.

Everything that was not written by us passes `sanitize()` before it is printed. An export into a file or a pipe is
exact; on a terminal it is sanitized too.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from nanochat.commands.count import Count
from nanochat.commands.misplaced import refuse_misplaced
from nanochat.commands.progress_line import redraws
from nanochat.errors import HistoryDamaged, HistoryError, UsageError
from nanochat.exchange.bundle import ChatBundle
from nanochat.exchange.json_file import to_json
from nanochat.exchange.markdown_file import iso_time, to_markdown
from nanochat.exchange.reading import read_chats
from nanochat.history import History, chats_folder
from nanochat.sanitize import sanitize, sanitize_line
from nanochat.storage.faults import newest_backup
from nanochat.storage.files import NAME, set_aside
from nanochat.storage.records import Chat, Found, Message, Role, Status

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_WHO = {Role.USER: "You", Role.ASSISTANT: "Model", Role.SYSTEM: "System", Role.TOOL: "Tool"}


@click.group(invoke_without_command=True)
@JSON
@click.pass_context
def chats(context: click.Context, as_json: bool) -> None:
    """List, search, show, export, import and check your chats. Without a command they are listed."""
    if context.invoked_subcommand is not None:
        refuse_misplaced(context)
        return
    context.invoke(list_chats, deleted=False, limit=None, as_json=as_json)


@chats.command("list")
@click.option("--deleted", is_flag=True, help="Show those that were deleted and wait for the purge.")
@click.option("--limit", type=Count(), metavar="N", help="Show at most this many.")
@JSON
def list_chats(deleted: bool, limit: int | None, as_json: bool) -> None:
    """List the chats: pinned first, then by their last change."""
    with History.open(chats_folder()) as history:
        found = history.chats.list(deleted=deleted)[:limit]
    if as_json:
        _echo_json([_chat_json(chat) for chat in found])
    elif not found:
        click.echo("No deleted chats." if deleted else "No chats yet. Start one with `nanochat`.")
    else:
        for chat in found:
            click.echo(_line(chat))


@chats.command(short_help="Find the chats that hold every word.")
@click.argument("words", nargs=-1, required=True)
@click.option(
    "--limit", type=Count(), metavar="N", default=20, show_default=True, help="Show at most this many chats."
)
@JSON
def search(words: Sequence[str], limit: int, as_json: bool) -> None:
    """Find the chats with a message, or a title, that holds every word; parts of words count."""
    with History.open(chats_folder()) as history:
        found = history.search(" ".join(words), chats=limit)
    if as_json:
        _echo_json([_found_json(each) for each in found])
    elif not found:
        click.echo("Nothing found.")
    for each in () if as_json else found:
        click.echo(_line(each.chat))
        for hit in each.hits:
            click.echo(f"    {_WHO[hit.role]}: {_marked(hit.snippet.text, hit.snippet.spans)}")


@chats.command(short_help="Bring a deleted chat back.")
@click.argument("chat")
def restore(chat: str) -> None:
    """Bring a deleted chat back, by its id or the start of it: `nanochat chats list --deleted` shows them for 30 days."""
    with History.open(chats_folder()) as history:
        found = history.chats.find(chat, deleted=True)
        history.chats.restore(found.id)
    click.echo(f"Back: {_line(found)}")


@chats.command()
@click.argument("chat")
@click.option("--reasoning", is_flag=True, help="Show the model's reasoning too.")
def show(chat: str, reasoning: bool) -> None:
    """Print a chat, by its id or the start of it."""
    with History.open(chats_folder()) as history:
        conversation = history.messages.open(history.chats.find(chat).id)
    click.echo(_line(conversation.chat))
    for message in conversation.messages:
        click.echo(f"\n--- {_caption(message)}")
        if reasoning and message.reasoning:
            click.echo(f"[thinking]\n{sanitize(message.reasoning)}\n[answer]")
        click.echo(sanitize(message.content))
    for running in conversation.running:
        click.echo(f"\n--- Model · is being written\n{sanitize(running.content)}")


@chats.command()
@click.argument("ids", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Export every chat.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["md", "json"]),
    default=None,
    help="md to read and edit; json with every variant and the same ids. Default: by the file's name, else md.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=None,
    help="A file, or a folder for several chats as Markdown. Default: standard output.",
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def export(ids: Sequence[str], everything: bool, kind: str | None, output: Path | None, force: bool) -> None:
    """Write chats to a file, by their ids or the starts of them."""
    if bool(ids) == everything:
        raise UsageError("Give the ids of the chats to export, or --all. `nanochat chats list` shows them.")
    kind = kind or ("json" if output is not None and output.suffix == ".json" else "md")
    with History.open(chats_folder()) as history:
        names = (
            [chat.id for chat in history.chats.list()]
            if everything
            else [history.chats.find(each).id for each in ids]
        )
        bundles = [history.bundle(name) for name in dict.fromkeys(names)]
    if not bundles:
        click.echo("No chats to export.", err=True)
    elif output is None:
        _print_out(bundles, kind)
    elif kind == "md" and (output.is_dir() or len(bundles) > 1):
        for bundle in bundles:
            _write(output / f"{_file_name(bundle)}.md", to_markdown(bundle), force)
        click.echo(f"Exported {_count(len(bundles), 'chat')} to {sanitize_line(str(output))}.")
    else:
        _write(output, to_json(bundles) if kind == "json" else to_markdown(bundles[0]), force)
        click.echo(f"Exported {_count(len(bundles), 'chat')} to {sanitize_line(str(output))}.")


@chats.command("import", short_help="Import chats: nanochat's, ChatGPT's or llm's.")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
def import_chats(files: Sequence[Path]) -> None:
    """Import chats: JSON or Markdown that nanochat exported, ChatGPT's conversations.json, or the database of llm.

    All of the files or none. A chat that is here already gets what it lacks.
    """
    bundles = [bundle for file in files for bundle in read_chats(file)]
    with History.open(chats_folder()) as history:
        done = history.take_in(bundles)
    click.echo(
        f"Imported {_count(len(done.chats), 'chat')}: {done.new_chats} new, "
        f"{len(done.chats) - done.new_chats} here already; "
        f"{_count(done.new_messages, 'new message')}."
    )


@chats.command(short_help="Check that the chats are whole.")
@click.option("--rebuild-search", is_flag=True, help="Make the search index anew first.")
def check(rebuild_search: bool) -> None:
    """Check the file, every message against its id, and the search index."""
    with History.open(chats_folder()) as history:
        if rebuild_search:
            history.rebuild_search()
        faults = history.check()
        number = len(history.chats.list())
    for fault in faults:
        click.echo(sanitize(fault), err=True)
    if faults:
        raise HistoryDamaged(
            f"The chats have {_count(len(faults), 'fault')}. Export what you can, and keep a backup."
        )
    click.echo(f"All is well: {_count(number, 'chat')}, every message as it was written.")


@chats.command("set-aside")
@click.option("--restore", is_flag=True, help="Start from the newest backup instead of an empty history.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def set_aside_chats(restore: bool, yes: bool) -> None:
    """Move a damaged history aside. Nothing is deleted."""
    folder = chats_folder()
    backup = newest_backup(folder / NAME) if restore else None
    if restore and backup is None:
        raise HistoryError(
            f"There is no backup in {folder / 'backups'}. Without --restore, an empty history is started."
        )
    if not (folder / NAME).exists():
        raise HistoryError(f"There are no chats at {folder / NAME}.")
    begin = f"go on from the backup {backup}" if backup else "begin with an empty history"
    if not yes and not sys.stdin.isatty():
        raise UsageError("this moves the chats aside and there is no terminal to ask in: add --yes")
    if not yes and not click.confirm(f"Move {folder / NAME} aside, and {begin}?"):
        return
    click.echo(f"The old history is kept at {set_aside(folder, backup=backup)}.")


def _echo_json(values: Sequence[dict[str, Any]]) -> None:
    # In ASCII, where JSON escapes every control character but one.
    click.echo(json.dumps(values, indent=2).replace("\x7f", "\\u007f"))


def _print_out(bundles: Sequence[ChatBundle], kind: str) -> None:
    if kind == "md" and len(bundles) > 1:
        raise UsageError(
            f"{len(bundles)} chats as Markdown are {len(bundles)} files: give a folder with -o, or --format json."
        )
    terminal = sys.stdout.isatty()
    text = to_json(bundles, ascii_only=terminal) if kind == "json" else to_markdown(bundles[0])
    click.echo((sanitize(text) if terminal else text).encode(), nl=False)  # bytes: no locale may change them


def _write(path: Path, text: str, force: bool) -> None:
    """Write a file that only the user may read, whole or not at all; a pipe, a device or a terminal is written to."""
    if path.exists() and not path.is_file() and not path.is_dir():
        return _write_into(path, text)
    if path.exists() and not force:
        raise UsageError(f"{path} is there already. Give another name, or --force to replace it.")
    try:
        target = path.resolve()  # a link stays one
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=".exporting-", dir=target.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
                file.write(text)
            os.replace(temporary, target)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise HistoryError(
            f"{path} cannot be written: {error.strerror}. Choose another place with -o."
        ) from error


def _write_into(path: Path, text: str) -> None:
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            file.write(sanitize(text) if file.isatty() else text)
    except OSError as error:
        raise HistoryError(
            f"{path} cannot be written: {error.strerror}. Choose another place with -o."
        ) from error


def _file_name(bundle: ChatBundle) -> str:
    """A name from the title that every file system takes, with the id, which no other chat has."""
    kept = "".join(each if each.isalnum() else "-" for each in bundle.title)
    return "-".join(part for part in (*kept.split("-")[:8], bundle.id) if part)[-80:].strip("-")


def _line(chat: Chat) -> str:
    when = datetime.fromtimestamp(chat.updated).strftime("%Y-%m-%d %H:%M")
    title = sanitize_line(chat.title) or "(no title)"
    return f"{chat.id}  {when}  {_count(chat.messages, 'message'):>13}  {'* ' if chat.pinned else ''}{title}"


def _caption(message: Message) -> str:
    parts = [_WHO[message.role], datetime.fromtimestamp(message.created).strftime("%Y-%m-%d %H:%M")]
    parts += [sanitize_line(message.model)] if message.model else []
    parts += [message.status.value] if message.status is not Status.DONE else []
    parts += [f"variant {message.variant}/{message.variants}"] if message.variants > 1 else []
    return " · ".join(parts)


def _marked(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """A snippet with its matches in bold, where the terminal shows it."""
    out, at, bold = "", 0, redraws(sys.stdout)
    for start, end in spans:
        match = sanitize_line(text[start:end])
        out += sanitize_line(text[at:start]) + (click.style(match, bold=True) if bold else match)
        at = end
    return out + sanitize_line(text[at:])


def _chat_json(chat: Chat) -> dict[str, Any]:
    return {
        "id": chat.id, "title": chat.title, "pinned": chat.pinned, "created": iso_time(chat.created),
        "updated": iso_time(chat.updated), "messages": chat.messages,
    }  # fmt: skip


def _found_json(found: Found) -> dict[str, Any]:
    hits = [
        {
            "message": hit.message,
            "role": hit.role.value,
            "snippet": hit.snippet.text,
            "matches": hit.snippet.spans,
        }
        for hit in found.hits
    ]
    return _chat_json(found.chat) | {"hits": hits}


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
