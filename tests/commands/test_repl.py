"""The chat in plain lines, typed into a real terminal."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nanochat.commands.plain_chat import PlainChat

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
FIGURES = re.compile(r"prefill (\d+) tok \((\d+) cached\) .* decode (\d+) tok .* TTFT")
GREEDY = "--temperature 0 --max-tokens 24"


class Terminal:
    """A shell in tmux: typed into, and read as a person reads it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._socket = f"nanochat-test-{uuid.uuid4().hex[:12]}"
        keep = ("PATH", "HOME", "LANG", "OMP_NUM_THREADS", "GOMP_SPINCOUNT")
        variables = {name: os.environ[name] for name in keep if name in os.environ} | environment
        self._tmux("new-session", "-d", "-x", "150", "-y", "50",
                   "env", "-i", *(f"{name}={value}" for name, value in variables.items()),
                   "PS1=$ ", "TERM=screen-256color", "sh")  # fmt: skip
        self.wait_for(lambda text: "$" in text)

    def _tmux(self, *arguments: str) -> str:
        command = ["tmux", "-f", "/dev/null", "-L", self._socket, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def type(self, text: str, *keys: str) -> None:
        """Type a text, then keys by name; Enter unless others are given."""
        if text:
            self._tmux("send-keys", "-l", text)
        self._tmux("send-keys", *(keys or ("Enter",)))

    def paste(self, text: str) -> None:
        """Paste as a terminal does: in brackets where the program asked for them."""
        self._tmux("set-buffer", text)
        self._tmux("paste-buffer", "-p", "-d")

    @property
    def child(self) -> int:
        """The process that the shell runs."""
        shell = int(self._tmux("list-panes", "-F", "#{pane_pid}"))
        return int(Path(f"/proc/{shell}/task/{shell}/children").read_text())

    @property
    def screen(self) -> str:
        return self._tmux("capture-pane", "-p", "-J", "-S", "-500").rstrip()

    def wait_for(self, reached: Callable[[str], object], seconds: float = 60.0) -> str:
        deadline = time.monotonic() + seconds
        while not reached(text := self.screen):
            assert time.monotonic() < deadline, f"waited {seconds} s; the screen was\n{text}"
            time.sleep(0.05)
        return text

    def close(self) -> None:
        self._tmux("kill-server")


@pytest.fixture
def terminal(starter_home: Path) -> Iterator[Terminal]:
    terminal = Terminal({"NANOCHAT_HOME": str(starter_home), "HF_HUB_OFFLINE": "1"})
    yield terminal
    terminal.close()


def start(terminal: Terminal, arguments: str = GREEDY) -> None:
    terminal.type(f"{shlex.quote(sys.executable)} -m nanochat run {arguments}; echo left=$?")
    terminal.wait_for(lambda text: text.endswith(">"))


def turns(text: str) -> list[tuple[int, int, int]]:
    """(computed, cached, written) of every turn on the screen."""
    return [(int(a), int(b), int(c)) for a, b, c in FIGURES.findall(text)]


def words_after(question: str, text: str) -> int:
    """How many words stand behind a question on the screen; none while the question does not stand there itself."""
    return len(text.partition(question)[2].split())


def test_each_turn_reuses_the_whole_of_the_turns_before(terminal: Terminal) -> None:
    start(terminal)
    terminal.type("Tell me a long story.")
    terminal.wait_for(lambda text: len(turns(text)) == 1 and text.endswith(">"))
    terminal.type("What was it about?")
    text = terminal.wait_for(lambda text: len(turns(text)) == 2 and text.endswith(">"))
    (first, none, written), (computed, cached, _) = turns(text)
    assert (none, written) == (0, 24)
    # What was read and written before, in whole blocks of 16 tokens; the last written id was never read.
    assert cached == (first + written - 1) // 16 * 16
    assert computed < 16 + 32
    terminal.type("", "C-d")
    terminal.wait_for(lambda text: "left=0" in text)


def test_commands_do_what_help_says(terminal: Terminal) -> None:
    start(terminal)
    terminal.type("/help")
    text = terminal.wait_for(lambda text: "Ctrl-C stops a reply" in text)
    for command in ("/regenerate", "/system", "/reset", "/exit"):
        assert command in text
    terminal.type("/regenerate")
    terminal.wait_for(lambda text: "no reply yet" in text)
    terminal.type("/nonsense")
    terminal.wait_for(lambda text: "no command /nonsense" in text)
    terminal.type("/system Answer in one word.")
    terminal.wait_for(lambda text: "The system prompt is set" in text)
    terminal.type("/system")
    terminal.wait_for(lambda text: "\nAnswer in one word." in text)
    terminal.type("One line\\")
    terminal.type("and another")
    first = terminal.wait_for(lambda text: len(turns(text)) == 1 and text.endswith(">"))
    terminal.type("/regenerate")
    again = terminal.wait_for(lambda text: len(turns(text)) == 2 and text.endswith(">"))
    (prompt, _, _), (computed, cached, _) = turns(again)
    assert computed + cached == prompt, first  # the same prompt once more
    assert cached > 0
    terminal.type("/exit")
    terminal.wait_for(lambda text: "left=0" in text)


@pytest.mark.parametrize("text", ["Name a fruit.\n\n  And a colour.", "// a comment\nint main() {}\n"])
def test_a_paste_of_several_lines_is_one_message(terminal: Terminal, starter_model: Path, text: str) -> None:
    start(terminal)
    terminal.paste(text)
    terminal.wait_for(lambda screen: text.split("\n")[-2 if text.endswith("\n") else -1] in screen)
    terminal.type("")
    screen = terminal.wait_for(lambda screen: len(turns(screen)) == 1)
    assert turns(screen)[0][0] == len(PlainChat(starter_model).ask(text)), screen
    assert "there is no command" not in screen


def test_a_paste_while_a_reply_streams_is_one_message_at_the_next_prompt(terminal: Terminal) -> None:
    start(terminal, "--temperature 0 --repetition-penalty 1.3 --max-tokens 200")
    terminal.type("Tell a very long story.")
    terminal.wait_for(lambda text: words_after("story.", text) > 12)
    terminal.paste("Name a fruit.\n  And a colour.")
    screen = terminal.wait_for(lambda text: turns(text) and text.endswith("And a colour."))
    assert screen.count("Name a fruit.") == 1, "it was not shown inside the reply"
    terminal.type("")
    screen = terminal.wait_for(lambda text: len(turns(text)) > 1 and text.endswith(">"))
    assert len(turns(screen)) == 2, screen
    terminal.type("", "C-d")
    terminal.wait_for(lambda text: "left=0" in text)
    terminal.type("echo seen")
    terminal.wait_for(lambda text: "echo seen" in text)


@pytest.mark.parametrize(("number", "left"), [(signal.SIGTERM, "left=143"), (signal.SIGTSTP, "left=148")])
def test_who_is_killed_or_stopped_while_a_reply_streams_gives_the_terminal_back(
    terminal: Terminal, number: signal.Signals, left: str
) -> None:
    terminal.type("set -m; stty -a | md5sum")
    before = terminal.wait_for(lambda text: text.endswith(" -\n$")).split("md5sum")[1].split()[0]
    start(terminal, "--temperature 0 --repetition-penalty 1.3")
    terminal.type("Tell a very long story.")
    terminal.wait_for(lambda text: words_after("story.", text) > 12)
    os.kill(terminal.child, number)
    terminal.wait_for(lambda text: left in text)
    terminal.type("stty -a | md5sum")
    terminal.wait_for(lambda text: text.count(before) == 2 and text.endswith("$"))
    if number == signal.SIGTSTP:
        terminal.type("fg")  # Ctrl-C would take back what nobody has read yet: the reply must go on first
        terminal.wait_for(lambda text: words_after("penalty 1.3", text.partition("$ fg")[2]) > 0)
        terminal.type("", "C-c")
        terminal.wait_for(lambda text: "stopped" in text and text.endswith(">"))


def test_ctrl_c_stops_the_reply_and_at_the_prompt_leaves(terminal: Terminal) -> None:
    start(terminal, "--temperature 0 --repetition-penalty 1.3")
    terminal.type("Tell a very long story.")
    terminal.wait_for(lambda text: words_after("story.", text) > 12)
    terminal.type("", "C-c")
    text = terminal.wait_for(lambda text: "stopped" in text and text.endswith(">"))
    assert "Traceback" not in text
    terminal.type("What was it about?")  # the chat goes on, the half reply in it
    text = terminal.wait_for(lambda text: words_after("about?", text) > 2)
    assert len(turns(text)) == 1
    terminal.type("", "C-c")
    terminal.wait_for(lambda text: text.count("stopped") == 2 and text.endswith(">"))
    terminal.type("", "C-c")
    terminal.wait_for(lambda text: "left=0" in text)


def test_a_message_that_is_too_long_is_refused_and_the_chat_goes_on(terminal: Terminal) -> None:
    start(terminal, GREEDY + " --max-model-len 96")
    terminal.type("word " * 100)
    text = terminal.wait_for(lambda text: "/reset begins a new chat" in text)
    assert "nanochat: " in text
    terminal.type("Hi")
    terminal.wait_for(lambda text: len(turns(text)) == 1)


def test_only_answers_go_into_a_pipe(terminal: Terminal, tmp_path: Path) -> None:
    start(terminal, f"{GREEDY} | tee {shlex.quote(str(tmp_path / 'answers'))}")
    terminal.type("What is the capital of France?")
    # The answer comes through another process: its end may be there after the figures and the next prompt.
    terminal.wait_for(lambda text: len(turns(text)) == 1 and text.count("\n>") == 2)
    terminal.type("", "C-d")
    screen = terminal.wait_for(lambda text: "left=0" in text)
    answers = (tmp_path / "answers").read_text()
    assert answers.split() and set(answers.split()) <= set(re.split(r"\s+|prefill", screen))
    for other in (">", "prefill", "nanochat"):
        assert other not in answers


def test_a_reply_that_cannot_be_made_anew_stays_with_its_message(starter_model: Path) -> None:
    chat = PlainChat(starter_model)
    for text in ("First.", "Second."):
        chat.ask(text)
        chat.replied((19556, 2))
    before = chat.ask("And?")
    chat.withdraw()
    chat.ask_again()
    chat.withdraw()  # it was stopped before its first token, or failed
    assert chat.can_repeat
    assert chat.ask("And?") == before


def test_a_withdrawn_message_leaves_no_trace(starter_model: Path) -> None:
    chat, fresh = PlainChat(starter_model), PlainChat(starter_model)
    chat.ask("first")
    chat.withdraw()
    assert chat.ask("second") == fresh.ask("second")
    chat.replied((1, 2, 3, 2))
    before = chat.ask("third")
    chat.withdraw()
    assert chat.ask("third") == before
    chat.reset()
    assert not chat.can_repeat
    assert chat.ask("second") == PlainChat(starter_model).ask("second")
