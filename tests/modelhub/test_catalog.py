"""What there is to choose from: the curated list without a network, the hub's search and facts with one."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fakehome import Home
from fakehub import Hub
from fakerepo import File, Repo, safetensors, tiny_model

from nanochat.errors import DownloadError, ModelNotFound, Offline
from nanochat.modelhub.catalog import describe, recommended, search

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}


def listed(name: str, downloads: int, config: dict[str, Any] | None = None, **facts: Any) -> Repo:
    counts = {"parameters": {"BF16": 1000, "F32": 10}, "total": 1010}
    known = {"config": config or LLAMA, "safetensors": counts, "cardData": {"license": "mit"}}
    return tiny_model(name, facts={"downloads": downloads, **known, **facts})


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


def test_the_curated_list_is_whole_and_spans_a_laptop_to_a_server() -> None:
    models = recommended()
    assert 15 <= len(models) <= 25 and len({one.repo_id for one in models}) == len(models)
    sizes = [one.parameters or 0 for one in models]
    assert sizes == sorted(sizes) and sizes[0] < 400e6 and sizes[-1] > 65e9
    for one in models:
        assert one.licence and one.family and one.context and one.shape is not None
        assert one.download_size is not None and one.download_size >= 2 * one.shape.parameters
        assert one.download_size < 3 * one.shape.parameters


def test_the_curated_parameters_follow_from_the_shapes() -> None:
    for one in recommended():
        shape = one.shape
        assert shape is not None
        embedding = shape.vocabulary * shape.hidden
        layer = 3 * shape.hidden * shape.intermediate + 2 * shape.hidden * shape.kv_heads * shape.head_dim
        assert (
            layer * shape.layers + embedding < shape.parameters < 1.6 * layer * shape.layers + 2 * embedding
        )


def test_a_search_lists_what_runs_most_downloaded_first_over_all_pages(hub: Hub, home: Home) -> None:
    for number in range(7):
        hub.add(listed(f"org/chat-{number}", downloads=number))
    hub.add(listed("org/chat-mamba", 99, {"architectures": ["MambaForCausalLM"], "model_type": "mamba"}))
    hub.add(listed("org/chat-awq", 98, LLAMA | {"quantization_config": {"quant_method": "awq"}}))
    hub.add(listed("org/chat-evil\x1b[31m", 97))
    hub.add(listed("org/other", 96))
    found = search("chat", limit=5)
    assert [one.repo_id for one in found] == [
        "org/chat-evil[31m",
        "org/chat-6",
        "org/chat-5",
        "org/chat-4",
        "org/chat-3",
    ]
    assert found[1].parameters == 1010 and found[1].download_size == 2040 and found[1].licence == "mit"
    asked = hub.gets("/api/models")[0].query
    assert asked["sort"] == ["downloads"] and asked["pipeline_tag"] == ["text-generation"]
    assert asked["filter"] == ["safetensors"] and asked["search"] == ["chat"]


def test_a_search_without_a_network_says_offline_within_three_seconds(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    begun = time.monotonic()
    with pytest.raises(Offline, match=r"offline: .* cannot be reached"):
        search("x")
    assert time.monotonic() - begun < 3.0


def test_a_network_that_swallows_packets_is_offline_within_three_seconds(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as deaf, socket.socket() as one, socket.socket() as two:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for filler in (one, two):  # the queue is full: what comes now is dropped
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        begun = time.monotonic()
        with pytest.raises(Offline, match="offline"):
            search("x")
        assert time.monotonic() - begun < 3.2


def test_offline_mode_is_said_at_once_and_asks_nothing(
    hub: Hub, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(Offline, match="HF_HUB_OFFLINE is set"):
        search("x")
    assert hub.requests == []


def test_a_hub_that_fails_a_search_is_quoted(hub: Hub, home: Home) -> None:
    hub.rule("/api/models status=404")
    with pytest.raises(DownloadError, match="status 404"):
        search("x")


def test_a_repository_is_described_without_its_weights(hub: Hub, home: Home) -> None:
    tensors = {"model.embed_tokens.weight": [512, 64], "lm_head.weight": [512, 64]}
    repo = tiny_model("org/tiny", facts={"cardData": {"license": "apache-2.0"}})
    many = {f"t{i}": [1] for i in range(3000)}  # a header of more than the first range
    repo.files["model.safetensors"] = File(safetensors(tensors | many), lfs=True)
    hub.add(repo)
    found = describe("org/tiny", "main", home.cache)
    assert found.licence == "apache-2.0" and found.commit == repo.commit and found.refusal is None
    assert (
        found.shape is not None and found.shape.parameters == 512 * 64 + 3000
    )  # tied: the output layer counts once
    assert found.dtypes == {"BF16": 2 * 512 * 64 + 3000}
    assert found.download_size == sum(size for _, size in found.files)
    weights = hub.gets("*model.safetensors*", origin="cdn")
    assert weights[0].range == "bytes=0-65535" and len(weights) == 2
    assert not home.cache.exists() or not list(home.cache.rglob("*.safetensors"))


def test_what_does_not_run_or_may_not_be_fetched_is_described_with_the_reason(hub: Hub, home: Home) -> None:
    hub.add(tiny_model("org/quantized", config={"quantization_config": {"quant_method": "gptq"}}))
    refused = describe("org/quantized", "main", home.cache)
    assert refused.refusal is not None and "quantized (gptq)" in refused.refusal and refused.shape is None
    hub.add(tiny_model("org/gated", gated="auto"))
    denied = describe("org/gated", "main", home.cache)
    assert denied.gated and denied.denied is not None and "hf auth login" in denied.denied
    with pytest.raises(ModelNotFound):
        describe("org/none", "main", home.cache)


def test_a_search_knows_what_each_model_takes_where_its_configuration_can_be_read(
    hub: Hub, home: Home
) -> None:
    hub.add(listed("org/chat-open", 3))
    hub.add(listed("org/chat-gated", 2)).gated = "auto"
    broken = hub.add(listed("org/chat-broken", 1))
    broken.files["config.json"] = File(b"{")
    mamba = hub.add(listed("org/chat-hidden", 4))  # the search tells of a Llama
    mamba.files["config.json"] = File(b'{"architectures": ["MambaForCausalLM"], "model_type": "mamba"}')
    found = search("chat")
    shapes = {one.repo_id: one.shape for one in found}
    known = shapes["org/chat-open"]
    assert known is not None and (known.layers, known.context, known.parameters) == (2, 4096, 1010)
    assert shapes["org/chat-gated"] is None and shapes["org/chat-broken"] is None
    assert "org/chat-hidden" not in shapes
    assert ["once you have access" in one.only_weights for one in found] == [False, True, False]
    assert not hub.gets("*.safetensors*")
