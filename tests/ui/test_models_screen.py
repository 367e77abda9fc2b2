"""The screen of models: what it lists, and what a user does there, with a hub on loopback and a real cache."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from busy import BUSY
from fake_engine import MODEL, FakeEngine
from fakehome import Home
from fakehub import Hub
from fakerepo import tiny_model
from models_stage import ModelsStage, constant_memory, listed, local_model, on_models, own_folder
from textual.widgets import Input, OptionList

from nanochat.hub import local_models
from nanochat.modelhub.download import State
from nanochat.modelhub.suggestion import Candidate
from nanochat.settings import Settings
from nanochat.ui.download_flow import DownloadFlow
from nanochat.ui.screens.question import Question, TextQuestion
from nanochat.ui.widgets.facts import Facts
from nanochat.ui.widgets.hints import lines_of
from nanochat.ui.widgets.status_bar import StatusBar

BIG = listed("org/big", rows=8192)
WEIGHTS = "*/model.safetensors*"
HALF = BIG.files["model.safetensors"].size // 2


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(BIG) as hub:
        yield hub


@pytest.fixture
def home(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("HOME", str(tmp_path))
    constant_memory(monkeypatch)
    return Home.at(tmp_path, hub, monkeypatch)


async def test_the_groups_are_there_without_a_network_and_each_model_says_whether_it_fits(
    hub: Hub, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    local_model(home)
    async with on_models(home, hub, size=(200, 60)) as stage:
        await stage.open_models()
        assert "org/local" in stage.text and "66 kB" in stage.text and "fits with 4k" in stage.text
        assert "Qwen/Qwen3-8B" in stage.text and "fits with 16k" in stage.text
        assert "needs 121.0 GB more" in stage.text and "gated" in stage.text
        await stage.go_to("recommended:Qwen/Qwen3-8B")
        assert "147,456 bytes a token" in stage.said("#models-details-text")
        assert hub.requests == []


async def test_slash_model_without_a_name_opens_it_and_esc_goes_back(hub: Hub, home: Home) -> None:
    async with on_models(home, hub) as stage:
        await stage.type("/model ")
        await stage.press("enter")
        await stage.until(lambda: stage.screen == "ModelsScreen")
        await stage.press("escape")
        await stage.until(lambda: stage.screen == "ChatScreen")


async def test_the_starter_that_is_not_here_leads_the_recommended_and_enter_fetches_it(
    hub: Hub, home: Home
) -> None:
    async with on_models(home, hub, models=()) as stage:
        await stage.open_models()
        listed_keys = [key for key in stage.keys if key.startswith("recommended:")]
        assert listed_keys[0] == "recommended:SmolLM2-135M-Instruct"
        assert sum("SmolLM2-135M" in key for key in stage.keys) == 1, "the same model is not offered twice"
        await stage.go_to(listed_keys[0])
        await stage.press("enter")
        await stage.until(lambda: stage.app.host.model is not None, "it is fetched and loaded")


async def test_a_search_says_with_how_much_context_each_model_fits(hub: Hub, home: Home) -> None:
    hub.add(listed("org/chat-evil\x1b]0;x\x07", 3))
    hub.add(listed("org/chat-one", 4))
    async with on_models(home, hub, size=(200, 60)) as stage:
        await stage.open_models()
        await stage.press("slash")
        await stage.type("chat")
        await stage.press("enter")
        await stage.until(lambda: "asking the hub" in stage.text or "hub:org/chat-evil]0;x" in stage.keys)
        await stage.until(lambda: "hub:org/chat-evil]0;x" in stage.keys)
        assert stage.list.row is not None and stage.list.row.name == "org/chat-one"
        assert stage.list.row.cells["fit"] == "fits with 4k"
        assert "\x1b" not in stage.text and "3 downloads" in stage.text


async def test_a_search_offline_says_so_once_within_three_seconds_and_the_rest_works(
    hub: Hub, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    async with on_models(home, hub) as stage:
        await stage.open_models()
        await stage.press("slash")
        await stage.type("x")
        begun = time.monotonic()
        await stage.press("enter")
        await stage.until(lambda: "offline:" in stage.text)
        assert time.monotonic() - begun < BUSY * 3.0
        assert stage.text.count("offline:") == 1 and "offline" not in stage.notices
        assert "Qwen/Qwen3-8B" in stage.text


async def half_of_big(stage: ModelsStage) -> DownloadFlow:
    """Fetch a model of which half comes, and then nothing; who fetches it again gets the rest."""
    stage.hub.rule(f"{WEIGHTS} stall={HALF} times=1 origin=cdn")
    await stage.app.desk.models.acts.fetch("org/big", None)
    downloads = stage.app.desk.models.downloads
    await stage.until(lambda: downloads.all and downloads.all[0].done >= HALF)
    return downloads


async def test_a_download_goes_on_while_chatting_and_the_status_bar_says_so(hub: Hub, home: Home) -> None:
    async with on_models(home, hub, size=(80, 24)) as stage:
        await stage.open_models()
        await half_of_big(stage)
        await stage.until(lambda: "4/5 files" in stage.text and "50 %" in stage.text)
        await stage.press("escape")
        await stage.ask("hello you")
        assert stage.texts() == ["hello you", "Hello there."]
        status = stage.app.chat_screen.query_one(StatusBar)
        await stage.until(lambda: "↓ 50 %" in str(status.render()))


async def test_pause_resume_and_the_end_of_a_download(hub: Hub, home: Home) -> None:
    async with on_models(home, hub) as stage:
        await stage.open_models()
        downloads = await half_of_big(stage)
        await stage.go_to("download:org--big@main")
        await stage.press("p")
        await stage.until(lambda: downloads.all[0].state is State.PAUSED)
        await stage.until(lambda: "paused" in stage.text and not downloads.note)
        await stage.press("p")
        await stage.until(lambda: "org/big is whole and verified" in stage.notices)
        await stage.until(lambda: not downloads.all and any(key.startswith("here:") for key in stage.keys))
        assert home.is_new(BIG) and "Downloads" not in stage.text


async def test_a_cancel_asks_and_then_takes_less_than_a_second(hub: Hub, home: Home) -> None:
    async with on_models(home, hub) as stage:
        await stage.open_models()
        downloads = await half_of_big(stage)
        await stage.go_to("download:org--big@main")
        await stage.press("x")
        await stage.until(lambda: isinstance(stage.app.screen, Question))
        begun = time.monotonic()
        await stage.press("down", "enter")
        await stage.until(lambda: not downloads.all)
        assert time.monotonic() - begun < BUSY * 1.0
        await stage.until(lambda: "was cancelled" in stage.notices)
        assert not home.repository("org/big").folder.exists()


async def test_quitting_keeps_the_bytes_and_the_next_start_goes_on(hub: Hub, home: Home) -> None:
    async with on_models(home, hub) as stage:
        await half_of_big(stage)
        await stage.app.desk.close(stage.app)
    hub.closing.clear()
    async with on_models(home, hub) as stage:
        await stage.until(lambda: "goes on where it stopped" in stage.notices)
        await stage.until(lambda: "org/big is whole and verified" in stage.notices)
    assert [seen.range for seen in hub.gets(WEIGHTS, origin="cdn")] == [None, f"bytes={HALF}-"]


async def test_without_a_model_what_was_fetched_is_loaded_and_the_waiting_message_goes(
    hub: Hub, home: Home
) -> None:
    async with on_models(home, hub, models=()) as stage:
        await stage.send("I write already")
        await stage.open_models()
        await stage.app.desk.models.acts.fetch("org/big", None)
        await stage.settle()
        assert stage.texts() == ["I write already", "Hello there."]
        assert stage.app.host.model is not None and stage.app.host.model.name == "org/big"


async def test_the_first_view_offers_a_better_model_that_fits_and_fetches_it(
    hub: Hub, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "nanochat.modelhub.suggestion.candidate", lambda: Candidate("org/big", 1_500_000_000, 1)
    )
    async with on_models(home, hub, models=()) as stage:
        await stage.until(lambda: stage.app.chat_screen.query_one("#welcome-offers", OptionList).options)
        offers = stage.app.chat_screen.query_one("#welcome-offers", OptionList).options
        assert [offer.id for offer in offers] == ["starter", "get:org/big", "models"]
        await stage.press("down", "enter")
        await stage.until(lambda: stage.app.host.model is not None and stage.app.host.model.name == "org/big")


async def test_a_gated_model_says_why_and_what_to_do_next(
    hub: Hub, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(listed("org/gated", gated="auto"))
    hub.accounts["hf_good"] = set()
    cases = (
        (None, "you are not logged in"),
        ("hf_good", "accept the licence"),
        ("hf_bad", "does not accept"),
    )
    async with on_models(home, hub) as stage:
        await stage.open_models()
        for token, says in cases:
            if token:
                monkeypatch.setenv("HF_TOKEN", token)
            await stage.app.desk.models.acts.fetch("org/gated", None)
            await stage.until(lambda says=says: says in stage.notices)
            await stage.go_to("download:org--gated@main")
            await stage.until(lambda says=says: says in stage.said("#models-details-text").replace("\n", " "))
        assert "hf_good" not in stage.notices and "hf_bad" not in stage.notices


async def test_enter_loads_a_model_for_this_chat_and_the_chats_stay(hub: Hub, home: Home) -> None:
    folder = local_model(home)
    async with on_models(home, hub) as stage:
        await stage.ask("hello you")
        await stage.open_models()
        await stage.go_to(f"here:{folder}")
        await stage.press("enter")
        await stage.until(lambda: stage.screen == "ChatScreen")
        await stage.until(lambda: stage.app.host.model is not None and stage.app.host.model.path == folder)
        assert stage.texts() == ["hello you", "Hello there."]
        assert stage.app.chats.active.settings.model == "org/local"


async def test_what_does_not_fit_is_loaded_only_when_the_user_insists(
    hub: Hub, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = local_model(home)
    constant_memory(monkeypatch, 100_000)
    async with on_models(home, hub) as stage:
        await stage.open_models()
        await stage.go_to(f"here:{folder}")
        await stage.press("enter")
        await stage.until(lambda: isinstance(stage.app.screen, Question))
        await stage.press("enter")
        await stage.until(lambda: stage.screen == "ModelsScreen")
        assert stage.app.host.model == MODEL
        await stage.press("enter")
        await stage.until(lambda: isinstance(stage.app.screen, Question))
        await stage.press("down", "enter")
        await stage.until(lambda: stage.app.host.model is not None and stage.app.host.model.path == folder)
        await stage.until(lambda: len(stage.engine.loads) == 2)
        assert [load.config.overcommit for load in stage.engine.loads] == [False, True]
        stage.app.host.unload()
        await stage.until(lambda: stage.screen == "ChatScreen")
        await stage.ask("hello you")  # after idle time it is loaded as it was
        assert stage.engine.loads[-1].config.overcommit


async def test_slash_model_with_a_name_asks_too_when_the_model_does_not_fit(
    hub: Hub, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = local_model(home)
    constant_memory(monkeypatch, 100_000)
    async with on_models(home, hub) as stage:
        for answer in ("enter",), ("down", "enter"):
            await stage.type("/model org/local")
            await stage.press("enter")
            await stage.until(lambda: isinstance(stage.app.screen, Question))
            assert stage.app.host.model == MODEL and "tokens at least" in stage.said("Facts")
            await stage.press(*answer)
            await stage.until(lambda: stage.screen == "ChatScreen")
        await stage.until(lambda: stage.app.host.model is not None and stage.app.host.model.path == folder)
        await stage.until(lambda: len(stage.engine.loads) == 2)
        assert stage.engine.loads[-1].config.overcommit


async def test_a_load_shows_its_bytes_and_afterwards_estimate_and_truth(hub: Hub, home: Home) -> None:
    engine = FakeEngine(load_at_once=False)
    local_model(home)
    async with on_models(home, hub, engine) as stage:
        await stage.open_models()
        await stage.until(lambda: engine.loads)
        engine.loads[0].bytes, engine.loads[0].progress = (
            (1_200_000_000, 3_400_000_000),
            (0.35, "reading weights"),
        )
        stage.app.desk.models.on_change()
        await stage.until(lambda: "reading weights 1.2 of 3.4 GB · 35 %" in stage.said("#models-head"))
        engine.finish_load()
        await stage.until(lambda: "is loaded" in stage.said("#models-head"))


async def test_default_verify_and_remove(hub: Hub, home: Home) -> None:
    folder = local_model(home)
    hub.add(tiny_model("org/local"))
    async with on_models(home, hub) as stage:
        await stage.open_models()
        await stage.go_to(f"here:{folder}")
        await stage.press("u")
        await stage.until(lambda: "★" in stage.text)
        assert Settings.load(stage.app.paths.settings_file).default_model == "org/local"
        await stage.press("v")
        await stage.until(lambda: "org/local is whole" in stage.notices)
        blob = (folder / "model.safetensors").resolve()
        blob.write_bytes(bytes(255 - byte for byte in blob.read_bytes()))
        await stage.go_to(f"here:{folder}")
        await stage.press("v")
        await stage.until(lambda: "damaged: model.safetensors" in stage.notices)
        await stage.press("enter")
        await stage.until(lambda: "org/local is whole and verified" in stage.notices)
        await stage.until(lambda: "damaged" not in stage.text and f"here:{folder}" in stage.keys)
        await stage.go_to(f"here:{folder}")
        await stage.press("x")
        await stage.until(lambda: isinstance(stage.app.screen, Question))
        assert "It is the default model" in stage.said(".dialog-text Static")
        await stage.press("down", "enter")
        await stage.until(lambda: "org/local is removed" in stage.notices)
        await stage.until(lambda: f"here:{folder}" not in stage.keys)
        assert not folder.exists() and not Settings.load(stage.app.paths.settings_file).default_model


async def test_a_loaded_model_that_is_removed_is_unloaded_first(hub: Hub, home: Home) -> None:
    folder = local_model(home)
    async with on_models(home, hub, models=()) as stage:
        stage.app.host.start(next(model for model in local_models() if model.path == folder))
        await stage.open_models()
        await stage.go_to(f"here:{folder}")
        await stage.until(lambda: "loaded" in stage.text)
        await stage.press("x")
        await stage.until(lambda: isinstance(stage.app.screen, Question))
        assert "unloaded first" in stage.said(".dialog-text Static")
        await stage.press("down", "enter")
        await stage.until(lambda: not folder.exists())
        assert stage.app.host.model is None and stage.engine.stats().state == "unloaded"


async def test_leftovers_are_offered_and_cleaned_after_a_question(hub: Hub, home: Home) -> None:
    local_model(home)
    part = home.repository("org/local").part("a" * 64)
    part.write_bytes(b"x" * 5000)
    async with on_models(home, hub) as stage:
        await stage.open_models()
        await stage.go_to("leftovers")
        assert "5 kB in 1 leftover of unfinished downloads" in stage.text
        await stage.press("enter")
        await stage.until(lambda: isinstance(stage.app.screen, Question))
        await stage.press("enter")
        await stage.until(lambda: "5 kB freed" in stage.notices)
        assert not part.exists()
        await stage.until(lambda: "leftovers" not in stage.keys)


async def test_a_model_in_any_folder_is_used_in_place(hub: Hub, home: Home) -> None:
    folder = own_folder(home.root / "mine")
    async with on_models(home, hub) as stage:
        await stage.open_models()
        await stage.press("o")
        await stage.until(lambda: isinstance(stage.app.screen, TextQuestion))
        first = stage.app.screen
        first.query_one(Input).value = f"{folder}s"
        await stage.press("enter")
        await stage.until(
            lambda: stage.app.screen is not first and isinstance(stage.app.screen, TextQuestion)
        )
        assert stage.app.screen.query_one(Input).value == f"{folder}s" and f"{folder}s" in stage.said(
            ".dialog-wrong"
        )
        stage.app.screen.query_one(Input).value = str(folder)
        await stage.press("enter")
        await stage.until(lambda: stage.app.host.model is not None and stage.app.host.model.path == folder)


async def test_a_folder_that_does_not_fit_asks_too_and_afterwards_truth_stands_beside_the_estimate(
    hub: Hub, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = own_folder(home.root / "mine")
    constant_memory(monkeypatch, 100_000)
    async with on_models(home, hub) as stage:
        await stage.open_models()
        await stage.press("o")
        await stage.until(lambda: isinstance(stage.app.screen, TextQuestion))
        stage.app.screen.query_one(Input).value = str(folder)
        await stage.press("enter")
        await stage.until(lambda: isinstance(stage.app.screen, Question))
        assert "tokens at least" in stage.said("Facts")
        await stage.press("down", "enter")
        await stage.until(lambda: stage.app.host.model is not None and stage.app.host.model.path == folder)
        await stage.until(lambda: stage.screen == "ChatScreen")
        await stage.press("f3")
        await stage.until(lambda: stage.screen == "ModelsScreen")
        await stage.until(lambda: "mine is loaded" in stage.said("#models-head"))


async def test_unload_asks_while_a_reply_streams_and_the_next_message_loads_again(
    hub: Hub, home: Home
) -> None:
    engine = FakeEngine(manual=True)
    async with on_models(home, hub, engine) as stage:
        await stage.send("count")
        await stage.until(lambda: engine.requests)
        await stage.open_models()
        await stage.press("e")
        await stage.until(lambda: isinstance(stage.app.screen, Question))
        await stage.press("enter")
        await stage.until(lambda: stage.screen == "ModelsScreen")
        assert engine.stats().state == "ready"
        await stage.press("e")
        await stage.until(lambda: isinstance(stage.app.screen, Question))
        await stage.press("down", "enter")
        await stage.settle()
        assert engine.stats().state == "unloaded"
        engine.manual = False
        await stage.until(lambda: stage.screen == "ModelsScreen")
        await stage.press("escape")
        await stage.ask("again")
        assert stage.texts()[-1] == "Hello there." and len(engine.loads) == 2


async def test_an_idle_model_is_unloaded_after_the_users_time(
    hub: Hub, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with on_models(home, hub) as stage:
        await stage.ask("hello you")
        await stage.open_models()
        await stage.press("t")
        await stage.until(lambda: isinstance(stage.app.screen, Question))
        await stage.press("down", "enter")
        await stage.until(lambda: stage.app.settings.idle_unload_minutes == 5)
        stage.app.host.last_used -= 301
        await stage.until(lambda: stage.engine.stats().state == "unloaded")
        await stage.press("escape")
        await stage.ask("again")
        assert stage.texts()[-1] == "Hello there." and len(stage.engine.loads) == 2


async def test_details_of_a_model_on_the_hub_come_from_its_headers_not_its_weights(
    hub: Hub, home: Home
) -> None:
    few = listed("org/chat-one")
    hub.add(few)
    async with on_models(home, hub, size=(80, 24)) as stage:
        await stage.open_models()
        await stage.app.desk.models.search("chat-one")
        await stage.go_to("hub:org/chat-one")
        await stage.press("i")
        await stage.until(lambda: stage.screen == "Page")
        text = str(stage.app.screen.query_one(Facts).render())
        assert few.commit in text and "so it         fits with 4k" in text
        assert all(seen.range for seen in hub.gets("*.safetensors*", origin="cdn"))


async def test_details_without_the_hub_are_what_is_known_here(
    hub: Hub, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    async with on_models(home, hub, size=(80, 24)) as stage:
        await stage.open_models()
        await stage.go_to("recommended:Qwen/Qwen3-8B")
        await stage.press("i")
        await stage.until(lambda: stage.screen == "Page")
        text = str(stage.app.screen.query_one(Facts).render())
        assert "147,456 bytes a token" in text and "offline:" in text


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (23, ["Enter load · u default", "i details · / search"]),
        (12, ["Enter load", "u default", "i details", "/ search"]),
    ],
)
def test_a_hint_stands_on_one_line(width: int, lines: list[str]) -> None:
    assert lines_of(("Enter load", "u default", "i details", "/ search"), width) == lines
