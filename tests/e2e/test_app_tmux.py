"""The real program in a real terminal (tmux) with the real starter model: what a user sees and does."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nanochat.history import History

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")

ROOT = Path(__file__).parents[2]
SECONDS = 90.0  # a busy machine loads the model slowly


class Tmux:
    """A tmux server of its own with one window."""

    def __init__(self, name: str, home: Path) -> None:
        self.name, self.home = name, home
        self.variables = {
            "NANOCHAT_HOME": str(home), "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
            "HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "PIP_INDEX_URL": "http://127.0.0.1:9/",
            "HF_HUB_CACHE": str(home / "no-cache"), "COLORTERM": "truecolor",
        }  # fmt: skip

    def run(self, *arguments: str) -> str:
        return subprocess.run(
            ["tmux", "-L", self.name, *arguments], capture_output=True, text=True, check=True, timeout=20
        ).stdout

    def start(self, width: int = 120, height: int = 40, options: str = "") -> None:
        """Open the window and the program in it, as a user would: from a shell."""
        env = [part for name, value in self.variables.items() for part in ("-e", f"{name}={value}")]
        size = ("-x", str(width), "-y", str(height))
        self.run(
            "-f", "/dev/null", "new-session", "-d", "-s", "main", *size, *env, "-c", str(self.home), "/bin/sh"
        )
        os.mkfifo(self.home / "output")
        self.output = os.open(self.home / "output", os.O_RDONLY | os.O_NONBLOCK)
        self.run("pipe-pane", "-t", "main", f"exec cat > '{self.home / 'output'}'")
        self.launch(options)

    def launch(self, options: str = "") -> None:
        self.keys(f"{sys.executable} -m nanochat {options}; echo LEFT WITH $?", "Enter")

    def keys(self, *keys: str) -> None:
        self.run("send-keys", "-t", "main", *keys)

    def say(self, text: str) -> None:
        self.run("send-keys", "-t", "main", "-l", text)
        self.keys("Enter")

    @property
    def screen(self) -> str:
        return self.run("capture-pane", "-p", "-t", "main")

    def until(self, true: Callable[[str], object], what: str, seconds: float = SECONDS) -> str:
        """Look whenever the program has written something, until it is true."""
        end = time.monotonic() + seconds
        while not true(screen := self.screen):
            assert time.monotonic() < end, f"{what} never happened; the screen is\n{screen}"
            self._await_output(1.0)
        return screen

    def _await_output(self, seconds: float) -> None:
        if select.select([self.output], [], [], seconds)[0]:
            os.read(self.output, 1 << 20)

    def ready(self) -> None:
        self.until(lambda screen: re.search(r"^ ready ", screen, re.M), "the model got ready")

    def program(self) -> int:
        """The process id of the program in the window."""
        shell = self.run("list-panes", "-t", "main", "-F", "#{pane_pid}").strip()
        return int(
            subprocess.run(["pgrep", "-P", shell], capture_output=True, text=True, check=True).stdout.split()[
                0
            ]
        )

    def given_back(self) -> None:
        """Wait until the terminal takes lines again: a shell is back before what a killed program left is mended."""
        name = self.run("list-panes", "-t", "main", "-F", "#{pane_tty}").strip()
        terminal = os.open(name, os.O_RDWR | os.O_NOCTTY)
        try:
            lines = termios.ICRNL, termios.ICANON | termios.ISIG

            def cooked(_: str) -> bool:
                read, _, _, local, *_ = termios.tcgetattr(terminal)
                return (read & lines[0], local & lines[1]) == lines

            self.until(cooked, "the terminal's settings", 20)
        finally:
            os.close(terminal)

    def close(self) -> None:
        os.close(self.output)
        subprocess.run(["tmux", "-L", self.name, "kill-server"], capture_output=True, check=False, timeout=20)


@pytest.fixture
def tmux(tmp_path: Path, starter_home: Path) -> Iterator[Tmux]:
    tmux = Tmux(f"nanochat-{os.getpid()}-{tmp_path.name}", starter_home)
    yield tmux
    tmux.close()


def footers(screen: str) -> list[str]:
    """The lines under the replies."""
    return [
        line.strip()
        for line in screen.splitlines()
        if re.match(r"\s+(‹ \d+/\d+ ›  )?[\d.,]+ tok/s · \d+ tok · TTFT", line)
    ]


def brief(tmux: Tmux, tokens: int) -> None:
    """Let replies be short."""
    tmux.say(f"/set max_tokens {tokens}")
    tmux.say("/set temperature 0")


def test_the_first_run_without_network_says_so_and_stays_usable(tmux: Tmux) -> None:
    (tmux.home / "data" / "models").unlink()
    tmux.start(80, 24)
    tmux.until(lambda screen: "Get the starter model" in screen, "the first view")
    tmux.keys("Enter")
    tmux.until(lambda screen: "could not be fetched" in screen, "the word that there is no network")
    tmux.until(lambda screen: "Get the starter model" in screen, "the offer again")
    tmux.say("still here")
    screen = tmux.until(lambda screen: "waits for a model" in screen, "the message that waits")
    assert "Traceback" not in screen
    tmux.keys("C-q")
    tmux.until(lambda screen: "Quit nanochat?" in screen, "the question")
    tmux.keys("Enter")
    tmux.until(lambda screen: "LEFT WITH 0" in screen, "the end")


def test_two_turns_show_the_reuse_and_a_version_of_an_edit_and_a_fork(tmux: Tmux) -> None:
    tmux.start()
    tmux.ready()
    brief(tmux, 24)
    tmux.say("Write one sentence about the sea.")
    tmux.until(lambda screen: len(footers(screen)) == 1, "the first reply")
    tmux.say("And one about the sky.")
    screen = tmux.until(lambda screen: len(footers(screen)) == 2, "the second reply")
    first, second = (int(re.search(r"reused (\d+) %", line)[1]) for line in footers(screen))  # type: ignore[index]
    assert first == 0
    assert second >= 60
    tmux.say("/edit")
    tmux.until(lambda screen: "Editing" in screen, "the edit")
    tmux.keys("C-u")
    tmux.say("And one about the moon.")
    tmux.until(
        lambda screen: (
            "about the sky" not in screen and "about the moon" in screen and len(footers(screen)) == 2
        ),
        "the edited turn's reply",
    )
    tmux.say("/fork")
    screen = tmux.until(lambda screen: re.match(r" 1.* 2.* \+", screen.splitlines()[0]), "the fork's tab")
    tmux.say("And the sun?")
    tmux.until(lambda screen: len(footers(screen)) == 3, "the fork's reply")
    tmux.keys("M-1")
    tmux.until(lambda screen: "And the sun?" not in screen and len(footers(screen)) == 2, "the first tab")


def test_two_tabs_stream_at_once_and_esc_stops_one(tmux: Tmux) -> None:
    tmux.start()
    tmux.ready()
    tmux.say("/set temperature 0")
    tmux.say("Write a long story about a ship.")
    tmux.until(lambda screen: " streaming " in screen.splitlines()[-1], "the first stream")
    tmux.keys("C-t")
    tmux.say("Write a long story about a horse.")
    tmux.until(
        lambda screen: screen.splitlines()[0].count("●") == 2 and " streaming " in screen.splitlines()[-1],
        "both streams",
    )
    tmux.keys("Escape")
    tmux.until(
        lambda screen: "· stopped" in screen and screen.splitlines()[0].count("●") == 1, "the stop of one"
    )
    tmux.keys("M-1")
    tmux.until(lambda screen: "about a ship" in below_the_tabs(screen), "the first tab")
    tmux.keys("C-c")
    tmux.until(
        lambda screen: (
            "· stopped" in screen
            and "about a ship" in below_the_tabs(screen)
            and "●" not in screen.splitlines()[0]
        ),
        "the other stop",
    )


def test_after_a_kill_the_reply_is_there_and_goes_on(tmux: Tmux) -> None:
    tmux.start()
    tmux.ready()
    tmux.say("/set temperature 0")
    tmux.say("Write a long story about a ship.")
    tmux.until(lambda screen: " streaming " in screen.splitlines()[-1], "the stream")
    shown = tmux.until(
        lambda screen: "the next turn" not in screen and len(text_of(screen).split()) > 20,
        "some text, and nothing over it",
    )
    tmux.until(lambda _: saved(tmux).startswith(words(shown)), "what was shown is saved")
    os.kill(tmux.program(), signal.SIGKILL)
    tmux.given_back()  # what the shell says of the kill may be gone with the screen that is put away
    tmux.keys("clear", "Enter")
    tmux.until(lambda screen: "LEFT WITH" not in screen, "a clear screen")
    tmux.launch()
    tmux.until(
        lambda screen: "interrupted" in screen and reply_in(screen).startswith(words(shown)),
        "the interrupted reply with all that was shown",
    )
    with History.open(tmux.home / "data" / "chats") as history:
        assert not history.check()
    tmux.ready()
    tmux.say("/set max_tokens 8")
    tmux.say("/continue")
    tmux.until(lambda screen: "2/2" in screen and len(footers(screen)) == 1, "the reply that went on")


def test_resizing_while_it_streams_loses_nothing(tmux: Tmux) -> None:
    tmux.start(120, 40)
    tmux.ready()
    brief(tmux, 80)
    tmux.say("Write a story about a lighthouse.")
    tmux.until(lambda screen: " streaming " in screen.splitlines()[-1], "the stream")
    for width, height in ((80, 24), (60, 20), (200, 50), (40, 12), (120, 40)):
        tmux.run("resize-window", "-t", "main", "-x", str(width), "-y", str(height))
        screen = tmux.until(lambda screen, rows=height: len(screen.splitlines()) == rows, "the new size")
        assert "Traceback" not in screen
    tmux.until(
        lambda screen: (
            footers(screen) and (reply := written(tmux)) and reply[-40:] in " ".join(text_of(screen).split())
        ),
        "the whole reply",
    )


def test_eighty_by_twenty_four_has_all_that_matters(tmux: Tmux) -> None:
    tmux.start(80, 24)
    tmux.ready()
    brief(tmux, 16)
    tmux.say("hello there, how are you?")
    screen = tmux.until(  # the status bar is drawn five times a second, and may be behind the reply
        lambda screen: footers(screen) and "ready" in screen.splitlines()[-1], "the reply and the end of it"
    )
    lines = screen.splitlines()
    assert len(lines) == 24
    assert "hello there" in screen
    assert "ctx " in lines[-1]
    tmux.keys("F1")
    tmux.until(lambda screen: "Keys and commands" in screen, "the help")
    tmux.keys("Escape", "C-q")
    tmux.until(  # the shell's own lines are there again
        lambda screen: "LEFT WITH 0" in screen and "-m nanochat" in screen, "the end"
    )


def test_a_model_over_two_devices_is_used_like_any_other_and_comes_back_when_one_is_lost(tmux: Tmux) -> None:
    tmux.start(80, 24, "--tp 2")
    tmux.ready()
    assert "SmolLM2-135M-Instruct ×2" in tmux.screen.splitlines()[-1]
    brief(tmux, 16)
    tmux.say("hello there, how are you?")
    tmux.until(footers, "the reply")
    tmux.keys("F7")
    tmux.until(lambda screen: "This model is on 2 devices" in screen and "gloo over loopback" in screen, "F7")
    tmux.keys("Escape")
    (worker,) = children(tmux.program())
    os.kill(worker, signal.SIGKILL)
    tmux.until(lambda screen: "rank 1 of 2" in screen and "SIGKILL" in screen, "the word of the loss")
    tmux.say("and now?")
    tmux.until(lambda screen: len(footers(screen)) == 2, "the reply of a fresh load")
    (worker,) = children(tmux.program())
    tmux.keys("C-q")
    tmux.until(lambda screen: "LEFT WITH 0" in screen, "the end")
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def children(process: int) -> list[int]:
    """The worker processes of a program."""
    found = ["pgrep", "-P", str(process), "-f", "nanochat.engine.parallel.worker"]
    return [int(pid) for pid in subprocess.run(found, capture_output=True, text=True).stdout.split()]


def words(screen: str) -> str:
    """The reply on screen without its line breaks, and without its last word, which may be half a word yet."""
    return reply_in(screen).rpartition(" ")[0]


def reply_in(screen: str) -> str:
    """The reply on screen without its line breaks."""
    return " ".join(text_of(screen).partition("interrupted ·")[0].split())


def below_the_tabs(screen: str) -> str:
    """What is on screen without the tabs' titles, which are made of what was asked."""
    return "\n".join(screen.splitlines()[1:])


def written(tmux: Tmux) -> str:
    """The last reply, as it is on disk, without its line breaks; nothing while it is being written."""
    with History.open(tmux.home / "data" / "chats") as history:
        (chat,) = history.chats.list()
        opened = history.messages.open(chat.id)
        return "" if opened.running else " ".join(opened.messages[-1].content.split())


def saved(tmux: Tmux) -> str:
    """The reply that is being written, as it is on disk, without its line breaks."""
    with History.open(tmux.home / "data" / "chats") as history:
        (chat,) = history.chats.list()
        return " ".join(" ".join(reply.content for reply in history.messages.open(chat.id).running).split())


def text_of(screen: str) -> str:
    """The reply's text on screen: the indented lines between question and prompt."""
    return "\n".join(
        line.strip() for line in screen.splitlines()[2:] if line.startswith("  ") and "tok/s" not in line
    )
