"""Small tokenizers of every kind that models come with, trained here in a blink."""

from __future__ import annotations

import json
from functools import cache

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from nanochat.engine.tokenizer import Tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog. user assistant system think",
    "Hello world, hello there; it's 2026 and 12345 is a number!",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))\n",
    "La façade était déjà éclairée. Übermut tut selten gut.",
    "<html><b>bold</b></html> a < b && b > c || d",
    "你好世界，今天天气很好。 Привет, мир!",
] * 3

_MARKERS = """
<s> </s> <|im_start|> <|im_end|> <|im_sep|> <|start_header_id|> <|end_header_id|> <|eot_id|> <|begin_of_text|>
<start_of_turn> <end_of_turn> <bos> [INST] [/INST] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] <|user|> <|assistant|>
<|system|> <|end|> <|endoftext|> <|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|>
<|SYSTEM_TOKEN|> <BOS_TOKEN> <｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <｜User｜> <｜Assistant｜>
<|start_of_role|> <|end_of_role|> <|end_of_text|> <|channel|> <|message|> <|start|> <|return|>
"""
MARKERS = tuple(_MARKERS.split())
PLAIN_ADDED = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
RUNS = ("\n\n", "\n\n\n", "  ", "    ", "<b>", "</b>")
WHOLE_WORD = "<||>"  # a marker that the pre-tokenizer leaves in one piece
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _add_markers(backend: Backend, *, runs: bool = False) -> Backend:
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in MARKERS])
    backend.add_tokens([AddedToken(text, normalized=False) for text in PLAIN_ADDED])
    if runs:
        backend.add_tokens([AddedToken(text, normalized=False) for text in RUNS])
    return backend


def byte_level() -> Backend:
    """GPT-2 and Llama 3: byte-level BPE that looks up whole words first, with a word that is a marker."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    state = json.loads(backend.to_str())
    state["model"]["ignore_merges"] = True
    state["model"]["vocab"][WHOLE_WORD] = len(state["model"]["vocab"])
    backend = _add_markers(Backend.from_str(json.dumps(state)))
    backend.add_special_tokens([AddedToken(WHOLE_WORD, special=True, normalized=False)])
    bos = "<|begin_of_text|>"
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
    )
    return backend


def _sentencepiece_bpe() -> Backend:
    """The model of Llama 2, Mistral and Gemma: merges over ▁, bytes for what the alphabet lacks."""
    backend = Backend(models.BPE())
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=400, limit_alphabet=60, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    model = json.loads(backend.to_str())["model"]
    spellings = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256))]
    known = {text: index for index, text in enumerate(spellings)}
    for text in sorted(model["vocab"], key=model["vocab"].__getitem__):
        known.setdefault(text, len(known))
    known.setdefault("▁", len(known))
    model |= {"vocab": known, "unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True}
    state = json.loads(Backend(models.BPE()).to_str()) | {"model": model}
    backend = Backend.from_str(json.dumps(state))
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in spellings[:3]])
    return backend


def sentencepiece_legacy() -> Backend:
    """Llama 2 as converted: every piece between markers gets a space in front."""
    backend = _sentencepiece_bpe()
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return _add_markers(backend)


def sentencepiece_first() -> Backend:
    """Mistral and Llama 2 since legacy=False: only the start of the input gets a space in front."""
    backend = sentencepiece_legacy()
    backend.normalizer = normalizers.Sequence([])
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    return backend


def gemma_like() -> Backend:
    """Gemma: no space in front, whitespace runs and HTML tags as added tokens."""
    backend = _sentencepiece_bpe()
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return _add_markers(backend, runs=True)


def unigram() -> Backend:
    """T5 and XLM: Unigram under NFKC, with the markers in the vocabulary itself and matched after NFKC."""
    backend = Backend(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=350, unk_token="<unk>", special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.decoder = decoders.Metaspace("▁", prepend_scheme="always")
    backend = _add_markers(backend)
    backend.add_tokens([AddedToken(text, normalized=True) for text in PLAIN_ADDED])
    return backend


def wordpiece() -> Backend:
    """BERT: lower case, ## for the rest of a word, [SEP] at the end."""
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.decoder = decoders.WordPiece()
    ends = [(text, backend.token_to_id(text)) for text in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return _add_markers(backend)


KINDS = {
    make.__name__: make
    for make in (byte_level, sentencepiece_legacy, sentencepiece_first, gemma_like, unigram, wordpiece)
}


@cache
def backend_json(kind: str) -> str:
    """The `tokenizer.json` of a kind."""
    return KINDS[kind]().to_str()


@cache
def tokenizer(kind: str) -> Tokenizer:
    """One shared tokenizer of a kind."""
    return Tokenizer(Backend.from_str(backend_json(kind)))
