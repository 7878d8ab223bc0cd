"""From rows of logits to tokens and log-probabilities; knows rows and controls, not who asked or what was drafted.

Shape letters: R rows, V vocabulary, P processors.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from paceline.core.batch import Int32, Int64, SampleRows
from paceline.core.outputs import TokenLogprobs
from paceline.kernels.native.sampling import NativeSampling
from paceline.kernels.philox import Domain
from paceline.sampling.noise import Noise, NoiseKeys
from paceline.sampling.samplers import AUTO, Sampler, build_sampler
from paceline.sampling.scores import BANNED, NAN, best_tokens, processed, row_index, take_rows
from paceline.sampling.state import SamplingState


class Pipeline:
    """Processes and samples rows with the controls of their seats.

    A row's history is its seat's known tokens and ``rows.path``. What a row becomes is a function of its own logits,
    history, controls and noise index alone: other rows of the call change no bit of it. Computes in float64 for
    float64 logits, else in float32.
    """

    def __init__(self, state: SamplingState, sampler: str = AUTO) -> None:
        """``sampler`` is a name of ``paceline.sampling.samplers``, or "auto"."""
        self.state = state
        self._sampler = sampler
        self._samplers: dict[torch.dtype, Sampler] = {}
        self._noise = Noise(state)

    def scores(self, logits: Tensor, rows: SampleRows) -> Tensor:
        """The processed logits f[R, V]; banned and truncated tokens are -inf. ``logits`` [R, V] is left alone.

        A row's scores are logits of its distribution, up to a constant. Temperature and truncation do not apply to
        greedy rows, whose token is the first of the best scores.
        """
        return processed(self.state, logits, rows)

    def sample(self, logits: Tensor, rows: SampleRows) -> Int64:
        """The token of each row, int64[R]: the first of the best sums of score and target noise.

        Greedy rows take the first of the best scores. A row is NAN if its logits [R, V] have a NaN, and BANNED if its
        controls leave no token.
        """
        return self._sampler_of(logits.dtype).sample(logits, rows)

    def native(self, rows: SampleRows, *, at_once: bool = True) -> NativeSampling | None:
        """The native call that samples float32 logits of ``rows`` beside other ops; None if it cannot take these rows.

        Histories are read now. Unless ``at_once`` the call must also do for rows behind these, whose histories nobody
        knows yet.
        """
        return self._sampler_of(torch.float32).native(rows, at_once=at_once)

    def edits(self, seats: Int32) -> bool:
        """Whether a call that ``native`` gives for rows of these seats has edits, which are each row's own."""
        return self._sampler_of(torch.float32).edits(seats)

    def can_plan(self, rows: SampleRows, *, at_once: bool) -> bool:
        """Whether ``native`` would give a call; histories are not read."""
        return self._sampler_of(torch.float32).can_plan(rows, at_once=at_once)

    def best(self, logits: Tensor, count: int) -> tuple[Int32, npt.NDArray[np.float64]]:
        """The ``count`` likeliest tokens of rows of raw logits [R, V] and their log-probabilities, [R, count] each.

        They come in the order of their numbers; a row with a NaN has NaN for every log-probability.
        """
        return self._sampler_of(logits.dtype).best(logits, count)

    def _sampler_of(self, dtype: torch.dtype) -> Sampler:
        sampler = self._samplers.get(dtype)
        if sampler is None:
            sampler = self._samplers[dtype] = build_sampler(self._sampler, self.state, dtype)
        return sampler

    def log_weights(self, logits: Tensor, rows: SampleRows) -> Tensor:
        """f[R, V]: what ``sample`` adds noise to, a row's log-probabilities up to a constant, whatever its controls.

        A greedy row is -inf but for its token, the first of the best scores. A row that ``sample`` calls NAN is NaN
        everywhere, one that it calls BANNED is -inf everywhere.
        """
        scores = self.scores(logits, rows)
        greedy = np.flatnonzero(self.state.greedy[rows.seats])
        if len(greedy):
            here = row_index(greedy, scores.device)
            scores[here] = _only_best(scores[here])
        scores.clamp_(max=torch.finfo(scores.dtype).max)  # so that an infinite score is a certain token, not NaN
        # A ban may have covered the NaN that says this row's numbers cannot be trusted.
        return scores.masked_fill_(~(logits.amax(-1, keepdim=True) > -torch.inf), torch.nan)

    def draft(self, logits: Tensor, rows: SampleRows) -> tuple[Int64, Tensor]:
        """A draft's tokens int64[R] as in ``sample``, with noise of their own, and f32[R, V] what they were drawn from.

        A ratio test is exact only with the very numbers that were drawn from: the noise is added to their logarithms.
        """
        probs = probabilities(self.log_weights(logits, rows)).float()
        tokens = self.choose(probs.log(), self._noise.keys(rows, Domain.DRAFT))
        return _told_apart(tokens, logits), probs

    def draft_distinct(self, logits: Tensor, rows: SampleRows, width: int, places: Int64) -> tuple[Int64, Tensor]:
        """As ``draft``, ``width`` tokens of each row one after another without replacement: [R, width], [R, width, V].

        What a token was drawn from is what the tokens before it leave, normalised; a row may run out, which is BANNED.
        One noise does for all of a row's tokens: the best sum says nothing of which is the next (Gumbel top-k,
        1903.06059). ``places`` int64[R] tells apart the rows of one depth of a draft.
        """
        probs = probabilities(self.log_weights(logits, rows)).float()
        keys = self._noise.keys(rows, Domain.DRAFT, places)
        tokens, drawn = [self.choose(probs.log(), keys)], [probs]
        while len(tokens) < width:
            probs = probs.scatter(-1, tokens[-1].clamp(min=0)[:, None], 0.0)
            total = probs.sum(-1, keepdim=True, dtype=torch.float64)
            probs = (probs / total.where(total > 0, 1.0)).float()
            tokens.append(self.choose(probs.log(), keys))
            drawn.append(probs)
        return _told_apart(torch.stack(tokens, dim=1), logits), torch.stack(drawn, dim=1)

    def choose(self, log_weights: Tensor, keys: NoiseKeys) -> Tensor:
        """int64[R] the first of the best sums of ``log_weights`` [R, V] and noise; NAN and BANNED as in ``sample``."""
        tokens = best_tokens(self._noise.add(log_weights, keys))
        return tokens.masked_fill_(log_weights.amax(-1) == -torch.inf, BANNED)

    def noise_keys(self, rows: SampleRows, domain: Domain) -> NoiseKeys:
        """What the noise of ``rows`` depends on, by row, on the device of the controls."""
        return self._noise.keys(rows, domain)

    def uniform(self, rows: SampleRows, domain: Domain, places: Int64 | None = None) -> Tensor:
        """f64[R]: a number in (0, 1) of each row's seed, sample and output index in ``domain``; ``places`` as above."""
        return self._noise.uniform(self._noise.keys(rows, domain, places))

    def perturbed(self, logits: Tensor, rows: SampleRows, domain: Domain = Domain.TARGET) -> Tensor:
        """f[R, V]: the scores plus the noise of ``domain``; ``sample`` takes their argmax. Greedy rows get no noise."""
        scores = self.scores(logits, rows)
        noisy = np.flatnonzero(~self.state.greedy[rows.seats])
        if len(noisy):
            here = row_index(noisy, scores.device)
            scores[here] += self._noise.dense(self._noise.keys(take_rows(rows, noisy), domain), scores.dtype)
        return scores

    def noise(self, rows: SampleRows, domain: Domain, dtype: torch.dtype = torch.float64) -> Tensor:
        """f[R, V]: the Gumbel noise of each row's seed, sample and output index in ``domain``."""
        return self._noise.dense(self._noise.keys(rows, domain), dtype)

    def logprobs(
        self, logits: Tensor, row_indices: list[int], tokens: list[int], top: list[int]
    ) -> list[TokenLogprobs]:
        """Of ``tokens[i]`` under row ``row_indices[i]`` of the raw logits [R, V], with the ``top[i]`` likeliest."""
        return self._sampler_of(logits.dtype).logprobs(logits, row_indices, tokens, top) if row_indices else []


def probabilities(log_weights: Tensor) -> Tensor:
    """f[R, V]: the distributions of ``Pipeline.log_weights``; rows without a token are 0 everywhere."""
    without = ~(log_weights.amax(-1, keepdim=True) > -torch.inf)
    return log_weights.softmax(-1).masked_fill_(without, 0.0)


def _told_apart(tokens: Tensor, logits: Tensor) -> Int64:
    """``tokens`` [R, ...] of rows of ``logits``: neither kind of row without a token has probabilities to tell by."""
    broken = ~(logits.amax(-1) > -torch.inf)
    found: Int64 = tokens.masked_fill_(broken.view(-1, *[1] * (tokens.dim() - 1)), NAN).cpu().numpy()
    return found


def _only_best(scores: Tensor) -> Tensor:
    """0 for the first of each row's best scores, -inf for the others; rows without one stay -inf or NaN."""
    best, tokens = scores.max(-1, keepdim=True)
    certain = torch.full_like(scores, -torch.inf).scatter_(-1, tokens, 0.0)
    return torch.where(best > -torch.inf, certain, best)
