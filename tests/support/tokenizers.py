"""Makes tiny tokenizers of the kinds that published models use."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from paceline.text.tokenizer import Tokenizer
from paceline.text.tokenizer_files import TokenizerFiles
from paceline.training.data import ChatFormat
from paceline.training.tokenizer import save_tokenizer, train_tokenizer

TEXTS = ["hello world, the cat says hello", "the end is near", "schön 你好 😀 e\u0301 ñ", "12 + 30 = 42", "don't stop"]
CHAT = ChatFormat()


@lru_cache
def _trained() -> str:
    return train_tokenizer(TEXTS * 3, vocab_size=320, chat=CHAT).to_str()


def write_byte_level(directory: Path, **config: object) -> Path:
    """A directory as the training room writes it; ``config`` changes tokenizer_config.json."""
    save_tokenizer(tokenizers.Tokenizer.from_str(_trained()), directory, chat=CHAT, max_length=128)
    path = directory / "tokenizer_config.json"
    values = json.loads(path.read_text()) | config
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))
    return directory


def of(backend: tokenizers.Tokenizer, template: str | None = CHAT.template()) -> Tokenizer:
    special = {"bos_token": CHAT.bos, "eos_token": CHAT.end}
    return Tokenizer(TokenizerFiles(backend, special, template))


@lru_cache
def byte_level() -> Tokenizer:
    return of(tokenizers.Tokenizer.from_str(_trained()))


@lru_cache
def byte_fallback(prepend: str = "first") -> Tokenizer:
    """Llama-like: ``▁`` for spaces, single bytes for what the vocabulary lacks."""
    words = ["▁", "h", "e", "l", "o", "w", "r", "d", "s", "t", "n", "i", "<", ">", "|", ",", "▁h", "lo", "▁w", "▁,"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    merges = [("▁", "h"), ("l", "o"), ("▁", "w"), ("▁", ",")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if prepend == "normalizer":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=prepend, split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.add_tokens([AddedToken("<tool>", special=False)])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return of(backend, "{{ bos }}{% for m in messages %}{{ m.content | trim }}</s>{% endfor %}")


@lru_cache
def unigram() -> Tokenizer:
    pieces = ["<unk>", "▁", *"helowrdstni,.", "▁hel", "lo", "▁w"]
    backend = tokenizers.Tokenizer(
        models.Unigram([(piece, -float(len(pieces) - i)) for i, piece in enumerate(pieces)], 0)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always")
    backend.decoder = decoders.Metaspace("▁", prepend_scheme="always")
    backend.add_special_tokens(["<unk>", "</s>"])
    return of(backend)


KINDS = {"byte_level": byte_level, "byte_fallback": byte_fallback, "unigram": unigram}
