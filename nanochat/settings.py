"""Where things live on this machine, and what the user chose (TOML)."""

from __future__ import annotations

import fcntl
import os
import secrets
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat.errors import SettingsError
from nanochat.settings_keys import KEYS, Key


@dataclass(frozen=True, slots=True)
class Paths:
    """The folders that nanochat writes to. Made by `private_folder` when first needed, for this user only.

    `NANOCHAT_HOME` puts all four below one folder: portable use and tests.
    """

    config: Path
    data: Path
    cache: Path
    log: Path

    @classmethod
    def find(cls) -> Paths:
        """The folders of this user, by the platform's rules; nothing is created yet."""
        home = os.environ.get("NANOCHAT_HOME")
        if home:
            root = Path(home).expanduser().absolute()
            return cls(root / "config", root / "data", root / "cache", root / "log")
        try:
            from platformdirs import PlatformDirs
        except ModuleNotFoundError:  # a bare GPU machine, where only the benchmark runs: Linux's usual places
            return cls._usual(Path.home())
        folders = PlatformDirs("nanochat", appauthor=False)
        return cls(
            Path(folders.user_config_dir),
            Path(folders.user_data_dir),
            Path(folders.user_cache_dir),
            Path(folders.user_log_dir),
        )

    @classmethod
    def _usual(cls, home: Path) -> Paths:
        state = home / ".local"
        return cls(
            home / ".config/nanochat",
            state / "share/nanochat",
            home / ".cache/nanochat",
            state / "state/nanochat/log",
        )

    @property
    def models(self) -> Path:
        """Models that nanochat made itself: one folder each."""
        return self.data / "models"

    @property
    def settings_file(self) -> Path:
        """The settings, in TOML."""
        return self.config / "settings.toml"

    @property
    def log_file(self) -> Path:
        """Where tracebacks go."""
        return self.log / "nanochat.log"


def private_folder(folder: Path) -> Path:
    """Create `folder` and its missing parents, readable by this user only, and return it."""
    chain = [folder, *folder.parents]
    missing = next((count for count, path in enumerate(chain) if path.exists()), len(chain))
    for path in reversed(chain[:missing]):
        path.mkdir(mode=0o700, exist_ok=True)
    return folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the user chose; `settings_keys.KEYS` has the names in the file, the ranges and the meanings.

    A new setting is one field here, with its default, and one Key there.
    """

    default_model: str = ""
    suggest_models: bool = True
    system_prompt: str = ""
    dtype: str = "auto"
    device: str = "auto"
    max_model_len: int = 0
    kv_cache_gib: float = 0.0
    gpu_memory_utilization: float = 0.9
    deterministic: bool = False
    tensor_parallel_size: int = 0
    idle_unload_minutes: float = 0.0
    theme: str = "auto"
    ascii: str = "auto"
    keymap: Mapping[str, str] = field(default_factory=dict[str, str])
    unknown: tuple[str, ...] = ()
    """Keys of the file that nanochat does not know: kept when it is written, and named by `doctor`."""

    @classmethod
    def load(cls, file: Path | None = None) -> Settings:
        """Read the settings; a missing file is all defaults. Raises SettingsError."""
        file = file or Paths.find().settings_file
        try:
            content = tomllib.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls()
        except OSError as error:
            raise SettingsError(
                f"the settings file {file} cannot be read: {error.strerror or error}"
            ) from error
        except ValueError as error:  # tomllib.TOMLDecodeError and UnicodeDecodeError are both
            raise SettingsError(
                f"the settings file {file} is not TOML: {error}; mend or delete it"
            ) from error
        known = {key.field: value for key in KEYS if (value := _lookup(content, key.name, file)) is not None}
        for key in KEYS:
            if key.field in known:
                _check(key, known[key.field], file)
        return cls(**known, unknown=tuple(_unknown(content)))

    @classmethod
    def change(cls, file: Path | None = None, **values: Any) -> Settings:
        """Write some settings (`None` removes one, so that its default holds) and return the new ones.

        Comments, order and unknown keys of the file stay. The file is replaced whole or not at all, and
        two processes that write at once lose nothing. Raises SettingsError.
        """
        file = file or Paths.find().settings_file
        keys = {key.field: key for key in KEYS}
        for name, value in values.items():
            if name not in keys:
                raise SettingsError(f"there is no setting {name!r}; there are {', '.join(sorted(keys))}")
            if value is not None:
                _check(keys[name], value, file)
        try:
            private_folder(file.parent)
            with (file.parent / ".settings.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                cls.load(file)  # what cannot be read must not be overwritten
                _rewrite(file, {keys[name].name: value for name, value in values.items()})
        except OSError as error:
            raise SettingsError(
                f"the settings file {file} cannot be written: {error.strerror or error}"
            ) from error
        return cls.load(file)


def _check(key: Key, value: object, file: Path) -> None:
    if not key.allows(value):
        raise SettingsError(f"{file}: {key.name} must be {key.span}, not {value!r}; mend or delete that line")


def _lookup(content: Mapping[str, Any], name: str, file: Path) -> Any:
    """The value under a dotted name, None when it is not there."""
    value: Any = content
    for part in name.split("."):
        if not isinstance(value, Mapping):
            raise SettingsError(
                f"{file}: [{name.rsplit('.', 1)[0]}] must be a table, not {value!r}; mend that line"
            )
        if part not in value:
            return None
        value = value[part]
    return value


def _unknown(content: Mapping[str, Any], prefix: str = "") -> list[str]:
    names = {key.name for key in KEYS}
    sections = {name.rsplit(".", 1)[0] for name in names}
    found: list[str] = []
    for part, value in content.items():
        name = prefix + part
        if name in sections and isinstance(value, Mapping):
            found += _unknown(value, name + ".")
        elif name not in names:
            found.append(name)
    return found


def _rewrite(file: Path, values: Mapping[str, Any]) -> None:
    """Change some dotted names in the file; written beside it, synced, and renamed over it."""
    import tomlkit

    target = file.resolve()  # a link (dotfiles under version control) stays a link
    document = tomlkit.parse(target.read_text(encoding="utf-8") if target.exists() else "")
    for name, value in values.items():
        section, part = name.split(".")
        table: Any = document.get(section)
        if value is None:
            if table is not None:
                table.pop(part, None)
            continue
        if table is None:
            table = document[section] = tomlkit.table()
        table[part] = value
    working = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with working.open("x", encoding="utf-8") as sink:
            sink.write(tomlkit.dumps(document))
            sink.flush()
            os.fsync(sink.fileno())
        working.chmod(0o600)
        working.replace(target)
    finally:
        working.unlink(missing_ok=True)
