"""The logits processors in the order in which they apply; each knows one control and nothing of the others.

A new control is one file here and one line below, at the place where it is to apply. The order is vLLM's.
"""

from __future__ import annotations

from collections.abc import Callable

from paceline.core.registry import Registry
from paceline.sampling.controls import Controls
from paceline.sampling.processors.allowed_token_ids import AllowedTokenIds
from paceline.sampling.processors.bad_words import BadWords
from paceline.sampling.processors.base import Editing, Processor
from paceline.sampling.processors.logit_bias import LogitBias
from paceline.sampling.processors.min_p import MinP
from paceline.sampling.processors.min_tokens import MinTokens
from paceline.sampling.processors.penalties import Penalties
from paceline.sampling.processors.temperature import Temperature
from paceline.sampling.processors.top_k import TopK
from paceline.sampling.processors.top_p import TopP

processors: Registry[Callable[[Controls], Processor]] = Registry("logits processor")
processors.add("allowed_token_ids")(AllowedTokenIds)
processors.add("bad_words")(BadWords)
processors.add("min_tokens")(MinTokens)
processors.add("logit_bias")(LogitBias)
processors.add("penalties")(Penalties)
processors.add("temperature")(Temperature)
processors.add("min_p")(MinP)
processors.add("top_k")(TopK)
processors.add("top_p")(TopP)

__all__ = ["Editing", "Processor", "processors"]
