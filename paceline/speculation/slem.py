"""String-level exact match (2502.05202): what a draft of another tokenizer writes becomes tokens of the target."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from paceline.core.batch import Int64
from paceline.core.config import SpeculativeConfig
from paceline.core.errors import InvalidRequestError
from paceline.core.step import DraftTrees, StepPlan
from paceline.models import CausalLM
from paceline.sampling import NAN
from paceline.speculation.base import DraftLoader, proposers
from paceline.speculation.other_tokens import OtherTokensProposer, OwnChains, load_pair
from paceline.text import StreamDecoder, Tokenizer, continue_text, special_tokens

CONTEXT = 8
"""Own tokens before a draft that decide how its first characters are spelled."""


class RetokenisedProposer(OtherTokensProposer):
    """Takes the draft's likeliest tokens, whatever the request's controls: a certain chain."""

    def __init__(self, model: CausalLM, draft: Tokenizer, target: Tokenizer, vocab_size: int) -> None:
        super().__init__(model, draft, target)
        self._specials, self._vocab_size = special_tokens(draft, target), vocab_size

    def choose(self, plan: StepPlan, chains: OwnChains, going: Int64, level: int, logits: torch.Tensor) -> Int64:  # noqa: ARG002
        best, tokens = logits.max(-1)
        found: Int64 = torch.where(best.isfinite(), tokens, NAN).cpu().numpy()
        return found

    def ends(self, plan: StepPlan, chains: OwnChains, going: Int64, level: int) -> npt.NDArray[np.bool_]:  # noqa: ARG002
        """Behind a special token there is another text."""
        return np.isin(chains.own[going, level], list(self.draft_tokenizer.special_ids))

    def drafts(self, plan: StepPlan, chains: OwnChains) -> DraftTrees:
        found = [self._retokenised(chains, place)[: int(plan.draft_depth[n])] for place, n in enumerate(chains.numbers)]
        tokens = np.zeros((len(plan), max(map(len, found), default=0)), dtype=np.int32)
        counts = np.zeros(len(plan), dtype=np.int32)
        for number, some in zip(chains.numbers.tolist(), found, strict=True):
            tokens[number, : len(some)], counts[number] = some, len(some)
        return DraftTrees.chains(tokens, counts)

    def _retokenised(self, chains: OwnChains, place: int) -> list[int]:
        """The target's tokens for a chain's; a part of a character at its end is left out."""
        seat, own = int(chains.seats[place]), chains.own[place, : chains.counts[place]].tolist()
        known = self.own.seats.num_tokens[seat]
        before = self.own.seats.tokens[seat, max(0, known - CONTEXT) : known].tolist()
        try:
            decoder = StreamDecoder(self.draft_tokenizer, prompt_token_ids=before)
            text = "".join([decoder.push(token) for token in own])
            tokens = continue_text(self.target_tokenizer, self.open_text(seat), text) if text else []
        except InvalidRequestError:
            return []
        last = self._specials.get(own[-1]) if own and not decoder.pending else None
        if last is not None:
            tokens.append(last)
        outside = (number for number, token in enumerate(tokens) if token >= self._vocab_size)
        return tokens[: next(outside, len(tokens))]


@proposers.add("slem")
def build(config: SpeculativeConfig, target: CausalLM, load: DraftLoader) -> RetokenisedProposer:
    model, own, others = load_pair(config, load)
    return RetokenisedProposer(model, own, others, target.config.vocab_size)
