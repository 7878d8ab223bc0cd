"""Knows the way from text to tokens and back: tokenizer, chat template, incremental text, stop strings."""

from paceline.templates import ChatTemplate
from paceline.text.bad_words import bad_word_ids
from paceline.text.detokenizer import Detokenizer
from paceline.text.stop import StopMatcher
from paceline.text.stream_decoder import StreamDecoder
from paceline.text.token_text import plain_tokens, token_bytes, token_text
from paceline.text.tokenizer import Tokenizer
from paceline.text.translation import Translation, continue_text
from paceline.text.vocabularies import differing_token, shared_tokens, special_tokens

__all__ = [
    "ChatTemplate",
    "Detokenizer",
    "StopMatcher",
    "StreamDecoder",
    "Tokenizer",
    "Translation",
    "bad_word_ids",
    "continue_text",
    "differing_token",
    "plain_tokens",
    "shared_tokens",
    "special_tokens",
    "token_bytes",
    "token_text",
]
