"""Where an address goes that the user wants to open."""

from __future__ import annotations

import webbrowser

import pytest

from nanochat.ui.links import _open

URL = "https://example.org/"


class Browser(webbrowser.GenericBrowser):
    """Takes every address."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.opened: list[str] = []

    def open(self, url: str, new: int = 0, autoraise: bool = True) -> bool:
        self.opened.append(url)
        return True


@pytest.mark.parametrize("name", ["w3m", "/usr/bin/lynx", "www-browser"])
def test_a_browser_that_draws_in_the_terminal_is_not_started(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = Browser(name)
    monkeypatch.setattr(webbrowser, "get", lambda: browser)
    assert not _open(URL)
    assert not browser.opened


def test_another_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    browser = Browser("/usr/bin/xdg-open")
    monkeypatch.setattr(webbrowser, "get", lambda: browser)
    assert _open(URL)
    assert browser.opened == [URL]


def test_without_any_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> webbrowser.BaseBrowser:
        raise webbrowser.Error("could not locate runnable browser")

    monkeypatch.setattr(webbrowser, "get", none)
    assert not _open(URL)
