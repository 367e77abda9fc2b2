"""The screen of models on a stage: a hub on loopback, a cache of its own, and memory that is always the same."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fake_engine import MODEL, FakeEngine, FakeShelf
from fakehome import Home
from fakehub import Hub
from fakerepo import CONFIG, Repo, safetensors, tiny_model
from stage import Stage, make_app

from nanochat.errors import ModelNotFound
from nanochat.hub import LocalModel, resolve
from nanochat.modelhub import catalog
from nanochat.modelhub.device_memory import Memory
from nanochat.ui.screens.models import ModelsScreen
from nanochat.ui.widgets.model_list import ModelList

GIB = 2**30
FACTS: dict[str, Any] = {
    "cardData": {"license": "mit"},
    "config": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "safetensors": {"parameters": {"BF16": 32768}, "total": 32768},
}


def listed(name: str, downloads: int = 1, rows: int = 512, **changes: Any) -> Repo:
    """A repository as a search finds it."""
    return tiny_model(name, rows=rows, facts=FACTS | {"downloads": downloads}, **changes)


class CacheShelf(FakeShelf):
    """The models of a list, and those that are really there: in the cache, and in folders."""

    def find(self, name: str) -> LocalModel:
        try:
            return super().find(name)
        except ModelNotFound:
            return resolve(name)


@dataclass
class ModelsStage(Stage):
    """The application with its screen of models."""

    hub: Hub
    home: Home

    @property
    def list(self) -> ModelList:
        return self.app.screen.query_one(ModelList)

    @property
    def text(self) -> str:
        """Everything that the list says."""
        return "\n".join(str(option.prompt) for option in self.list.options)

    @property
    def keys(self) -> list[str]:
        return [option.id or "" for option in self.list.options]

    def said(self, selector: str) -> str:
        return str(self.app.screen.query_one(selector).render())

    async def open_models(self) -> None:
        await self.press("f3")
        await self.until(lambda: isinstance(self.app.screen, ModelsScreen), "the screen opened")
        await self.until(lambda: "Recommended" in self.text, "the list is there")

    async def go_to(self, key: str) -> None:
        """Highlight the row whose key ends so."""
        await self.until(lambda: any(name.endswith(key) for name in self.keys), f"{key} is in the list")
        place = next(place for place, name in enumerate(self.keys) if name.endswith(key))
        self.list.highlighted = place
        self.list.focus()
        await self.pilot.pause()


def constant_memory(monkeypatch: pytest.MonkeyPatch, free: float = 20 * GIB) -> None:
    memory = Memory("cpu", "RAM", int(free), 32 * GIB, int(free))
    monkeypatch.setattr("nanochat.modelhub.fit.free_memory", lambda *_: memory)


def local_model(home: Home, name: str = "org/local", rows: int = 512) -> Path:
    """A model that another tool has put into the cache."""
    repo = tiny_model(name, rows=rows)
    folder = home.repository(name).folder
    for file in repo.files:
        if file.startswith(("README", "pytorch", "consolidated", "original")):
            continue
        blob = folder / "blobs" / repo.files[file].etag
        blob.parent.mkdir(parents=True, exist_ok=True)
        content = repo.files[file].content
        assert isinstance(content, bytes)
        blob.write_bytes(content)
        link = folder / "snapshots" / repo.commit / file
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"../../blobs/{blob.name}")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(repo.commit)
    return folder / "snapshots" / repo.commit


def own_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes(safetensors({"model.embed_tokens.weight": [512, 64]}))
    return folder


def few_recommended(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """A shorter list, so that a picture shows all groups."""
    kept = tuple(one for one in catalog.recommended() if not names or one.repo_id in names)
    monkeypatch.setattr(catalog, "recommended", lambda: kept)


@asynccontextmanager
async def on_models(
    home: Home, hub: Hub, engine: FakeEngine | None = None, *, size: tuple[int, int] = (120, 40), **given: Any
) -> AsyncIterator[ModelsStage]:
    engine = engine or FakeEngine()
    app = make_app(home.root / "nanochat", engine, **given)
    app.desk.shelf = CacheShelf(given.get("models", (MODEL,)))
    async with app.run_test(size=size, notifications=True) as pilot:
        stage = ModelsStage(app, engine, pilot, hub, home)
        await stage.until(lambda: app.desk.is_open and app.chat_screen.is_mounted, "the chats were opened")
        try:
            yield stage
        finally:
            hub.closing.set()
            await app.desk.close(app)
