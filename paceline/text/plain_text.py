"""Knows how text that a user typed is kept from turning into control tokens inside a chat prompt.

A chat template writes control tokens as text (``<|end|>``) next to what users wrote, so a user who types
``<|end|>`` could close the turn. Each message is therefore guarded before the template sees it: a random mark goes
inside every special token that it spells, and at its ends where it could spell one together with its neighbour.
What is still spelled out after rendering was written by the template. Those tokens get secret names, the marks go,
and a copy of the tokenizer that knows special tokens only by their secret names encodes the whole prompt at once.
A prompt without marks, which is nearly every one, is encoded as it is.

Only tokens marked special in the tokenizer count as control tokens; others (``<think>``) are ordinary vocabulary.
A special token of a single character cannot be guarded.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from functools import cached_property

import tokenizers

from paceline.text.failures import failing

LONG = 4096
"""Characters that are tokenised within about a millisecond."""


def encode_text(
    backend: tokenizers.Tokenizer, text: str, *, add_special_tokens: bool, param: str = "prompt"
) -> list[int]:
    """Tokens of ``text``. Other threads of the process go on while a long one is encoded.

    Raises:
        InvalidRequestError: (``param``) the tokenizer cannot encode this text.
    """
    # ``encode`` keeps the interpreter's lock, for seconds per megabyte; ``encode_batch`` gives it back, but may start
    # threads, which a short text is not worth.
    try:
        if len(text) <= LONG:
            encoding = backend.encode(text, add_special_tokens=add_special_tokens)
        else:
            (encoding,) = backend.encode_batch([text], add_special_tokens=add_special_tokens)
    except BaseException as error:
        raise failing(error, "encode this text", param) from None
    ids: list[int] = encoding.ids
    return ids


def any_of(words: Iterable[str]) -> str:
    """A regular expression for the longest of ``words`` at a position; tries each character once (a trie)."""
    branches: dict[str, list[str]] = {}
    ends = False
    for word in words:
        if word:
            branches.setdefault(word[0], []).append(word[1:])
        else:
            ends = True
    options = [re.escape(first) + any_of(rest) for first, rest in sorted(branches.items())]
    if not options:
        return ""
    return f"(?:{'|'.join(options)}){'?' if ends else ''}"


class PlainText:
    """Guards messages and encodes the prompt that a template made of them."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self._special = {t.content: (i, t) for i, t in added.items() if t.special and len(t.content) > 1}
        self._heads = {word[:size] for word in self._special for size in range(1, len(word))}
        self._tails = {word[size:] for word in self._special for size in range(1, len(word))}
        self._longest = max(map(len, self._special), default=1)

    @cached_property
    def _spelled(self) -> re.Pattern[str]:
        return re.compile(any_of(self._special))

    @cached_property
    def _spelled_here(self) -> re.Pattern[str]:
        # A lookahead, so that overlapping tokens are all found; the first character is put before it because the
        # search for a literal set of characters is fast.
        firsts = "".join(sorted({re.escape(word[0]) for word in self._special}))
        return re.compile(f"(?={any_of(self._special)})[{firsts}]")

    @staticmethod
    def new_mark() -> str:
        """A mark for one prompt; nobody can have typed it."""
        return str(secrets.randbelow(9 * 10**31) + 10**31)

    def guard(self, value: object, mark: str) -> object:
        """A copy of ``value`` (strings, lists, maps) in which no string spells a special token."""
        if isinstance(value, str):
            return self._guard_text(value, mark) if self._special else value
        if isinstance(value, Mapping):
            return {key: self.guard(item, mark) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.guard(item, mark) for item in value]
        return value

    def _guard_text(self, text: str, mark: str) -> str:
        text = self._spelled_here.sub(lambda found: found[0] + mark, text)
        # Templates trim what they are given, so the ends are those of the trimmed text.
        core = text.strip()
        sizes = range(1, min(self._longest, len(core) + 1))
        before = mark if any(core[:size] in self._tails for size in sizes) else ""
        after = mark if any(core[-size:] in self._heads for size in sizes) else ""
        if not before and not after:
            return text
        start = text.index(core)
        return f"{text[:start]}{before}{core}{after}{text[start + len(core) :]}"

    def encode(self, rendered: str, mark: str) -> list[int]:
        """Tokens of a rendered prompt; no special tokens are added."""
        if mark not in rendered:
            return encode_text(self._backend, rendered, add_special_tokens=False, param="messages")
        backend, names, ids = self._renamed
        secret = self._spelled.sub(lambda found: names[found[0]], rendered).replace(mark, "")
        encoded = encode_text(backend, secret, add_special_tokens=False, param="messages")
        return [ids.get(token, token) for token in encoded]

    @cached_property
    def _renamed(self) -> tuple[tokenizers.Tokenizer, dict[str, str], dict[int, int]]:
        """(the copy, secret name by special token, special token's id by secret name's id)."""
        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        backend.encode_special_tokens = True
        stem = secrets.token_hex(16)
        names: dict[str, str] = {}
        ids: dict[int, int] = {}
        for number, (word, (token_id, token)) in enumerate(self._special.items()):
            names[word] = f"\ue000{stem}{number}\ue001"
            name = tokenizers.AddedToken(names[word], lstrip=token.lstrip, rstrip=token.rstrip, normalized=False)
            backend.add_tokens([name])
            secret_id = backend.token_to_id(names[word])
            assert secret_id is not None
            ids[secret_id] = token_id
        return backend, names, ids
