"""Loading: weights go where the config says, in little memory, and a checkpoint that disagrees is named."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import transformers as tf
from paged import Paged
from safetensors.torch import load_file, save_file
from tiny_models import COMMON, GQA, oracle, save_tiny

from nanochat.engine.models import ModelConfig, load_model, loading
from nanochat.engine.models.embedding import RowsOnDisk
from nanochat.errors import InvalidModel, UnsupportedModel, UsageError

CPU = torch.device("cpu")
TOKENS = list(range(3, 40))
TABLE = [2, 7, 1]


def load(folder, dtype=torch.float32, **more):
    return load_model(folder, ModelConfig.from_folder(folder), dtype=dtype, device=CPU, **more)


def logprobs(model, dtype=torch.float32):
    return Paged(model, dtype=dtype).step(TOKENS, 0, TABLE)


@pytest.fixture
def copy(tiny_folder, tmp_path):
    def copy(name: str, change=None) -> Path:
        folder = tmp_path / name
        shutil.copytree(tiny_folder(name), folder)
        if change is not None:
            tensors = load_file(folder / "model.safetensors")
            change(tensors)
            save_file(tensors, folder / "model.safetensors")
        return folder

    return copy


def test_shards_give_what_one_file_gives(tiny_folder, tmp_path):
    whole = tiny_folder("qwen3_moe")
    oracle(whole).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert torch.equal(logprobs(load(whole)), logprobs(load(tmp_path)))


@pytest.mark.parametrize("name", ["llama_gqa_128_tied", "qwen3_moe", "olmo2"])
def test_progress_ends_at_all_bytes(name, tiny_folder):
    seen = []
    load(tiny_folder(name), progress=lambda done, total: seen.append((done, total)))
    total = seen[0][1]
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert total == sum(
        t.numel() * t.element_size() for t in load_file(tiny_folder(name) / "model.safetensors").values()
    )


@pytest.mark.parametrize("name", ["llama_biases", "gemma3", "qwen3_moe", "phi3", "olmo2"])
def test_a_missing_tensor_is_named(name, copy):
    lost = "model.layers.1.self_attn.o_proj.weight"
    folder = copy(name, lambda tensors: tensors.pop(lost))
    with pytest.raises(InvalidModel, match=r"layers\.1\.self_attn\.o_proj\.weight"):
        load(folder)


def test_a_missing_head_is_named(copy):
    folder = copy("llama_biases", lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(InvalidModel, match=r"lm_head\.weight"):
        load(folder)


def test_a_tensor_that_the_config_has_no_place_for_is_named(copy):
    def add(tensors):
        tensors["model.layers.0.self_attn.q_norm.weight"] = torch.ones(16)

    with pytest.raises(InvalidModel, match=r"1 tensors .*layers\.0\.self_attn\.q_norm"):
        load(copy("llama_biases", add))


def test_what_old_checkpoints_carry_is_no_harm(copy, tiny_folder):
    def add(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)

    assert torch.equal(
        logprobs(load(copy("llama_biases", add))),
        logprobs(load(tiny_folder("llama_biases"))),
    )


@pytest.mark.parametrize("name", ["llama_biases", "olmo2"])
@pytest.mark.parametrize("key", ["vocab_size", "intermediate_size"])
def test_shapes_that_disagree_with_the_config_are_named(name, key, copy):
    folder = copy(name)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: config[key] + 2}))
    with pytest.raises(InvalidModel, match=r"disagree|cannot load"):
        load(folder)


def test_a_checkpoint_without_the_models_prefix_is_read(copy, tiny_folder):
    def rename(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    assert torch.equal(
        logprobs(load(copy("llama_biases", rename))),
        logprobs(load(tiny_folder("llama_biases"))),
    )


def test_the_text_part_of_a_multimodal_gemma_runs(tiny_folder, tmp_path):
    text = json.loads((tiny_folder("gemma3") / "config.json").read_text())
    outer = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "vision_config": {},
        "text_config": text,
    }
    (tmp_path / "config.json").write_text(json.dumps(outer))
    tensors = {
        f"language_model.{k}": v for k, v in load_file(tiny_folder("gemma3") / "model.safetensors").items()
    }
    tensors["vision_tower.patch.weight"] = torch.ones(3)
    save_file(tensors, tmp_path / "model.safetensors")
    assert torch.equal(logprobs(load(tmp_path)), logprobs(load(tiny_folder("gemma3"))))


def test_transformers_runs_what_the_decoder_runs_and_both_agree(tiny_folder):
    folder = tiny_folder("qwen3")
    config = dataclasses.replace(ModelConfig.from_folder(folder), native=False)
    theirs = load_model(folder, config, dtype=torch.float32, device=CPU)
    assert (logprobs(theirs) - logprobs(load(folder))).abs().max() < 1e-4


def test_an_attention_that_cannot_be_plugged_is_refused(tmp_path):
    tf.AutoModelForCausalLM.from_config(
        tf.BloomConfig(hidden_size=32, n_layer=1, n_head=2, vocab_size=50)
    ).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    with pytest.raises(UnsupportedModel, match="BloomForCausalLM"):
        load(tmp_path)


def test_a_layer_that_attends_twice_in_a_step_is_refused(tmp_path):
    """DiffLlama attends once for each half of its values, and the cache of a layer has room for one."""
    save_tiny(lambda: tf.DiffLlamaConfig(**COMMON, **GQA), tmp_path)
    with pytest.raises(UnsupportedModel, match=r"DiffLlamaForCausalLM .*layer 0 attends more than once"):
        logprobs(load(tmp_path))


def test_an_architecture_that_transformers_does_not_know_is_refused(copy):
    folder = copy("olmo2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"architectures": ["NovelForCausalLM"], "model_type": "novel"})
    )
    with pytest.raises(UnsupportedModel, match="novel"):
        load(folder)


def test_a_tied_embedding_that_stays_on_disk_gives_the_same_rows(tiny_folder):
    model = load(tiny_folder("llama_gqa_128_tied"), torch.bfloat16)
    saved = load_file(tiny_folder("llama_gqa_128_tied") / "model.safetensors")["model.embed_tokens.weight"]
    ids = torch.tensor([5, 0, 256, 5])
    assert torch.equal(model.weights.embed(ids), saved[ids].bfloat16())


def test_rows_on_disk_outlive_the_file_name_and_notice_a_cut(tmp_path):
    path = tmp_path / "rows"
    path.write_bytes(b"head" + torch.arange(12.0).numpy().tobytes())
    rows = RowsOnDisk(path, 4, 3, torch.float32, torch.bfloat16)
    with path.open("r+b") as file:
        file.truncate(4 + 3 * 12)
    assert rows(torch.tensor([2, 1])).tolist() == [[6.0, 7.0, 8.0], [3.0, 4.0, 5.0]]
    with pytest.raises(InvalidModel, match="cut short"):
        rows(torch.tensor([3]))
    path.unlink()
    assert rows(torch.tensor([0])).tolist() == [[0.0, 1.0, 2.0]]


class Two:
    """Collectives between two threads."""

    def __init__(self):
        self.parts = [None, None]
        self.barrier = threading.Barrier(2, timeout=60)

    def rank(self, rank):
        def exchange(x, combine):
            self.parts[rank] = x.clone()
            self.barrier.wait()
            result = combine(self.parts)
            self.barrier.wait()
            return result

        return {
            "reduce": lambda x: exchange(x, lambda parts: parts[0] + parts[1]),
            "gather": lambda x: exchange(x, lambda parts: torch.cat(parts, dim=1)),
        }


def two_ranks(folder, dtype=torch.float32):
    """What two ranks give, which is the same on both."""
    both = Two()
    models = [load(folder, dtype, rank=rank, world_size=2, **both.rank(rank)) for rank in (0, 1)]
    found = [None, None]

    def run(rank):
        paged = Paged(models[rank], dtype=dtype)
        paged.cache = [
            tuple(t[:, :, :1].contiguous() for t in pair) for pair in paged.cache
        ]  # half of two KV heads
        found[rank] = paged.step(TOKENS, 0, TABLE)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(found[0], found[1])
    return found[0]


@pytest.mark.parametrize("name", ["llama_biases", "qwen3", "phi3", "gemma3", "qwen3_moe", "qwen2"])
def test_two_ranks_sum_to_the_whole(name, tiny_folder):
    folder = tiny_folder(name)
    assert (two_ranks(folder) - logprobs(load(folder))).abs().max() < 1e-4


@torch.inference_mode()
def expected(folder):
    return oracle(folder)(torch.tensor([TOKENS]), use_cache=False).logits[0].log_softmax(-1)


def another_head(tensors):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0).contiguous()


def the_same_head(tensors):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


def differs_in_the_last_row(tensors):
    the_same_head(tensors)
    tensors["lm_head.weight"][-1] += 1


@pytest.mark.parametrize("name", ["qwen2", "gemma3", "gemma2"])
@pytest.mark.parametrize("head", [another_head, differs_in_the_last_row])
def test_a_stored_head_counts_though_the_config_ties_it(name, head, copy, monkeypatch):
    monkeypatch.setattr(loading, "_COMPARED", 64 * 4 * 10)  # 10 rows at a time
    folder = copy(name, head)
    assert ModelConfig.from_folder(folder).tied_embeddings
    assert (logprobs(load(folder)) - expected(folder)).abs().max() < 1e-4


def test_a_stored_head_is_packed_in_place_of_the_embedding(copy):
    tied = copy("qwen2", another_head)
    config = dataclasses.replace(ModelConfig.from_folder(tied), tied_embeddings=False)
    untied = load_model(tied, config, dtype=torch.bfloat16, device=CPU)
    found = load(tied, torch.bfloat16)
    assert isinstance(found.weights.embed, RowsOnDisk)
    assert torch.equal(logprobs(found, torch.bfloat16), logprobs(untied, torch.bfloat16))


def test_a_stored_head_that_is_the_embedding_is_in_memory_once(copy, tiny_folder, monkeypatch):
    monkeypatch.setattr(loading, "_COMPARED", 64 * 4 * 10)
    seen = []
    found = load(copy("qwen2", the_same_head), progress=lambda done, total: seen.append((done, total)))
    assert found.num_bytes == load(tiny_folder("qwen2")).num_bytes
    assert seen[-1][0] == seen[-1][1] == found.bytes_read


@pytest.mark.parametrize("name", ["qwen2", "gemma2"])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_two_ranks_use_a_stored_head_of_which_one_has_nothing_new(name, dtype, near, copy):
    folder = copy(name, differs_in_the_last_row)
    assert (two_ranks(folder, dtype) - expected(folder)).abs().mean() < near


def test_heads_that_cannot_be_split_are_refused(tiny_folder):
    with pytest.raises(UsageError, match="4 attention heads over 2 key-value heads cannot be split over 5"):
        load(tiny_folder("qwen3"), rank=0, world_size=5, reduce=lambda x: x, gather=lambda x: x)


MEMORY = """
import sys
from pathlib import Path
import torch
from nanochat.engine.models import ModelConfig, load_model, loading
import nanochat.engine.models.loading
from nanochat.kernels import pick

def kib(key):
    return int(next(line for line in open('/proc/self/status') if key in line).split()[1])

folder, dtype = Path(sys.argv[1]), getattr(torch, sys.argv[2])
config = ModelConfig.from_folder(folder)
pick(torch.device('cpu')).pack(torch.ones(64, 64, dtype=dtype))  # what the library itself takes is not weights
before = kib('VmRSS')
open('/proc/self/clear_refs', 'w').write('5')
model = load_model(folder, config, dtype=dtype, device=torch.device('cpu'))
print((kib('VmHWM') - before) * 1024 / config.weight_bytes(dtype))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's memory accounting")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_takes_at_most_a_fifth_more_than_the_weights(dtype, tmp_path):
    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 40, "vocab_size": 24_000}
    config = tf.LlamaConfig(**{**COMMON, **GQA, **sizes, "tie_word_embeddings": True})
    with torch.device("meta"):
        shapes = tf.AutoModelForCausalLM.from_config(config).state_dict()
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    tensors = {
        name: torch.ones(t.shape, dtype=torch.bfloat16)
        for name, t in shapes.items()
        if name != "lm_head.weight"
    }
    save_file(tensors, tmp_path / "model.safetensors")
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path, dtype],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert float(run.stdout) < 1.2


@pytest.mark.parametrize("name", ["mixtral", "gpt2"])
def test_a_model_of_transformers_is_as_large_as_its_files(name, tiny_folder):
    config = ModelConfig.from_folder(tiny_folder(name))
    exact = sum(tensor.numel() for tensor in load_file(tiny_folder(name) / "model.safetensors").values())
    assert exact <= config.num_parameters < exact * 1.05
