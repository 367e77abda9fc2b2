"""The hub as it describes a repository: every call has a timeout, every failure is one of our errors.

For child processes only: the hub client's settings are the process's own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

from nanochat.errors import AccessDenied, DownloadError, ModelNotFound, NanochatError, Offline
from nanochat.transfer.connection import is_loopback
from nanochat.transfer.events import Policy
from nanochat.transfer.repository import COMMIT, RemoteFile

Result = TypeVar("Result")
AGAIN = (408, 425, 429, 500, 502, 503, 504)
TRIES = 3
LONGEST_DELAY = 10.0
USER_AGENT = "nanochat/0.1"


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model at one commit, without its weights."""

    repo_id: str
    commit: str
    files: tuple[RemoteFile, ...]
    gated: bool
    private: bool
    licence: str
    parameters: dict[str, int] = field(default_factory=dict[str, int])
    """Parameters by dtype of the weights, when the hub knows them."""


def endpoint() -> str:
    """Where the hub is: HF_ENDPOINT, or the public one."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def check_online() -> None:
    """Offline when the user has switched the network off, by the hub client's own variables."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE"):
            raise Offline(
                f"offline: {name} is set, so nothing is asked of the network. Models on this machine work"
            )


def open_hub(policy: Policy) -> HubClient:
    """The hub of HF_ENDPOINT; Offline when that is switched off."""
    check_online()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from huggingface_hub import HfApi
    from huggingface_hub.utils import get_token_to_send

    _limit_requests(policy.connect_timeout, policy.read_timeout)
    where = endpoint()
    # A token never crosses a network in the clear.
    clear = where.startswith("http://") and not is_loopback(where)
    token = None if clear else get_token_to_send(None)
    api = HfApi(endpoint=where, token=token or False, library_name="nanochat")
    return HubClient(api, where, token, policy.first_delay)


@cache
def _limit_requests(connect_timeout: float, read_timeout: float) -> None:
    """Give every request of the hub client a limit, which it has not of its own. Once a process: it costs 0.1 s."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import get_session

    limits = {
        "connect": connect_timeout,
        "read": read_timeout,
        "write": read_timeout,
        "pool": connect_timeout,
    }

    def limit(request: Any) -> None:
        request.extensions["timeout"] = limits

    default = get_session()
    hooks, client = [*default.event_hooks["request"], limit], type(default)
    set_client_factory(lambda: client(event_hooks={"request": hooks}, follow_redirects=True))


@dataclass(frozen=True, slots=True)
class HubClient:
    """The calls that nanochat makes, with our errors."""

    api: Any
    endpoint: str
    token: str | None
    delay: float
    """Seconds before the second try, when the hub is busy and names no time."""

    def model(self, repo_id: str, revision: str) -> RemoteModel:
        """Fix a revision to its commit, with every file's size and hash."""
        with self._errors(repo_id):
            info = self._persist(
                lambda: self.api.model_info(repo_id, revision=revision, files_metadata=True, timeout=10)
            )
        files = tuple(
            RemoteFile(
                sibling.rfilename,
                sibling.size if sibling.size is not None else -1,
                sibling.blob_id or "",
                sibling.lfs.sha256 if sibling.lfs is not None else None,
            )
            for sibling in info.siblings or ()
        )
        if not COMMIT.fullmatch(info.sha or ""):
            raise DownloadError(
                f"{self.endpoint} names no commit for {repo_id}: it is not a hub that can be trusted"
            )
        counts = info.safetensors.parameters if info.safetensors is not None else {}
        return RemoteModel(
            repo_id, info.sha, files, bool(info.gated), bool(info.private), _licence(info), dict(counts)
        )

    def check_access(self, repo_id: str) -> None:
        """AccessDenied unless this token may fetch the files: the listing of a gated model is open to everybody."""
        with self._errors(repo_id):
            self._persist(lambda: self.api.auth_check(repo_id))

    def search(self, text: str, limit: int) -> list[dict[str, Any]]:
        """Chat models with safetensors whose names contain `text`, most downloaded first."""
        wanted = ["config", "safetensors", "gated", "private", "downloads", "cardData", "tags", "sha"]
        with self._errors(""):
            found = self.api.list_models(
                search=text or None,
                filter="safetensors",
                pipeline_tag="text-generation",
                sort="downloads",
                limit=limit,
                expand=wanted,
            )
            return [
                {
                    "repo_id": info.id,
                    "gated": bool(info.gated),
                    "downloads": info.downloads,
                    "licence": _licence(info),
                    "config": info.config or {},
                    "parameters": dict(info.safetensors.parameters) if info.safetensors is not None else {},
                    "tags": list(info.tags or ()),
                }
                for info in found
            ]

    def file_url(self, repo_id: str, commit: str, name: str) -> str:
        """Where a file of a commit is served."""
        from urllib.parse import quote

        return f"{self.endpoint}/{repo_id}/resolve/{commit}/{quote(name)}"

    def _persist(self, call: Callable[[], Result]) -> Result:
        """Try a call again when the hub says that it is busy: as late as it says, ten seconds at most."""
        for attempt in range(1, TRIES):
            try:
                return call()
            except Exception as error:
                response = getattr(error, "response", None)
                if response is None or getattr(response, "status_code", 0) not in AGAIN:
                    raise
                after = str(response.headers.get("retry-after", ""))
                delay = float(after) if after.isdigit() else self.delay * attempt
                if delay > LONGEST_DELAY:
                    raise
                time.sleep(delay)
        return call()

    @contextmanager
    def _errors(self, repo_id: str) -> Generator[None]:
        try:
            yield
        except NanochatError:
            raise
        except Exception as error:
            raise self._translate(error, repo_id) from error

    def _translate(self, error: Exception, repo_id: str) -> NanochatError:
        """Our error for one of the hub client's. Its HTTP library differs between releases: it goes by names."""
        names = {base.__name__ for base in type(error).__mro__}
        if "OfflineModeIsEnabled" in names:
            return Offline(
                "offline mode is on (HF_HUB_OFFLINE is set): only models on this machine can be used"
            )
        response = getattr(error, "response", None)
        if "HfHubHTTPError" in names and response is not None:
            return self._refusal(response.status_code, dict(response.headers), names, repo_id)
        if "TransportError" in names:
            what = (
                "does not answer in time" if "TimeoutException" in names else f"cannot be reached ({error})"
            )
            return Offline(f"offline: {self.endpoint} {what}. Models on this machine work without it")
        if isinstance(error, ValueError):
            return DownloadError(
                f"{self.endpoint} answered with something that is not a hub's answer; a network portal that wants "
                "a sign-in does that, and a wrong HF_ENDPOINT"
            )
        return DownloadError(f"{self.endpoint}: {type(error).__name__}: {error}")

    def _refusal(self, status: int, headers: dict[str, str], names: set[str], repo_id: str) -> NanochatError:
        page = f"{self.endpoint}/{repo_id}"
        if not repo_id and status not in (401, 429):
            return DownloadError(f"the hub answered the search with status {status}; try again later")
        if "GatedRepoError" in names and self.token is None:
            return AccessDenied(
                f"{repo_id} is gated and you are not logged in. 1. Accept its licence at {page} 2. Create a token at "
                f"{self.endpoint}/settings/tokens 3. Run `hf auth login`, or set HF_TOKEN; then pull again"
            )
        if "GatedRepoError" in names:
            return AccessDenied(
                f"{repo_id} is gated, and the account of your token ({_token_source()}) has no access to it yet. Open "
                f"{page} with that account, accept the licence, wait if its owners approve by hand; then pull again"
            )
        if "RevisionNotFoundError" in names:
            return ModelNotFound(f"{repo_id} has no such revision; look at {page}/tree/main")
        if status == 401 and self.token is not None:
            return AccessDenied(
                f"the hub does not accept your token ({_token_source()}): it has expired, was revoked or is mistyped. "
                f"Create one at {self.endpoint}/settings/tokens and run `hf auth login` (or set HF_TOKEN anew)"
            )
        if status in (401, 404) or "RepositoryNotFoundError" in names:
            hint = (
                "If it is private, log in first (`hf auth login`)"
                if self.token is None
                else "If it is private, its owner must give your account access"
            )
            return ModelNotFound(f"there is no {repo_id} at {self.endpoint}. Check the spelling. {hint}")
        if status == 429:
            after = {name.lower(): value for name, value in headers.items()}.get("retry-after")
            return DownloadError(
                f"the hub limits your requests (429); try again in {after or 'some'} seconds"
            )
        return DownloadError(f"the hub answered {status} for {repo_id}; try again later")


def _licence(info: Any) -> str:
    card = info.card_data.to_dict() if info.card_data is not None else {}
    named = card.get("license_name") if card.get("license") == "other" else card.get("license")
    if isinstance(named, str) and named:
        return named
    return next((tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")), "")


def _token_source() -> str:
    """Where the token came from, never the token."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name):
            return f"from {name}"
    from huggingface_hub import constants

    return f"from {constants.HF_TOKEN_PATH}"
