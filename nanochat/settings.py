"""Where things live on this machine, and what the user chose (TOML)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Paths:
    """The folders that nanochat writes to. Each exists, is private to the user (0700) and writable.

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
        from platformdirs import PlatformDirs

        folders = PlatformDirs("nanochat", appauthor=False)
        return cls(
            Path(folders.user_config_dir),
            Path(folders.user_data_dir),
            Path(folders.user_cache_dir),
            Path(folders.user_log_dir),
        )

    @property
    def models(self) -> Path:
        """Models that nanochat made itself: one folder each."""
        return self.data / "models"

    @property
    def settings_file(self) -> Path:
        """The settings, in TOML."""
        return self.config / "settings.toml"


def private_folder(folder: Path) -> Path:
    """Create `folder` with its parents, readable by this user only, and return it."""
    missing = [folder, *folder.parents]
    for path in reversed(missing[: next(n for n, path in enumerate(missing) if path.exists())]):
        path.mkdir(mode=0o700, exist_ok=True)
    return folder
