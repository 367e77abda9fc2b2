"""What is on this machine, and which folder a name means."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat import hub
from nanochat.errors import InvalidModel, ModelNotFound
from nanochat.modelhub import starter
from nanochat.settings import Settings

CONFIG = {"architectures": ["Qwen3ForCausalLM"], "torch_dtype": "bfloat16", "max_position_embeddings": 40960}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    return folder


def put(cache: Path, name: str, config: object = CONFIG, *, weights: bool = True, main: bool = True) -> Path:
    """A repository laid out as the hub's own tools do: blobs, a snapshot of links, a ref."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": b"w" * 100}
    for file, content in files.items():
        if file == "config.json" or weights:
            (repository / "blobs" / file).write_bytes(content)
            (snapshot / file).symlink_to(Path("../../blobs") / file)
    if main:
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("a" * 40)
    return snapshot


def test_language_models_with_safetensors_are_listed_and_nothing_else(cache: Path) -> None:
    put(cache, "Qwen/Qwen3-0.6B")
    put(cache, "gpt2", {"architectures": ["GPT2LMHeadModel"]}, main=False)
    put(cache, "bert/base", {"architectures": ["BertForMaskedLM"]})
    put(cache, "pickle/only", weights=False)
    put(cache, "odd/list", [1, 2])
    (cache / "models--empty--one").mkdir()
    (cache / "datasets--some--thing").mkdir()
    found = hub.local_models()
    assert [model.name for model in found] == ["gpt2", "Qwen/Qwen3-0.6B"]
    assert (found[1].size, found[1].dtype, found[1].context) == (100, "bfloat16", 40960)


def test_a_name_its_end_and_any_case_find_the_model(cache: Path) -> None:
    snapshot = put(cache, "Qwen/Qwen3-0.6B")
    for name in ("Qwen/Qwen3-0.6B", "qwen/qwen3-0.6b", "Qwen3-0.6B", "qwen3-0.6b"):
        assert hub.resolve(name).path == snapshot


def test_an_ambiguous_end_names_the_candidates(cache: Path) -> None:
    put(cache, "a/model")
    put(cache, "b/model")
    with pytest.raises(ModelNotFound, match="a/model, b/model"):
        hub.resolve("model")


def test_an_unknown_name_says_what_is_here_and_what_is_close(cache: Path) -> None:
    put(cache, "Qwen/Qwen3-0.6B")
    with pytest.raises(ModelNotFound) as caught:
        hub.resolve("qwen3-0.6")
    assert "did you mean Qwen/Qwen3-0.6B?" in str(caught.value)
    with pytest.raises(ModelNotFound, match=r"what is here: starter, Qwen/Qwen3-0\.6B"):
        hub.resolve("zzz")


def test_a_folder_is_a_model_when_it_has_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    with pytest.raises(InvalidModel, match=r"no config\.json"):
        hub.resolve(str(folder))
    with pytest.raises(ModelNotFound, match="there is no folder"):
        hub.resolve(str(tmp_path / "absent"))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.chdir(tmp_path)
    for name in (str(folder), "mine", "./mine"):
        assert hub.resolve(name).path == folder
    with pytest.raises(InvalidModel, match="is a file"):
        hub.resolve(str(folder / "config.json"))


@pytest.mark.parametrize(
    "name", ["x" * 5000, "/" + "x" * 5000, "~nobody-here/model", "a\nb", "../../etc", "\U0001f642"]
)
def test_any_text_is_only_a_name_that_is_not_here(cache: Path, name: str) -> None:
    with pytest.raises((ModelNotFound, InvalidModel)):
        hub.resolve(name)


def test_a_missing_shard_is_listed_and_refused(cache: Path) -> None:
    snapshot = put(cache, "big/model", weights=False)
    names = [f"model-{part}-of-3.safetensors" for part in (1, 2, 3)]
    index = {"weight_map": {f"tensor{part}": name for part, name in enumerate(names)}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    (snapshot / names[0]).write_bytes(b"w" * 7)
    assert [(model.size, model.missing) for model in hub.local_models()] == [(7, 2)]
    with pytest.raises(InvalidModel, match="lacks 2 of its weight files"):
        hub.resolve("big/model")


def test_the_default_is_the_settings_choice_else_the_starter(
    cache: Path, starter_home: Path, starter_model: Path
) -> None:
    put(cache, "Qwen/Qwen3-0.6B")
    for name in (None, "", "starter", "STARTER", "smollm2-135m-instruct"):
        assert hub.resolve(name).path.resolve() == starter_model
    Settings.change(default_model="Qwen3-0.6B")
    assert hub.resolve(None).name == "Qwen/Qwen3-0.6B"
    assert [model.name for model in hub.local_models()] == [starter.NAME, "Qwen/Qwen3-0.6B"]
    Settings.change(default_model="gone")
    with pytest.raises(ModelNotFound, match=r"models\.default in your settings"):
        hub.resolve(None)


def test_the_variables_of_the_hubs_own_tools_are_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert hub.cache_folder() == Path.home() / ".cache/huggingface/hub"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert hub.cache_folder() == Path("/x/huggingface/hub")
    monkeypatch.setenv("HF_HOME", "/h")
    assert hub.cache_folder() == Path("/h/hub")
    monkeypatch.setenv("HF_HUB_CACHE", "/c")
    assert hub.cache_folder() == Path("/c")


def test_looking_imports_nothing_heavy(cache: Path, starter_home: Path) -> None:
    put(cache, "Qwen/Qwen3-0.6B")
    program = (
        "import sys; from nanochat import hub; hub.local_models(); hub.resolve('starter')\n"
        "print([name for name in ('torch','transformers','huggingface_hub','textual','numpy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
