"""What is refused, and what a refusal says: gates, models that cannot run, hostile names, disks that are full."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fakehome import Home
from fakehub import Hub
from fakerepo import File, Repo, tiny_model

from nanochat.errors import AccessDenied, DownloadError, InvalidModel, ModelNotFound, UnsupportedModel
from nanochat.transfer.events import CannotPause

WEIGHTS = "*model.safetensors*"
NEW = tiny_model(seed=2)
SIZE = NEW.files["model.safetensors"].size


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(NEW) as hub:
        yield hub


# -- gates


def test_gated_without_a_token_names_the_three_steps(hub: Hub, home: Home) -> None:
    NEW_GATED = hub.add(tiny_model("org/gated", gated="auto"))
    error = home.fails(home.spec("org/gated"))
    assert isinstance(error, AccessDenied)
    assert "not logged in" in str(error) and f"{hub.url}/{NEW_GATED.id}" in str(error)
    assert "hf auth login" in str(error) and home.files() == set()


def test_gated_with_a_token_without_the_licence_names_the_page(
    hub: Hub, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(tiny_model("org/gated", gated="manual"))
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    hub.accounts["hf_good"] = set()
    error = home.fails(home.spec("org/gated"))
    assert isinstance(error, AccessDenied) and "accept the licence" in str(error)
    assert "hf_good" not in str(error) and "HF_TOKEN" in str(error)


def test_a_bad_token_is_called_bad_and_never_shown(
    hub: Hub, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(tiny_model("org/gated", gated="auto"))
    monkeypatch.setenv("HF_TOKEN", "hf_stale")
    error = home.fails(home.spec("org/gated"))
    assert isinstance(error, AccessDenied) and "does not accept your token" in str(error)
    assert "hf_stale" not in str(error)


@pytest.mark.parametrize("token", [None, "hf_good"])
def test_private_or_missing_says_so(
    hub: Hub, home: Home, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    hub.add(tiny_model("org/private", private=True))
    hub.accounts["hf_good"] = set()
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    for repo_id in ("org/private", "org/none"):
        error = home.fails(home.spec(repo_id))
        assert isinstance(error, ModelNotFound) and "Check the spelling" in str(error)


def test_a_token_that_may_fetches_the_gated_model(
    hub: Hub, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = hub.add(tiny_model("org/gated", gated="auto"))
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    hub.accounts["hf_good"] = {"org/gated"}
    home.fetch(home.spec("org/gated"))
    assert home.is_new(repo)
    assert not any(b"hf_good" in path.read_bytes() for path in home.root.rglob("*") if path.is_file())


# -- refusals, before anything is fetched


def _without(*names: str, **files: bytes) -> Repo:
    repo = tiny_model("org/odd")
    kept = {name: file for name, file in repo.files.items() if name not in names and "/" not in name}
    return Repo("org/odd", kept | {name: File(content) for name, content in files.items()})


@pytest.mark.parametrize(
    ("repo", "kind", "says"),
    [
        (_without("model.safetensors", "consolidated.safetensors"), UnsupportedModel, "pickle weights only"),
        (
            _without(
                "model.safetensors", "consolidated.safetensors", "pytorch_model.bin", **{"m.gguf": b"GGUF"}
            ),
            UnsupportedModel,
            "GGUF",
        ),
        (_without("config.json", **{"adapter_config.json": b"{}"}), UnsupportedModel, "adapter"),
        (_without("tokenizer.json"), InvalidModel, "no tokenizer"),
        (
            tiny_model("org/odd", config={"architectures": ["BertModel"], "model_type": "bert"}),
            UnsupportedModel,
            "Bert",
        ),
        (
            tiny_model("org/odd", config={"quantization_config": {"quant_method": "gptq"}}),
            UnsupportedModel,
            "quantized (gptq)",
        ),
        (tiny_model("org/odd", config={"num_attention_heads": -1}), InvalidModel, "num_attention_heads"),
    ],
)
def test_what_cannot_run_is_refused_by_name_before_anything_is_fetched(
    hub: Hub, home: Home, repo: Repo, kind: type[Exception], says: str
) -> None:
    hub.add(repo)
    error = home.fails(home.spec("org/odd"))
    assert isinstance(error, kind) and says in str(error) and "org/odd" in str(error)
    assert home.files() == set()
    assert hub.gets("*.safetensors*") == []


@pytest.mark.parametrize(
    "name", ["../../x.safetensors", "/tmp/x.safetensors", "a/../../x.safetensors", "C:\\x", "..\\x"]
)
def test_an_index_that_points_outside_writes_nothing(hub: Hub, home: Home, name: str) -> None:
    index = json.dumps({"weight_map": {"a": "model.safetensors", "b": name}}).encode()
    repo = _without(**{"model.safetensors.index.json": index})
    repo.files[name] = File(b"evil", lfs=True)
    hub.add(repo)
    error = home.fails(home.spec("org/odd"))
    assert isinstance(error, InvalidModel) and "outside its folder" in str(error)
    assert home.files() == set() and not Path("/tmp/x.safetensors").exists()


def test_an_index_that_names_a_missing_file_is_refused(hub: Hub, home: Home) -> None:
    index = json.dumps({"weight_map": {"a": "model-9.safetensors"}}).encode()
    hub.add(_without(**{"model.safetensors.index.json": index}))
    error = home.fails(home.spec("org/odd"))
    assert isinstance(error, InvalidModel) and "not in the repository" in str(error)


@pytest.mark.parametrize("revision", ["../../x", "/etc", "a/../../b", ""])
def test_a_revision_that_is_a_path_outside_is_refused(home: Home, revision: str) -> None:
    assert "is not a revision" in str(home.fails(home.spec(revision=revision)))
    assert home.files() == set()


def test_a_wrong_size_in_the_listing_is_found(hub: Hub, home: Home) -> None:
    hub.rule(f"/api/models/* size={SIZE + 50}")
    error = home.fails()
    assert isinstance(error, DownloadError) and str(SIZE) in str(error)
    assert not home.is_new(NEW)


# -- the disk


def test_the_disk_is_checked_for_the_whole_before_the_first_byte(
    hub: Hub, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2 << 20})())
    error = home.fails(replace(home.spec(), reserved=(2 << 20) - 1000))
    assert "not enough disk" in str(error) and "HF_HOME" in str(error)
    assert home.files() == set() and hub.gets(WEIGHTS) == []


def test_a_disk_that_fills_up_keeps_the_bytes_and_says_so(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwrite

    def full(descriptor: int, data: bytes, offset: int) -> int:
        if offset >= 20000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[: 20000 - offset], offset)

    monkeypatch.setattr(os, "pwrite", full)
    error = home.fails()
    assert isinstance(error, DownloadError) and "the disk is full" in str(error)
    part = home.repository().part(NEW.files["model.safetensors"].etag)
    assert part.stat().st_size == 20000
    monkeypatch.undo()
    home.assert_nothing_broken(NEW)


def test_what_only_xet_serves_comes_through_the_hub_client_and_says_that_it_cannot_pause(
    hub: Hub, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    hub.xet_only.add("model.safetensors")
    home.fetch()
    assert any(isinstance(event, CannotPause) for event in home.events)
    assert home.is_new(NEW)
    home.assert_nothing_broken(NEW)
