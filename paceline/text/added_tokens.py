"""Knows what tokenizer_config.json adds to the tokens of tokenizer.json, names or calls special; checks its fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import tokenizers

from paceline.core.errors import CheckpointError, shown

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class ConfigFile:
    """One file's values, under the name that errors give."""

    def __init__(self, name: str, values: Mapping[str, Any]) -> None:
        self.name, self.values = name, values

    def wrong(self, key: str, value: object, wanted: str) -> CheckpointError:
        return CheckpointError(f"{self.name}: {key} must be {wanted}, got {shown(value)}\nDownload the file again.")

    def content(self, key: str, value: object) -> str | None:
        """Of a token, which is written as a string or as ``{"content": ...}``; None: there is none."""
        text = value.get("content") if isinstance(value, dict) else value
        if text is not None and not isinstance(text, str):
            raise self.wrong(key, value, "a token")
        return text or None

    def named(self) -> dict[str, str]:
        found = {name: self.content(name, self.values.get(name)) for name in SPECIAL_NAMES}
        return {name: token for name, token in found.items() if token is not None}

    def extra_special(self) -> Iterator[str]:
        for key in ("additional_special_tokens", "extra_special_tokens"):
            listed = self.values.get(key) or ()
            if not isinstance(listed, list | dict | tuple):
                raise self.wrong(key, listed, "a list of tokens")
            for value in listed.values() if isinstance(listed, dict) else listed:
                token = self.content(key, value)
                if token is not None:
                    yield token

    def added(self) -> list[tokenizers.AddedToken]:
        """What ``added_tokens_decoder`` lists, in the order of its ids."""
        key = "added_tokens_decoder"
        listed = self.values.get(key) or {}
        if not isinstance(listed, dict) or not all(index.isdecimal() for index in listed):
            raise self.wrong(key, listed, "tokens by id")
        return [self._added(f"{key}[{index}]", listed[index]) for index in sorted(listed, key=int)]

    def _added(self, key: str, value: object) -> tokenizers.AddedToken:
        content = self.content(key, value)
        if content is None or not isinstance(value, dict):
            raise self.wrong(key, value, 'a token such as {"content": "<x>"}')
        flags = {name: value[name] for name in FLAGS if value.get(name) is not None}
        for name, flag in flags.items():
            if not isinstance(flag, bool):
                raise self.wrong(f"{key}.{name}", flag, "true or false")
        return tokenizers.AddedToken(content, **flags)


def add_tokens(backend: tokenizers.Tokenizer, config: ConfigFile, named: Mapping[str, str]) -> None:
    """Gives ``backend`` what the config lists with ids, and marks what it calls special, as transformers does.

    A token with a name but without an entry in ``added_tokens_decoder`` or the vocabulary is not added: it would have
    an id that the model does not know.
    """
    known = {repr(token) for token in backend.get_added_tokens_decoder().values()}
    backend.add_tokens([token for token in config.added() if repr(token) not in known])
    added = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    for content in dict.fromkeys([*named.values(), *config.extra_special()]):
        token = added.get(content)
        if backend.token_to_id(content) is None or (token is not None and token.special):
            continue
        kept = {"lstrip": token.lstrip, "rstrip": token.rstrip, "single_word": token.single_word} if token else {}
        backend.add_special_tokens([tokenizers.AddedToken(content, special=True, normalized=False, **kept)])
