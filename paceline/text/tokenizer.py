"""Knows one model's tokenizer: text to ids and back, and chat messages to a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from paceline.core.errors import InvalidRequestError, shown
from paceline.core.files import is_fetched
from paceline.templates import ChatTemplate
from paceline.text.end_tokens import end_tokens
from paceline.text.failures import failing
from paceline.text.plain_text import PlainText, encode_text
from paceline.text.tokenizer_files import TokenizerFiles, read_tokenizer

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})


class Tokenizer:
    """A Hugging Face tokenizer directory, on the ``tokenizers`` library.

    Thread-safe. Text is Unicode without lone surrogates; NUL is text like any other character.
    """

    def __init__(self, files: TokenizerFiles) -> None:
        self.backend = files.backend
        """The ``tokenizers.Tokenizer`` itself."""
        self.special_tokens = files.special_tokens
        """By name: "bos_token", "eos_token", ..."""
        self.chat_template = ChatTemplate(files.chat_template) if files.chat_template else None
        added = self.backend.get_added_tokens_decoder()
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.vocab_size = max([self.backend.get_vocab_size(), *(token_id + 1 for token_id in added)])
        """One more than the largest id."""
        self.bos_token_id = self._named_id("bos_token")
        self.eos_token_id = self._named_id("eos_token")
        named = {token.content: token_id for token_id, token in added.items()}
        self.end_token_ids = end_tokens(named, self.special_tokens.get("eos_token"), files.chat_template)
        """Tokens that end an answer: eos_token, and with which the chat template ends a turn."""
        self.byte_tokens = self._find_byte_tokens()
        """Byte by token id, where single bytes have tokens of their own (``<0xE2>``); else empty."""
        self._plain_text = PlainText(self.backend)

    @classmethod
    def load(cls, directory: str | Path) -> Tokenizer:
        """Reads a tokenizer directory.

        Raises:
            CheckpointError: there is no tokenizer.json, or a file is corrupt.
        """
        return cls(read_tokenizer(Path(directory)))

    @classmethod
    def try_load(cls, directory: str | Path) -> Tokenizer | None:
        """Like ``load``, but None where there is no tokenizer.json: such a model takes and gives token ids only."""
        return cls.load(directory) if is_fetched(Path(directory) / "tokenizer.json") else None

    def encode(self, text: str, *, add_special_tokens: bool = True, param: str = "prompt") -> list[int]:
        """Tokens of ``text``; special tokens spelled in it are read as such.

        Raises:
            InvalidRequestError: (``param``) the text is not a string, holds a lone surrogate, or is one that this
                tokenizer fails on.
        """
        check_text(text, param)
        return encode_text(self.backend, text, add_special_tokens=add_special_tokens, param=param)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of ``ids``; ids that the vocabulary lacks give nothing.

        Raises:
            InvalidRequestError: an id is negative or too large, or the tokenizer fails on these.
        """
        try:
            text: str = self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        except (OverflowError, TypeError):
            raise InvalidRequestError("token ids must be integers in [0, 2**32 - 1]", param="prompt") from None
        except BaseException as error:
            raise failing(error, "decode these tokens", "tokens") from None
        return text

    def apply_chat_template(self, messages: Iterable[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """The prompt as text; ``encode_chat`` gives its tokens.

        Raises:
            InvalidRequestError: (param "messages") no chat template, bad messages, or the template refuses them.
        """
        return self._render(_checked(messages), add_generation_prompt)

    def encode_chat(self, messages: Iterable[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> list[int]:
        """The prompt's tokens. No special token is added to what the template writes, and none that a message
        spells is read as one (see ``plain_text``).

        Raises:
            InvalidRequestError: as ``apply_chat_template``.
        """
        mark = self._plain_text.new_mark()
        guarded = [
            {key: value if key == "role" else self._plain_text.guard(value, mark) for key, value in message.items()}
            for message in _checked(messages)
        ]
        return self._plain_text.encode(self._render(guarded, add_generation_prompt), mark)

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        if self.chat_template is None:
            raise InvalidRequestError("this model has no chat template", param="messages")
        context = {"messages": messages, "add_generation_prompt": add_generation_prompt, **self.special_tokens}
        # Templates ask whether they are none, as transformers gives them.
        context |= {"tools": None, "documents": None}
        return self.chat_template.render(context)

    def ids_outside(self, vocab_size: int) -> list[int]:
        """Ids from ``vocab_size`` on that plain text becomes, or that every encoding begins or ends with.

        Tokens that were added and are only had by their names, as that of an image is, are none of them.
        """
        added = self.backend.get_added_tokens_decoder()
        vocabulary = self.backend.get_vocab(with_added_tokens=False).values()
        plain = {token_id for token_id in vocabulary if token_id >= vocab_size and token_id not in added}
        return sorted(plain.union(token_id for token_id in self.encode("") if token_id >= vocab_size))

    def _find_byte_tokens(self) -> dict[int, int]:
        letter = self.backend.token_to_id("<0x61>")
        if letter is None or self.backend.decode([letter]) != "a":
            return {}
        ids = ((byte, self.backend.token_to_id(f"<0x{byte:02X}>")) for byte in range(256))
        return {token_id: byte for byte, token_id in ids if token_id is not None}

    def _named_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        token_id: int | None = None if token is None else self.backend.token_to_id(token)
        return token_id


def check_text(text: object, param: str) -> None:
    """Raises InvalidRequestError unless ``text`` is a string that UTF-8 can hold."""
    if not isinstance(text, str):
        raise InvalidRequestError(f"{param} must be a string, got {type(text).__name__}", param=param)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"{param} must be valid Unicode, got a lone surrogate at character {error.start}", param=param
        ) from None


def _checked(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    checked = [dict(message) for message in messages]
    if not checked:
        raise InvalidRequestError("messages must not be empty, got []", param="messages")
    for message in checked:
        # A role that users choose freely could spell a control token: templates write "<|" + role + "|>".
        role = message.get("role")
        if not isinstance(role, str) or role not in ROLES:
            allowed = ", ".join(sorted(ROLES))
            raise InvalidRequestError(f"role must be one of {allowed}, got {shown(role)}", param="messages")
        _check_strings(message)
    return checked


def _check_strings(value: object) -> None:
    if isinstance(value, str):
        check_text(value, "messages")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            check_text(key, "messages")
            _check_strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_strings(item)
