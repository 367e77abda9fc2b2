"""Text files in a message: `@path` in the prompt becomes the file's text below it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from nanochat.errors import UsageError

MAX_BYTES = 2_000_000
_MENTION = re.compile(r"""(?:^|(?<=\s))@(?:"([^"\n]+)"|'([^'\n]+)'|(\S+))""")
_SUGGESTIONS = 50
_FENCE = re.compile(r"^ *(`{3,}|~{3,}).*?(?:^ *\1[`~]* *$|\Z)", re.MULTILINE | re.DOTALL)
_ENDS = re.compile(r"[.,:!?]?(?:\s|$)")
_NO_PATH = re.compile(r"[@(){}<>=*|\[\]]|//")
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,9}")
# Of files that people send, and that no decorator and hardly a name ends with: `@app.route`, `@user.name`.
_TEXT_FILE = re.compile(
    r"[^/]+\.(?:bash|bat|c|cc|cfg|conf|cpp|cs|css|csv|cu|diff|env|go|h|hpp|html?|ini|ipynb|java|jinja|jl|jsx?|jsonl?|kt|"
    r"lock|log|lua|md|patch|php|pl|ps1|pyi?|r|rb|rs|rst|rtf|scss|sh|sql|swift|tex|toml|tsx?|tsv|txt|vue|xml|ya?ml|zig)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Attachment:
    """A text file that a message mentions."""

    name: str
    text: str

    @property
    def size(self) -> str:
        """How many lines it has, in words."""
        if not self.text:
            return "empty"
        lines = self.text.count("\n") + (not self.text.endswith("\n"))
        return f"{lines:,} line{'s' if lines != 1 else ''}"

    def block(self) -> str:
        """The file as the model reads it: its name and its text in a fence that the text cannot close."""
        longest = max((len(run) for run in re.findall(r"`{3,}", self.text)), default=2)
        fence = "`" * (longest + 1)
        return f"{self.name}:\n{fence}\n{self.text.rstrip()}\n{fence}"


def attach(text: str, folder: Path) -> tuple[str, tuple[Attachment, ...]]:
    """The message with the text of every file that it mentions below it, and those files.

    A mention that names no file is left as it is: people write `@someone`. Raises UsageError for a file that
    cannot be sent, with the reason.
    """
    found: dict[Path, Attachment] = {}
    for match in _MENTION.finditer(text):
        path = resolve(next(filter(None, match.groups())), folder)
        if path is not None and path not in found:
            found[path] = read(path, folder)
    if not found:
        return text, ()
    return "\n\n".join((text, *(file.block() for file in found.values()))), tuple(found.values())


def quote_for(name: str) -> str:
    """The quotation mark that a mention needs around a file's name; none where a word is enough."""
    if not any(char.isspace() or char in "\"'" for char in name):
        return ""
    return "'" if '"' in name else '"'


def mention(file: Path, folder: Path) -> str:
    """How a message names a file."""
    name = str(file.relative_to(folder)) if file.is_relative_to(folder) else str(file)
    return f"@{quote_for(name)}{name}{quote_for(name)}"


def unfound(text: str, folder: Path, *, typing: str = "") -> tuple[str, ...]:
    """What reads as the path of a file and names none: it goes with a message as it is. Each with a word that says why.

    Most of what begins with @ is no path: names, decorators, packages; fenced code is not looked at. `typing` is the
    mention that may not be whole yet: it counts where no path begins so.
    """
    found: dict[str, str] = {}
    text = _FENCE.sub("", text)
    for match in _MENTION.finditer(text):
        bare = match.group(3) or ""
        name = bare.rstrip(".,;:!?)'\"") or match.group(1) or match.group(2) or ""
        if not bare and not _ENDS.match(text, match.end()):
            continue  # a string in code
        if not _reads_as_path(name, folder) or resolve(bare or name, folder) is not None:
            continue
        if not typing or typing != bare or not suggest(typing, folder):
            found[name] = "a folder, not a file" if _is_folder(name, folder) else "no such file"
    return tuple(f"@{name}: {why}" for name, why in found.items())


def _reads_as_path(name: str, folder: Path) -> bool:
    if _NO_PATH.search(name) or not name.strip("/.~"):
        return False
    if "/" not in name:
        return _TEXT_FILE.fullmatch(name) is not None
    above = name.split("/")[0]
    known = above in ("", ".", "..", "~") or _is_folder(above, folder)
    return known or _SUFFIX.fullmatch(Path(name).suffix) is not None


def _is_folder(name: str, folder: Path) -> bool:
    try:
        return (folder / Path(name).expanduser()).is_dir()
    except (OSError, RuntimeError, ValueError):  # a name too long, no such home, a NUL
        return False


def resolve(mention: str, folder: Path) -> Path | None:
    """The file that a mention names; also without the full stop or comma that a sentence puts after it."""
    for name in (mention, mention.rstrip(".,;:!?)")):
        try:
            path = (folder / Path(name).expanduser()).resolve()
            if name and path.is_file():
                return path
        except (OSError, RuntimeError, ValueError):  # a name too long, no such home, a NUL
            continue
    return None


def read(path: Path, folder: Path) -> Attachment:
    """One text file. Raises UsageError: too large, not text, not readable."""
    name = str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UsageError(
                f"{name} has {size / 1e6:.1f} MB; text files of up to {MAX_BYTES / 1e6:.0f} MB can be sent"
            )
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}") from error
    if b"\0" in data:
        raise UsageError(f"{name} is not a text file: only text can be sent")
    try:
        return Attachment(name, data.decode("utf-8-sig").replace("\r\n", "\n"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 text (byte {error.start:,}): convert it first") from error


def dropped_file(paste: str, folder: Path) -> Path | None:
    """The file when a paste is nothing but a path, as terminals give it for a file dropped on them."""
    line = paste.strip()
    if not line or "\n" in line or len(line) > 4096:
        return None
    if line.startswith("file://"):
        line = unquote(urlsplit(line).path)
    elif line[0] == line[-1] and line[0] in "'\"" and len(line) > 1:
        line = line[1:-1]
    else:
        line = line.replace("\\ ", " ")
    looks_like_a_path = line.startswith(("/", "~", "./", "../"))
    return resolve(line, folder) if looks_like_a_path else None


def suggest(start: str, folder: Path) -> list[str]:
    """Paths that begin as `start` does, folders with a slash behind them, hidden ones only when asked for."""
    typed = Path(os.path.expanduser(start))  # unlike Path's, it takes any text
    above = typed if start.endswith("/") or not start else typed.parent
    prefix = "" if start.endswith("/") else typed.name
    try:
        with os.scandir(folder / above) as entries:
            names = [
                entry.name + ("/" if entry.is_dir() else "")
                for entry in entries
                if entry.name.startswith(prefix)
                and (prefix.startswith(".") or not entry.name.startswith("."))
            ]
    except (OSError, ValueError):  # no such folder, a name too long, a NUL
        return []
    lead = start[: len(start) - len(prefix)] if prefix else start
    return [lead + name for name in sorted(names, key=str.lower)[:_SUGGESTIONS]]
