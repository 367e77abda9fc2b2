"""What the benchmark's screen says, as styled text: progress, the facts of a run, kept runs, a comparison."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from textual.content import Content

from nanochat.bench import Progress, Run
from nanochat.benchmarks.comparison import Comparison, Difference
from nanochat.benchmarks.report import duration, header, number
from nanochat.sanitize import sanitize_line
from nanochat.ui.cells import fixed
from nanochat.ui.figures import sparkline

_VERDICTS = {"faster": "bold $success", "slower": "bold $error"}
_SIGNS = {"faster": "▲ faster", "slower": "▼ slower", "within noise": "≈ within noise"}
_DIM = "$foreground 60%"


def live(
    progress: Progress | None, word: str, rates: Sequence[float], width: int, *, stopping: bool
) -> Content:
    """Three rows about a run under way."""
    if stopping:
        return _three(("Stopping", "bold $warning"), " · what was finished is kept, marked partial")
    if progress is None:
        return _three((word[:1].upper() + word[1:] or "Starting", "bold"), "")
    repeat = f"repeat {progress.repeat} of {progress.repeats} done" if progress.repeat else "warm-up"
    first = Content.assemble(
        (sanitize_line(progress.test), "bold"), (f" · {sanitize_line(progress.engine)}", _DIM),
        f" · test {progress.case} of {progress.cases} · {repeat}",
    )  # fmt: skip
    done = (progress.case - 1 + progress.repeat / (progress.repeats + 1)) / max(progress.cases, 1)
    return Content("\n").join([first, _bar(done, _left(progress), width), _now(progress, rates, width)])


def _three(head: tuple[str, str], rest: str) -> Content:
    return Content.assemble((sanitize_line(head[0]), head[1]), rest, "\n\n")


def _bar(share: float, left: str, width: int) -> Content:
    said = f" {100 * share:3.0f} %{' · ' + left if left else ''}"
    room = max(min(width - cell_len(said), 60), 4)
    full = round(share * room)
    return Content.assemble(("━" * full, "$primary"), ("┄" * (room - full), "$foreground 40%"), said)


def _left(progress: Progress) -> str:
    if progress.run_seconds_left is not None:
        return f"about {duration(progress.run_seconds_left)} left"
    return f"about {duration(progress.seconds_left)} left in this test" if progress.seconds_left else ""


def _now(progress: Progress, rates: Sequence[float], width: int) -> Content:
    parts: list[str | tuple[str, str]] = []
    if progress.rate is not None:
        parts += [(f"{number(progress.rate)} tok/s now", "bold"), " "]
    if rates:
        parts.append((sparkline(rates, min(len(rates), max(width - 40, 8))), "$primary"))
    if progress.value is not None:
        parts.append((f"{'  ' if parts else ''}last {number(progress.value)} {progress.unit}", _DIM))
    return Content.assemble(*parts)


def facts(run: Run, *, under_way: bool) -> Content:
    """Which model on which device, and what was not in order."""
    first, second, *_ = header(run)
    lines = [Content.styled(sanitize_line(first), "bold"), Content.styled(sanitize_line(second), _DIM)]
    lines += [Content.styled(f"⚠ {sanitize_line(flag)}", "$warning") for flag in run.flags]
    if run.partial and not under_way:
        lines.append(
            Content.styled("PARTIAL · stopped before its end; what was finished is kept", "bold $warning")
        )
    return Content("\n").join(lines)


def small_print(run: Run) -> Content:
    """What else the figures hold for: kernels, ceilings, how it was measured and what was left out."""
    lines = [line for line in header(run)[2:] if not line.startswith(("careful:", "PARTIAL"))]
    return Content.styled("\n".join(map(sanitize_line, lines)), _DIM)


def kept_line(run: Run | str, marked: bool, width: int) -> Content:
    """One kept run in the list: when, what, on which model."""
    sign = ("● ", "bold $accent") if marked else ("  ", "")
    if isinstance(run, str):
        return Content.assemble(sign, (sanitize_line(run), "$error"))
    when = run.started[:16].replace("T", " ")
    name = sanitize_line(str(run.model["name"])).rpartition("/")[2]
    rows = f"{len(run.rows)} row{'' if len(run.rows) == 1 else 's'}"
    preset = fixed(sanitize_line(run.preset), 13)
    parts: list[str | tuple[str, str]] = [sign, when if width >= 70 else when[5:], "  ", (preset, "bold")]
    if width >= 70:
        parts += ["  ", fixed(name, max(width - 56, 16))]
    parts += [(f" {rows:>8}", _DIM)]
    if run.partial:
        parts.append(("  partial", "$warning"))
    elif any(row.error is not None for row in run.rows):
        parts.append(("  errors", "$error"))
    return Content.assemble(*parts)


def comparison(before: Run, after: Run, found: Comparison, width: int) -> Content:
    """Two runs side by side, and how the difference was judged."""
    lines = [
        Content.assemble(("before  ", _DIM), _named(before)),
        Content.assemble(("after   ", _DIM), _named(after)),
        Content(""),
    ]
    lines += _differences(found.differences, width)
    lines += [Content.styled(f"only before: {sanitize_line(name)}", _DIM) for name in found.only_first]
    lines += [Content.styled(f"only after: {sanitize_line(name)}", _DIM) for name in found.only_second]
    lines += [Content("")]
    lines += [Content.styled(f"⚠ changed: {sanitize_line(what)}", "$warning") for what in found.changed]
    lines += [Content.styled(found.METHOD, _DIM)]
    return Content("\n").join(lines)


def _named(run: Run) -> str:
    partial = " (partial)" if run.partial else ""
    name, when = sanitize_line(str(run.model["name"])), run.started[:16].replace("T", " ")
    return f"{when} · {sanitize_line(run.preset)} · {name} {run.model['dtype']}{partial}"


def _differences(found: Sequence[Difference], width: int) -> list[Content]:
    if not found:
        return [Content("The two runs have no test in common.")]
    engines = len({each.engine for each in found}) > 1
    names = [sanitize_line(f"{each.test} · {each.engine}" if engines else each.test) for each in found]
    rows = [
        (name, f"{number(each.before)}", f"{number(each.after)} {each.unit}", f"{100 * each.change:+.1f} %", f"p {each.p:.3f}")
        for name, each in zip(names, found, strict=True)
    ]  # fmt: skip
    first = min(max(max(map(len, names)), 4), max(width - 52, 12))
    widths = [max(len(row[place]) for row in rows) for place in range(1, 5)]
    with_p = first + sum(widths) + 8 + 18 <= width
    lines: list[Content] = []
    for row, each in zip(rows, found, strict=True):
        parts: list[str | tuple[str, str]] = [row[0][:first].ljust(first)]
        for place in range(1, 5 if with_p else 4):
            style = "bold" if place == 3 else _DIM if place in (1, 4) else ""
            parts += ["  ", (row[place].rjust(widths[place - 1]), style)]
        parts += ["  ", (_SIGNS.get(each.verdict, each.verdict), _VERDICTS.get(each.verdict, _DIM))]
        lines.append(Content.assemble(*parts))
    return lines
