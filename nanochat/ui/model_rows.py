"""The table of models as text: rows of cells, and which columns fit into a width. No Textual here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.cells import cell_len

from nanochat.modelhub.catalog import Listing
from nanochat.modelhub.download import Download, State
from nanochat.modelhub.fit import Fit, tokens
from nanochat.modelhub.text import Here, amount, duration, size, speed
from nanochat.sanitize import sanitize_line
from nanochat.transfer.leftovers import Leftover
from nanochat.ui.cells import fixed

Kind = Literal["heading", "download", "here", "listing", "leftovers", "words"]
Tone = Literal["", "good", "bad", "dim", "active"]

_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float8_e4m3fn": "fp8"}
_BAR = 24
_STATE = len("100 % ") + _BAR  # the bar last: where there is no room, it is what is cut
_GAP = 2
_NAME_LEAST, _NAME_MOST, _NOTE_LEAST = 18, 44, 14


@dataclass(frozen=True, slots=True)
class Column:
    """One column. Columns of a lower `rank` stay longest when the width shrinks."""

    name: str
    width: int
    rank: int
    right: bool = False


COLUMNS = (
    Column("params", 6, 3, right=True),
    Column("dtype", 5, 6),
    Column("size", 8, 2, right=True),
    Column("context", 7, 4, right=True),
    Column("licence", 12, 5),
    Column("gated", 5, 7),
    Column("fit", 19, 1),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One row: what it stands for, its cells, and where it is more than a line of cells, its further lines."""

    key: str
    kind: Kind
    name: str
    cells: dict[str, str] = field(default_factory=dict[str, str])
    mark: str = ""
    tone: Tone = ""
    """Of its fit."""
    more: tuple[str, ...] = ()
    fit: Fit | None = None
    about: tuple[str, ...] = ()
    """What the pane of details says of it."""


Piece = tuple[str, str]
"""A text and the part of the row that it is: a column's name, "name", "mark", "more"."""


def columns_for(width: int) -> list[Column]:
    """The columns that fit beside a name of a width that can be read."""
    left = width - 2 - _NAME_LEAST
    kept: set[str] = set()
    for column in sorted(COLUMNS, key=lambda column: column.rank):
        if column.width + _GAP > left:
            break
        kept.add(column.name)
        left -= column.width + _GAP
    return [column for column in COLUMNS if column.name in kept]


def lines_of(row: Row, width: int) -> list[list[Piece]]:
    """A row at this width, as lines of pieces; every piece is cleaned: names and errors come from outside."""
    columns = columns_for(width)
    if row.kind == "words":
        return [[(fixed("  " + sanitize_line(row.name), width), "more")]]
    if row.kind == "leftovers":
        return [[(f"{row.mark:<2}", "mark"), (fixed(sanitize_line(row.name), width - 2), "more")]]
    room = width - 2 - sum(column.width + _GAP for column in columns)
    if row.kind == "download":
        room = max(width - 4 - _STATE, _NAME_LEAST)
    most = 40 if row.kind == "download" else _NAME_MOST
    name = _named(sanitize_line(row.name), min(room, most), from_left=row.kind == "heading")
    first: list[Piece] = [(f"{row.mark:<2}", "mark"), (name, "name")]
    if row.kind == "download":
        first += [("  ", ""), (row.cells.get("state", ""), "fit")]
    else:
        for column in columns:
            cell = sanitize_line(row.cells.get(column.name, ""))
            first += [(" " * _GAP, ""), (fixed(cell, column.width, right=column.right), column.name)]
        left = width - 2 - min(room, most) - sum(column.width + _GAP for column in columns) - _GAP
        if left >= _NOTE_LEAST and row.cells.get("note"):
            first += [(" " * _GAP, ""), (fixed(sanitize_line(row.cells["note"]), left).rstrip(), "note")]
    further = [[(fixed("  " + sanitize_line(text), width), "more")] for text in row.more]
    return [first, *further]


def heading(title: str, *, of: Literal["here", "listing", ""] = "") -> Row:
    """The line above a group, with the titles of its columns."""
    titles = {
        "params": "PARAMS", "dtype": "DTYPE", "size": "ON DISK" if of == "here" else "DOWNLOAD", "context": "CONTEXT",
        "licence": "LICENCE", "gated": "GATED", "fit": "FIT",
    }  # fmt: skip
    return Row(f"heading:{title}", "heading", title, titles if of else {})


def words(key: str, text: str) -> Row:
    """A line of words in a group."""
    return Row(f"words:{key}", "words", text)


def here_row(one: Here, *, state: str = "", loaded: bool = False) -> Row:
    """A model on this machine. `state` stands in the place of its fit: loaded, loading, verifying."""
    model = one.model
    missing = f"{model.missing} files missing" if model.missing else ""
    cells = _cells(
        one.parameters, model.dtype, model.size, model.context, one.licence, bool(one.gated), one.fit
    )
    fit = state or missing or cells["fit"]
    where = {"starter": "nanochat's own", "cache": "Hugging Face cache", "folder": in_home(model.path)}[
        model.source
    ]
    note = " · ".join(filter(None, ("the default" if one.default else "", where)))
    tone: Tone = "active" if state else "bad" if missing else _tone(one.fit)
    about = (
        sanitize_line(model.name),
        f"in {sanitize_line(in_home(model.path))}",
        f"{amount(one.parameters)} parameters, {size(model.size)} on disk, licence {one.licence or 'not known'}"
        + (", the default model" if one.default else ""),
        *([f"{missing}: Enter fetches what is missing"] if missing and model.source == "cache" else []),
    )
    return Row(
        f"here:{model.path}", "here", model.name, cells | {"fit": fit, "note": note},
        ("●" if loaded else "") + ("★" if one.default else ""), tone, fit=one.fit, about=about,
    )  # fmt: skip


def listing_row(group: str, one: Listing, fit: Fit | None, said: str) -> Row:
    """A model that could be fetched; `said` is what can be said of its fit."""
    dtype = one.shape.dtype if one.shape else ""
    cells = _cells(one.parameters, dtype, one.download_size, one.context, one.licence, one.gated, fit)
    known = f"{one.downloads:,} downloads" if one.downloads is not None else one.note
    tone = _tone(fit) if fit else "bad" if said.startswith("needs") else ""
    about = [sanitize_line(one.repo_id)]
    facts = [f"{amount(one.parameters)} parameters"]
    facts.append(f"{size(one.download_size)} to download" if one.download_size else "size not known")
    facts.append(f"licence {sanitize_line(one.licence) or 'not known'}")
    about.append(", ".join(facts) + (", gated: its owners want you to accept it first" if one.gated else ""))
    about += [
        text
        for text in (sanitize_line(known), f"fit: {one.only_weights}" if one.only_weights else "")
        if text
    ]
    return Row(
        f"{group}:{one.repo_id}", "listing", one.repo_id, cells | {"fit": said, "note": known}, "", tone,
        fit=fit, about=tuple(about),
    )  # fmt: skip


def download_row(one: Download, fit: Fit | None = None) -> Row:
    """A download: its state and a bar, then bytes, files, speed and time left, then what it waits for."""
    percent = f"{int(one.fraction * 100):3d} %" if one.total else "  – %"
    whole = round(one.fraction * _BAR)
    bar = "━" * whole + "─" * (_BAR - whole)
    mark = {State.PAUSED: "‖", State.FAILED: "✗", State.QUEUED: "◌"}.get(one.state, "↓")
    tone: Tone = {State.FAILED: "bad", State.PAUSED: "dim", State.QUEUED: "dim"}.get(one.state, "active")  # type: ignore[assignment]
    parts = [str(one.state)]
    if one.total:
        parts.append(f"{size(one.done)} of {size(one.total)}")
        parts.append(f"{one.files_done}/{one.files_total} files")
    if one.state is State.VERIFYING and one.checked:
        parts.append(f"{size(one.checked)} hashed")
    if one.speed is not None:
        parts.append(speed(one.speed))
    if one.seconds_left is not None:
        parts.append(f"{duration(one.seconds_left)} left")
    more = [" · ".join(parts)]
    note = sanitize_line(one.note)
    if note:
        more.append(note)
    about = (
        sanitize_line(one.repo_id),
        " · ".join(
            filter(
                None,
                (f"revision {sanitize_line(one.revision)}", f"commit {one.commit}" if one.commit else ""),
            )
        ),
        more[0],
        *([note] if note else []),
    )
    return Row(
        f"download:{one.id}", "download", one.repo_id, {"state": f"{percent} {bar}"}, mark, tone, tuple(more), fit=fit, about=about
    )  # fmt: skip


def leftovers_row(found: Sequence[Leftover]) -> Row:
    """What unfinished downloads left: how much, and the leftovers, one a line."""
    total, number = size(sum(one.size for one in found)), len(found)
    text = f"{total} in {number} leftover{'s' if number != 1 else ''} of unfinished downloads: Enter cleans"
    lines = [f"{sanitize_line(one.repo_id)}: {size(one.size)}, {one.what}" for one in found[:8]]
    more = [f"and {number - 8} more"] if number > 8 else []
    about = ("Leftovers of unfinished downloads, ours and other tools':", *lines, *more)
    return Row("leftovers", "leftovers", text, {}, "~", "dim", about=about)


def in_home(path: Path) -> str:
    """A path as a reader writes it: below the home folder with a tilde."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def _cells(
    parameters: int | None, dtype: str, on_disk: int | None, context: int | None, licence: str, gated: bool,
    fit: Fit | None,
) -> dict[str, str]:  # fmt: skip
    return {
        "params": amount(parameters),
        "dtype": _DTYPES.get(dtype, dtype[:5]) or "?",
        "size": size(on_disk) if on_disk else "?",
        "context": tokens(context) if context else "?",
        "licence": licence or "?",
        "gated": "gated" if gated else "",
        "fit": fit.text if fit else "?",
    }


def _tone(fit: Fit | None) -> Tone:
    return "" if fit is None else "good" if fit.fits else "bad"


def _named(name: str, width: int, *, from_left: bool) -> str:
    """A name in its column; of one that is too long the end stays: that is where the sizes stand."""
    if cell_len(name) <= width or from_left:
        return fixed(name, width)
    while cell_len(name) >= width:
        name = name[1:]
    return fixed("…" + name, width)
