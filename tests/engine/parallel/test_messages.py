"""What travels to the other ranks in a step: a few words, of a fixed layout, and nothing that could run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import nanochat
from nanochat import SamplingParams
from nanochat.engine import llm as engine
from nanochat.engine.parallel.messages import StepWriter

PACKAGE = Path(nanochat.__file__).parent
UNPACKERS = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "shelve",
    "marshal",
    "multiprocessing",
    "joblib",
}
OBJECTS = {
    "broadcast_object_list",
    "all_gather_object",
    "gather_object",
    "scatter_object_list",
    "send_object_list",
}


@pytest.mark.usefixtures("rank_threads")
def test_a_step_is_a_few_words_for_each_sequence(tiny_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, write = [], StepWriter.write

    def measured(self, chunks):
        message = write(self, chunks)
        sizes.append((len(message) // 8, len(chunks), any(chunk.count > 1 for chunk in chunks)))
        return message

    monkeypatch.setattr(StepWriter, "write", measured)
    llm = engine.LLM(tiny_folder("qwen3"), device="cpu", tensor_parallel_size=2, skip_tokenizer=True)
    wish = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)
    llm.generate([[3, 4, 5], list(range(3, 100)), [7] * 20], wish, use_tqdm=False)
    llm.close()
    decodes = [(words, rows) for words, rows, prefills in sizes if not prefills]
    assert len(decodes) > 50
    # Two numbers, and for each sequence ten, its newest token, a block now and then; its end is one more.
    assert all(words <= 2 + rows * (10 + 1 + 1) + 3 for words, rows in decodes)


def imports_and_calls(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield node.attr
            yield f"{node.value.id}.{node.attr}" if isinstance(node.value, ast.Name) else ""


def test_nothing_in_the_package_can_unpack_an_object() -> None:
    files = list(PACKAGE.rglob("*.py"))
    assert len(files) > 100
    found = {path.name: {*imports_and_calls(path)} & (UNPACKERS | OBJECTS | {"torch.load"}) for path in files}
    assert {name: words for name, words in found.items() if words} == {}
