"""The child process that asks the hub: `python -m nanochat.modelhub.lookup QUESTION` (JSON), which answers in lines of JSON.

Apart from the screen's process: the hub client has no timeouts of its own, its settings are process-wide, and
a name that is being resolved cannot be interrupted. A child can be killed.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nanochat.errors import AccessDenied, DownloadError, ModelError, Offline, UnsupportedModel
from nanochat.modelhub.fetch import MAX_CONFIG, MAX_INDEX, run_child
from nanochat.modelhub.shape import Shape
from nanochat.transfer.connection import Session, origin, proxy_for
from nanochat.transfer.events import Answer, Event, Note, Policy
from nanochat.transfer.headers import Tensors, count, dtypes, remote_tensors
from nanochat.transfer.records import Records
from nanochat.transfer.remote import (
    USER_AGENT,
    HubClient,
    RemoteModel,
    check_online,
    endpoint,
    open_hub,
)
from nanochat.transfer.repository import RemoteFile, Repository, check_repo_id, check_revision
from nanochat.transfer.scratch import scratch_folder
from nanochat.transfer.selection import CONFIG, INDEX, refuse_by_listing, select
from nanochat.transfer.store import BlobStore
from nanochat.transfer.verdict import judge, why_not

CONNECT = 2.5
POLICY = Policy(connect_timeout=CONNECT, read_timeout=8.0, tries=2, first_delay=0.2)
STORED = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1}
"""Bytes of a stored value by safetensors' name of its type."""
CONFIGS_AT_ONCE, CONFIGS_WITHIN = 8, 4.0
"""How many configurations are read at once, and how many seconds a search waits for all of them."""
PAGE = 4
"""How many models are asked for, for each that is wanted: some of them this engine does not run."""


def reach(url: str) -> None:
    """Offline, within CONNECT seconds, unless the hub (or the proxy on the way) can be connected to."""
    scheme, host, port = origin(url)
    proxy = proxy_for(scheme, host, port)
    if proxy is not None:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        host, port = parts.hostname or host, parts.port or 80
    try:
        socket.create_connection((host, port), timeout=CONNECT).close()
    except OSError as error:
        raise Offline(
            f"offline: {host} cannot be reached ({error.strerror or error}). Models on this machine work without it"
        ) from error


def search(hub: HubClient, text: str, limit: int) -> list[dict[str, Any]]:
    """Models whose name holds `text` and that this engine runs, most downloaded first."""
    rows: list[dict[str, Any]] = []
    for found in hub.search(text, limit * PAGE):
        config = found.pop("config")
        if why_not(found["repo_id"], config) is None:
            counts = found["parameters"]
            size = sum(number * STORED.get(dtype, 2) for dtype, number in counts.items())
            rows.append(found | {"parameters": sum(counts.values()), "download_size": size})
        if len(rows) == limit:
            break
    return _with_shapes(hub, rows)


def _with_shapes(hub: HubClient, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Read each model's config.json, so that its memory can be told: what is late or gated stays without.

    Those go out of which the search told too little to see that this engine does not run them.
    """
    pool = ThreadPoolExecutor(CONFIGS_AT_ONCE)
    asked = {pool.submit(_shape, hub, row["repo_id"], row["parameters"]): row for row in rows}
    wait(asked, timeout=CONFIGS_WITHIN)
    kept: list[dict[str, Any]] = []
    for future, row in asked.items():
        done = future.done()
        error = future.exception() if done else None
        if not isinstance(error, UnsupportedModel):
            kept.append(row | {"shape": future.result() if done and error is None else None})
    pool.shutdown(wait=False, cancel_futures=True)
    return kept


def _shape(hub: HubClient, repo_id: str, parameters: int) -> dict[str, Any] | None:
    """What decides a model's memory; not verified by a hash, and good enough for an estimate."""
    session = Session(hub.endpoint, hub.token, USER_AGENT, POLICY.connect_timeout, CONFIGS_WITHIN)
    try:
        answer = session.get(hub.file_url(check_repo_id(repo_id), "main", CONFIG), {})
        if answer.status != 200:
            return None
        return asdict(Shape.of(judge(repo_id, answer.read_all(MAX_CONFIG)), parameters=parameters or None))
    finally:
        session.close()


def describe(hub: HubClient, repo_id: str, revision: str, cache: Path) -> dict[str, Any]:
    """Everything about a repository that can be known without its weights."""
    model = hub.model(check_repo_id(repo_id), check_revision(revision))
    facts: dict[str, Any] = {
        "repo_id": repo_id,
        "commit": model.commit,
        "licence": model.licence,
        "gated": model.gated,
        "private": model.private,
        "files": [],
        "download_size": None,
        "dtypes": model.parameters,
        "shape": None,
        "refusal": None,
        "denied": None,
    }
    repository = Repository(cache, repo_id)
    with scratch_folder() as records:
        store = BlobStore(
            repository,
            Records(records, repository),
            hub,
            model.commit,
            Policy(tries=2, first_delay=0.2),
        )
        try:
            if model.gated:
                hub.check_access(repo_id)
            facts |= _inside(store, model)
        except ModelError as error:
            facts["refusal"] = str(error)
        except AccessDenied as error:
            facts["denied"] = str(error)
    return facts


def _inside(store: BlobStore, model: RemoteModel) -> dict[str, Any]:
    refuse_by_listing(model.repo_id, [file.name for file in model.files])
    files = {file.name: file for file in model.files}
    with store.session() as session:
        config = judge(model.repo_id, store.small(session, files[CONFIG], MAX_CONFIG))
        index = store.small(session, files[INDEX], MAX_INDEX) if INDEX in files else None
    chosen = select(model.repo_id, files, index)
    tensors = _tensors(store, chosen)
    shape = Shape.of(config, parameters=count(tensors, tied=config.tied_embeddings) if tensors else None)
    return {
        "files": [(file.name, file.size) for file in chosen],
        "download_size": sum(file.size for file in chosen),
        "dtypes": dtypes(tensors) or model.parameters,
        "shape": asdict(shape),
    }


def _tensors(store: BlobStore, chosen: list[RemoteFile]) -> Tensors:
    """Empty when the server does not serve ranges: then the configuration has to do."""
    try:
        return remote_tensors(store, [file for file in chosen if file.name.endswith(".safetensors")])
    except (DownloadError, OSError):
        return {}


def main(question: dict[str, Any], emit: Callable[[Event], None]) -> None:
    """Answer one question."""
    check_online()
    reach(endpoint())
    emit(Note("connected"))
    hub = open_hub(POLICY)
    if question["what"] == "search":
        emit(Answer(search(hub, question["text"], question["limit"])))
    elif question["what"] == "files":
        model = hub.model(check_repo_id(question["repo_id"]), check_revision(question["revision"]))
        emit(Answer([astuple(file) for file in model.files]))
    else:
        emit(Answer(describe(hub, question["repo_id"], question["revision"], Path(question["cache"]))))


if __name__ == "__main__":
    code = run_child(lambda emit: main(json.loads(sys.argv[1]), emit))
    os._exit(code)
