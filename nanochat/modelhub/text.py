"""Models, downloads and fits as plain text: tables, one-line progress, amounts for people."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nanochat.hub import LocalModel
from nanochat.modelhub.catalog import Listing
from nanochat.modelhub.download import Download, State
from nanochat.modelhub.fit import Fit, tokens
from nanochat.sanitize import sanitize_line

BAR = 20


def size(count: float) -> str:
    """Bytes for people: `12 kB`, `269 MB`, `1.5 GB`."""
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.0f} MB" if count >= 1e6 or count == 0 else f"{count / 1e3:.0f} kB"


def speed(per_second: float) -> str:
    """Bytes per second for people: `0.3 MB/s`, `48 MB/s`."""
    return f"{per_second / 1e6:.{0 if per_second >= 99.5e6 else 1}f} MB/s"


def amount(count: int | None) -> str:
    """Parameters for people: `33k`, `135M`, `8.2B`."""
    if not count:
        return "?"
    if count < 999_500:
        return f"{count / 1e3:.0f}k"
    return f"{count / 1e9:.1f}B" if count >= 999_500_000 else f"{count / 1e6:.0f}M"


def duration(seconds: float | None) -> str:
    """Time for people, in two units at most: `8 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds is None:
        return ""
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min" if whole < 360_000 else "days"


def columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Aligned lines; `right` are the columns of numbers. Every cell is cleaned: names come from outside."""
    cleaned = [[sanitize_line(cell) for cell in row] for row in rows]
    widths = (
        [max(len(row[column]) for row in cleaned) for column in range(len(cleaned[0]))] if cleaned else []
    )
    return [
        "  ".join(
            f"{cell:>{width}}" if column in right else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cleaned
    ]


@dataclass(frozen=True, slots=True)
class Here:
    """A model on this machine with what a table says of it."""

    model: LocalModel
    default: bool
    parameters: int | None
    licence: str
    gated: bool | None
    fit: Fit | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        row = self.model.as_dict() | {"default": self.default, "parameters": self.parameters}
        return row | {"licence": self.licence or None, "gated": self.gated, **fit_row(self.fit)}


def fit_row(fits: Fit | None) -> dict[str, Any]:
    """A fit for JSON."""
    if fits is None:
        return dict.fromkeys(("fits", "fit", "fit_context", "missing_bytes"))
    return {"fits": fits.fits, "fit": fits.text, "fit_context": fits.context, "missing_bytes": fits.missing}


def here_table(models: Sequence[Here]) -> list[str]:
    """Models on this machine; a star marks the default."""
    if not models:
        return []
    rows = [["", "NAME", "PARAMS", "ON DISK", "DTYPE", "CONTEXT", "LICENCE", "GATED", "FIT", "FOLDER"]]
    for one in models:
        model = one.model
        missing = f" ({model.missing} files missing)" if model.missing else ""
        rows.append(
            [
                "*" if one.default else "",
                model.name,
                amount(one.parameters),
                size(model.size) + missing,
                model.dtype or "?",
                tokens(model.context) if model.context else "?",
                one.licence or "?",
                "yes" if one.gated else "",
                one.fit.text if one.fit else "?",
                str(model.path),
            ]
        )
    return columns(rows, right=(2, 3, 5))


def listing_table(listings: Sequence[tuple[Listing, str]]) -> list[str]:
    """Models that could be fetched, each with what is known of its fit."""
    rows = [["NAME", "PARAMS", "DOWNLOAD", "CONTEXT", "LICENCE", "GATED", "FIT", ""]]
    for listing, fits in listings:
        known = f"{listing.downloads:,} downloads" if listing.downloads is not None else listing.note
        rows.append(
            [
                listing.repo_id,
                amount(listing.parameters),
                size(listing.download_size) if listing.download_size else "?",
                tokens(listing.context) if listing.context else "?",
                listing.licence or "?",
                "yes" if listing.gated else "",
                fits,
                known,
            ]
        )
    return columns(rows, right=(1, 2, 3))


def downloads_table(downloads: Sequence[Download]) -> list[str]:
    """Downloads that are not finished."""
    rows = [
        [
            one.repo_id,
            one.state,
            f"{one.fraction:.0%}" if one.total else "",
            size(one.total or 0) if one.total else "?",
            one.note,
        ]
        for one in downloads
    ]
    return columns([["NAME", "STATE", "", "SIZE", ""], *rows], right=(2, 3)) if rows else []


def progress_line(one: Download, width: int | None = None) -> str:
    """A download on one line: name, bar, bytes, files, speed, time left, what it waits for."""
    width = width or shutil.get_terminal_size().columns
    parts = [sanitize_line(one.repo_id)]
    if one.total:
        parts += [
            f"{int(one.fraction * 100):3d} %",
            _bar(one.fraction),
            f"{size(one.done)} of {size(one.total)}",
        ]
        parts.append(f"{one.files_done}/{one.files_total} files")
    if one.state is not State.DOWNLOADING:
        parts.append(one.state)
    if one.state is State.VERIFYING and one.checked:
        parts.append(f"({size(one.checked)} hashed)")
    if one.speed:
        parts.append(speed(one.speed))
    if one.seconds_left is not None:
        parts.append(f"{duration(one.seconds_left)} left")
    if one.note and one.state is not State.FAILED:
        parts.append(sanitize_line(one.note))
    return "  ".join(parts)[: max(width - 1, 20)]


def _bar(fraction: float) -> str:
    whole = round(fraction * BAR)
    encoding = (getattr(sys.stderr, "encoding", "") or "").lower()
    full, empty = ("█", "░") if encoding.startswith("utf") else ("#", ".")
    return full * whole + empty * (BAR - whole)
