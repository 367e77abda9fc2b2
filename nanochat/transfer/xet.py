"""Files that only Xet serves: the hub client fetches them, beside the cache, and we verify them afterwards."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nanochat.errors import DownloadError, NanochatError
from nanochat.transfer.part import hash_of
from nanochat.transfer.repository import RemoteFile
from nanochat.transfer.store import BlobStore
from nanochat.transfer.tally import Tally

FOLDER = "nanochat-xet"


def fetch_by_hub_client(
    store: BlobStore, files: list[RemoteFile], tally: Tally, report: Callable[[], None]
) -> None:
    """Fetch `files` with `snapshot_download`, which starts each over and cannot pause; then verify and adopt them."""
    from huggingface_hub import snapshot_download

    repository = store.repository
    folder = repository.folder / FOLDER / store.commit
    with ExitStack() as locks:
        for file in sorted(files, key=lambda file: file.etag):
            locks.enter_context(store.locked(file, tally))
        wanted = [file for file in files if not store.is_whole(file, tally)]
        names = [_escape(file.name) for file in wanted]
        bars = _Bars(wanted, tally, report)
        try:
            if wanted:
                snapshot_download(
                    repository.repo_id,
                    revision=store.commit,
                    allow_patterns=names,
                    local_dir=folder,
                    endpoint=store.hub.endpoint,
                    token=store.hub.token or False,
                    tqdm_class=bars.kind(),
                )
        except Exception as error:
            raise _failed(error, wanted) from error
        for file in wanted:
            _verify(folder, file, tally)
            store.adopt(folder / file.name, file, tally)
    shutil.rmtree(folder.parent, ignore_errors=True)


def _verify(folder: Path, file: RemoteFile, tally: Tally) -> None:
    """Raise DownloadError where it is not what the hub says; then nothing in the folder is kept."""
    path = folder / file.name
    with tally.hashing(file) as seen:
        if not path.exists() or path.stat().st_size != file.size or hash_of(path, file, seen) != file.etag:
            shutil.rmtree(folder, ignore_errors=True)
            raise DownloadError(
                f"{file.name} came through Xet with the wrong content; nothing of it was kept"
            )


def _failed(error: Exception, files: list[RemoteFile]) -> NanochatError:
    if isinstance(error, NanochatError):
        return error
    return DownloadError(
        f"only Xet serves {files[0].name}, and the hub client could not fetch it: {type(error).__name__}: {error}. "
        "`pip install hf_xet` if it is missing; otherwise try again later"
    )


def _escape(name: str) -> str:
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in name)


class _Bars:
    """Progress bars in the hub client's form that feed the tally: their bytes are spread over the files in order."""

    def __init__(self, files: list[RemoteFile], tally: Tally, report: Callable[[], None]) -> None:
        self._files, self._tally, self._report = files, tally, report
        self._bars: list[Any] = []
        self._shown = 0

    def _spread(self) -> None:
        # One bar counts what came over the network, one what was written: whichever is ahead.
        count = int(max(bar.n for bar in self._bars if bar.in_bytes))
        left, fresh, self._shown = count, max(count - self._shown, 0), max(count, self._shown)
        for file in self._files:
            self._tally.at(file, min(left, file.size), fresh)
            left, fresh = max(left - file.size, 0), 0
        self._report()

    def kind(self) -> type[Any]:
        """The class of a bar, which the hub client makes as many of as it likes."""
        bars, spread = self._bars, self._spread

        class Bar:
            """Just as much of tqdm as the hub client uses."""

            def __init__(self, *_: object, **options: Any) -> None:
                self.in_bytes = options.get("unit") == "B"
                self.total, self.n = options.get("total") or 0, 0.0
                self.format_dict: dict[str, Any] = {"rate": None}
                bars.append(self)

            def update(self, count: float | None = 1) -> None:
                """Bytes, or files, came."""
                self.n += count or 0
                if self.in_bytes:
                    spread()

            def __enter__(self) -> Bar:
                return self

            def __exit__(self, *_: object) -> None:
                """Nothing to close."""

            def __getattr__(self, name: str) -> Callable[..., None]:
                if name.startswith("__"):
                    raise AttributeError(name)
                return lambda *_, **__: None

        return Bar
