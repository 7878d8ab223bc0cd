"""Fits a draft to a target whose vocabulary is padded otherwise, where both have the same tokens."""

from __future__ import annotations

import torch

from paceline.core.errors import ConfigError
from paceline.models import CausalLM
from paceline.speculation.base import DraftLoader
from paceline.text import differing_token


def fit_padding(draft: CausalLM, target: CausalLM, name: str, load: DraftLoader) -> None:
    """Gives the draft as many tokens as the target has: those that it lacks get -inf, those beyond are cut.

    Raises:
        ConfigError: the tokens are others, or nothing tells that they are the same.
    """
    have, want = draft.config.vocab_size, target.config.vocab_size
    if have == want:
        return
    _check_same(have, want, name, load)
    tokens = torch.arange(have)
    draft.map_logits(torch.where(tokens < want, tokens, -1), want)
    draft.widen_table(want)


def _check_same(have: int, want: int, name: str, load: DraftLoader) -> None:
    sizes = f"the draft has {have} tokens, the target {want}"
    one, other = load.tokenizer(name), load.tokenizer(None)
    if one is None or other is None:
        whose = "the draft" if one is None else "the target"
        raise ConfigError(
            f"{sizes}, and {whose} has no tokenizer.json that says whether they are the same\n"
            f"Put the tokenizer's files beside the model, or give a draft with {want} tokens."
        )
    token = differing_token(one, other)
    if token is not None:
        raise ConfigError(
            f"{sizes}, and they are not the same ones: {token!r} has id {one.backend.token_to_id(token)} in the draft, "
            f"{other.backend.token_to_id(token)} in the target\n"
            'Set speculative_config["method"] to "tli" or "slem", which draft in other tokens.'
        )
