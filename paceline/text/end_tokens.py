"""Knows which added tokens end a turn: the tokenizer's own, and those that chat templates write there."""

from __future__ import annotations

from collections.abc import Mapping

TURN_ENDS = frozenset(
    {
        *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|end_of_turn|>", "<end_of_turn>", "<turn|>"),
        *("<|END_OF_TURN_TOKEN|>", "<|end_of_text|>", "<|endoftext|>", "<|eot|>", "<EOT>", "<end_of_utterance>"),
        *("<|return|>", "<|call|>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "<|end_of_sentence|>", "<|eos|>"),
        *("<eos>", "</s>", "[EOS]", "[EOT]", "[|endofturn|]", "<|assistant_end|>", "<seed:eos>", "[e~["),
    }
)
"""Names that published templates give to the end of a turn, or of an answer."""


def end_tokens(ids: Mapping[str, int], eos_token: str | None, template: str | None) -> frozenset[int]:
    """The ids that end an answer, of added tokens by content; some files forget to call them special.

    Args:
        ids: added tokens.
        eos_token: what the tokenizer calls so.
        template: the chat template's source; a token that it does not write says nothing about turns.
    """
    ends = {name for name in TURN_ENDS if template is not None and name in template}
    if "<|return|>" in ends:
        ends.discard("<|end|>")  # Of harmony's formats: there it ends a message, and an answer may have several.
    return frozenset(ids[name] for name in (*ends, eos_token) if name is not None and name in ids)
