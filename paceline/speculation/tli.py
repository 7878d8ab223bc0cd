"""Token-level intersection (2502.05202): a draft of another tokenizer chooses among the tokens that both have."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from paceline.core.batch import Int32, Int64, SampleRows
from paceline.core.config import SpeculativeConfig
from paceline.core.errors import ConfigError
from paceline.core.step import DraftTrees, StepPlan
from paceline.models import CausalLM
from paceline.speculation.base import DraftLoader, proposers
from paceline.speculation.other_tokens import OtherTokensProposer, OwnChains, load_pair
from paceline.text import Tokenizer, shared_tokens


class SharedTokensProposer(OtherTokensProposer):
    """The draft's logits are of the target's tokens, -inf of those that it lacks, before anything is made of them.

    So they are sampled with the target's controls, and under ``match`` with its noise.
    """

    def __init__(
        self, model: CausalLM, draft: Tokenizer, target: Tokenizer, pairs: dict[int, int], vocab_size: int
    ) -> None:
        super().__init__(model, draft, target)
        own, shared = (np.array(some, dtype=np.int64) for some in zip(*pairs.items(), strict=True))
        token_map: Int64 = np.full(model.config.vocab_size, -1, dtype=np.int64)
        token_map[own] = shared
        self._own_of: Int32 = np.full(vocab_size, -1, dtype=np.int32)
        self._own_of[shared] = own
        model.map_logits(torch.from_numpy(token_map), vocab_size)

    def start(self, plan: StepPlan, chains: OwnChains) -> None:  # noqa: ARG002
        self._tokens: Int32 = np.zeros_like(chains.own)
        self._index = self.tools.seats.num_output(chains.seats)
        self._probs: torch.Tensor | None = None

    def choose(self, plan: StepPlan, chains: OwnChains, going: Int64, level: int, logits: torch.Tensor) -> Int64:
        pipeline = self.tools.pipeline
        rows = SampleRows(chains.seats[going], self._index[going] + level, self._tokens[going, :level])
        if self.tools.needs_probs:
            tokens, drawn = pipeline.draft(logits, rows)
            if self._probs is None:
                self._probs = drawn.new_zeros((len(plan), chains.own.shape[1], drawn.shape[-1]))
            self._probs[torch.from_numpy(chains.numbers[going]).to(drawn.device), level] = drawn
        else:
            tokens = pipeline.sample(logits, rows)
        good = tokens >= 0
        self._tokens[going[good], level] = tokens[good]
        found: Int64 = np.where(good, self._own_of[np.maximum(tokens, 0)], tokens)
        return found

    def ends(self, plan: StepPlan, chains: OwnChains, going: Int64, level: int) -> npt.NDArray[np.bool_]:
        stops = [plan.requests[number].stop_ids for number in chains.numbers[going].tolist()]
        tokens = self._tokens[going, level].tolist()
        return np.array([token in some for token, some in zip(tokens, stops, strict=True)], dtype=np.bool_)

    def drafts(self, plan: StepPlan, chains: OwnChains) -> DraftTrees:
        tokens = np.zeros((len(plan), chains.own.shape[1]), dtype=np.int32)
        counts = np.zeros(len(plan), dtype=np.int32)
        tokens[chains.numbers], counts[chains.numbers] = self._tokens, chains.counts
        return DraftTrees.chains(tokens, counts, self._probs)


@proposers.add("tli")
def build(config: SpeculativeConfig, target: CausalLM, load: DraftLoader) -> SharedTokensProposer:
    model, own, others = load_pair(config, load)
    vocab_size = target.config.vocab_size
    pairs = shared_tokens(own, model.config.vocab_size, others, vocab_size)
    if not pairs:
        raise ConfigError(
            "the draft's tokenizer and the target's have no token in common\n"
            'Set speculative_config["method"] to "slem", which compares texts.'
        )
    return SharedTokensProposer(model, own, others, pairs, vocab_size)
