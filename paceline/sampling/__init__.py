"""How a row of logits becomes a token: controls, noise, log-probabilities, selectors; nothing of models or caches."""

from paceline.sampling.pipeline import Pipeline, probabilities
from paceline.sampling.scores import BANNED, NAN
from paceline.sampling.selector import Selector, selectors
from paceline.sampling.state import SamplingState

__all__ = ["BANNED", "NAN", "Pipeline", "SamplingState", "Selector", "probabilities", "selectors"]
