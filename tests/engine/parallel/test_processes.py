"""Ranks as processes: what they hold, how they end, and what is left of them. Nothing here may leave anything behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from nanochat import SamplingParams
from nanochat.engine.config import EngineConfig
from nanochat.engine.llm import LLM
from nanochat.engine.outputs import FinishReason
from nanochat.engine.parallel import processes
from nanochat.engine.parallel.watch import Bounds
from nanochat.engine.request import Request
from nanochat.engine.service import EngineService
from nanochat.engine.weights import Checkpoint
from nanochat.errors import EngineDead

LENGTH = 128
GREEDY = SamplingParams(temperature=0.0, max_tokens=LENGTH, ignore_eos=True)
ENDLESS = SamplingParams(temperature=0.0, max_tokens=None, ignore_eos=True)
PROMPTS = [[504, 2988, 314, 42], [33, 28, 216, 34, 28, 216, 35, 28]]
WAIT = 60.0


@pytest.fixture(scope="module", autouse=True)
def scratch(tmp_path_factory: pytest.TempPathFactory, tiny_folder):
    """Where temporary folders go: an empty one, so that whatever is left of a group is seen."""
    tiny_folder("llama_biases")  # Transformers makes folders of its own when it makes its first model
    folder, before, threads = tmp_path_factory.mktemp("scratch"), tempfile.tempdir, torch.get_num_threads()
    tempfile.tempdir = str(folder)
    yield folder
    tempfile.tempdir = before
    torch.set_num_threads(threads)


def config(folder: Path, **options) -> EngineConfig:
    options = {
        "dtype": "float32",
        "device": "cpu",
        "tensor_parallel_size": 2,
        "skip_tokenizer": True,
    } | options
    return EngineConfig(model=folder, **options)


@pytest.fixture(scope="module")
def starter(starter_model: Path):
    """The starter model (9 heads over 3 key-value heads) on two processes, in a service."""
    service = EngineService()
    service.load(config(starter_model, max_model_len=512)).wait(WAIT)
    yield service
    service.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that gives no sign of life is lost after 1.2 s."""
    monkeypatch.setattr(processes, "Bounds", lambda: Bounds(silence=6))


@pytest.fixture
def tiny(tiny_folder):
    """A tiny model on two processes, in a service."""
    service = EngineService()
    service.load(config(tiny_folder("llama_biases"))).wait(WAIT)
    yield service
    service.close()


def group_of(service: EngineService):
    core = service.core
    assert core is not None and core.group is not None
    return core.group


def ids(service: EngineService, prompt: list[int], params: SamplingParams) -> list[int]:
    return [token for delta in service.submit(Request(prompt, params)) for token in delta.token_ids]


def wait_until(condition, seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_the_starter_model_says_on_two_processes_what_it_says_in_one(
    starter: EngineService, starter_model: Path
) -> None:
    """One pass of Transformers over prompt and reply checks every token of it: it is the likeliest after the ones before.
    Log-probabilities too: a sum that is left out once need not change the likeliest token."""
    wishes = [GREEDY, replace(GREEDY, logprobs=3)]
    streams = [starter.submit(Request(prompt, wish)) for prompt, wish in zip(PROMPTS, wishes, strict=True)]
    split = [next(delta.finished for delta in stream if delta.finished is not None) for stream in streams]
    assert all(len(reply.token_ids) == LENGTH for reply in split)
    whole = AutoModelForCausalLM.from_pretrained(starter_model, dtype=torch.float32)
    alone = []
    for prompt, reply in zip(PROMPTS, split, strict=True):
        with torch.inference_mode():
            ids = torch.tensor([[*prompt, *reply.token_ids]])
            alone.append(whole(ids[:, :-1], logits_to_keep=LENGTH).logits[0].log_softmax(dim=-1))
    assert [reply.token_ids for reply in split] == [tuple(each.argmax(dim=-1).tolist()) for each in alone]
    for row, table in zip(alone[1], split[1].logprobs, strict=True):
        assert set(row.topk(3).indices.tolist()) <= table.keys()
        assert all(abs(row[token].item() - entry.logprob) < 1e-3 for token, entry in table.items())


def test_each_rank_reads_its_share_and_no_more(starter: EngineService, starter_model: Path) -> None:
    with Checkpoint(starter_model) as checkpoint:
        entries = checkpoint.entries
    whole = sum(entry.num_bytes for entry in entries.values())
    norms = sum(entry.num_bytes for name, entry in entries.items() if name.endswith("norm.weight"))
    memory = group_of(starter).memory
    assert sum(rank.read for rank in memory) == whole + norms
    assert max(rank.read for rank in memory) < 0.55 * whole


def test_statistics_tell_of_ranks_memory_and_the_time_in_collectives(starter: EngineService) -> None:
    before = starter.stats()
    ids(starter, [1, 2, 3], SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True))
    after = starter.stats()
    assert after.ranks == 2 and len(after.rank_bytes) == 2 and after.link == "gloo over loopback"
    assert all(size > after.weight_bytes / 3 for size in after.rank_bytes)
    assert before.collective_seconds < after.collective_seconds


def test_a_cancelled_reply_ends_and_the_next_one_runs(starter: EngineService) -> None:
    stream = starter.submit(Request([5, 6, 7], ENDLESS))
    first = next(iter(stream))
    stream.cancel()
    last = [delta for delta in stream if delta.finished is not None]
    assert first.token_ids and last[0].finished.finish_reason is FinishReason.ABORT
    assert len(ids(starter, [5, 6, 7], SamplingParams(max_tokens=2, ignore_eos=True))) == 2


def test_nothing_listens_but_on_loopback_and_nothing_has_a_name(
    starter: EngineService, scratch: Path
) -> None:
    found = listening([os.getpid(), *group_of(starter).pids])
    assert found and {address.ip for address in found} == {"127.0.0.1"}
    assert not list(scratch.iterdir())
    assert not [name for name in os.listdir("/dev/shm") if "nanochat" in name]


def listening(pids) -> list:
    return [
        connection.laddr
        for pid in pids
        for connection in psutil.Process(pid).net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]


@pytest.mark.parametrize("end", ["a lost rank", "unload"])
def test_an_engine_that_has_ended_holds_no_port_and_no_memory_although_its_error_is_kept(
    end: str, tiny_folder
) -> None:
    before, service = listening([os.getpid()]), EngineService()
    service.load(config(tiny_folder("llama_biases"))).wait(WAIT)
    stream = service.submit(Request([3, 4, 5], ENDLESS))
    next(iter(stream))
    model, (worker,) = weakref.ref(service.core._runner._runner.model), group_of(service).pids
    assert len(listening([os.getpid()])) == len(before) + 1
    if end == "unload":
        service.unload()
        list(stream)
    else:
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(EngineDead) as kept:
            list(stream)
        assert kept.value is not None
    wait_until(lambda: service.core is None and listening([os.getpid()]) == before)
    wait_until(lambda: model() is None)
    service.close()


def test_a_killed_rank_ends_the_engine_with_one_error_and_a_fresh_load_works(
    tiny: EngineService, tiny_folder
) -> None:
    group, started = group_of(tiny), time.monotonic()
    stream = tiny.submit(Request([3, 4, 5], ENDLESS))
    next(iter(stream))
    os.kill(group.pids[0], signal.SIGKILL)
    with pytest.raises(EngineDead, match=r"rank 1 of 2 \(process \d+\) was ended by SIGKILL"):
        list(stream)
    assert time.monotonic() - started < 10
    wait_until(lambda: tiny.stats().state == "dead")
    assert not any(psutil.pid_exists(pid) for pid in group.pids)
    tiny.load(config(tiny_folder("llama_biases"))).wait(WAIT)
    assert len(ids(tiny, [3, 4, 5], SamplingParams(max_tokens=4, ignore_eos=True))) == 4
    # Between requests too: nobody has to ask first.
    group = group_of(tiny)
    os.kill(group.pids[0], signal.SIGKILL)
    wait_until(lambda: tiny.stats().state == "dead")
    assert "SIGKILL" in (tiny.stats().error or "")


@pytest.mark.usefixtures("impatient")
def test_a_rank_that_hangs_ends_the_engine(tiny: EngineService) -> None:
    group = group_of(tiny)
    stream = tiny.submit(Request([3, 4, 5], ENDLESS))
    next(iter(stream))
    os.kill(group.pids[0], signal.SIGSTOP)
    with pytest.raises(EngineDead, match="gave no sign of life"):
        list(stream)
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in group.pids))


def test_a_rank_that_cannot_start_is_an_error_and_not_a_wait(
    tiny_folder, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    started = time.monotonic()
    with pytest.raises(EngineDead, match="ended with code 1"):
        LLM(tiny_folder("llama_biases"), device="cpu", tensor_parallel_size=2, skip_tokenizer=True)
    assert time.monotonic() - started < 10
    assert not list(scratch.iterdir())


def test_a_rank_that_hangs_before_it_has_started_is_an_error_and_not_a_wait(
    tiny_folder, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asleep = tmp_path / "python"
    asleep.write_text("#!/bin/sh\nexec sleep 600\n")
    asleep.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(asleep))
    monkeypatch.setattr(processes, "Bounds", lambda: Bounds(still=5))
    with pytest.raises(EngineDead, match=r"rank 1 of 2 .* did nothing for 1 s while starting"):
        LLM(tiny_folder("llama_biases"), device="cpu", tensor_parallel_size=2, skip_tokenizer=True)
    assert not list(scratch.iterdir())


SCRIPT = """
import sys
from nanochat.engine.llm import LLM
from nanochat import SamplingParams

llm = LLM(sys.argv[1], device="cpu", tensor_parallel_size=2, skip_tokenizer=True)
print(llm.core.group.pids[0], flush=True)
while True:
    llm.generate([[1, 2, 3]], SamplingParams(max_tokens=100, ignore_eos=True), use_tqdm=False)
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_ranks_end_with_the_program_however_it_ends(sent: signal.Signals, tiny_folder, scratch: Path) -> None:
    """A script without a main guard, at that."""
    run = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tiny_folder("llama_biases"))],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "TMPDIR": str(scratch)},
    )  # fmt: skip
    assert run.stdout is not None
    worker = psutil.Process(int(run.stdout.readline()))
    run.send_signal(sent)
    run.wait(15)
    wait_until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
    assert not list(scratch.iterdir())


def test_ranks_end_even_where_leaving_them_fails(tiny_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM(
        tiny_folder("llama_biases"),
        dtype="float32",
        device="cpu",
        tensor_parallel_size=2,
        skip_tokenizer=True,
    )
    group = llm.core.group
    assert group is not None

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(group.collectives, "part", interrupted)
    processes_of = [psutil.Process(pid) for pid in group.pids]
    with pytest.raises(KeyboardInterrupt):
        llm.close()
    assert not any(process.is_running() for process in processes_of)
    assert group.collectives._group is None
