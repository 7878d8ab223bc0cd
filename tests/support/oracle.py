"""Every control by its definition, one token at a time in plain Python; slow and meant to be read."""

import math
from collections import Counter

NEVER = -math.inf


def processed(logits, params, prompt, output, *, eos=(), words=()):
    """The scores of the token after ``output``, and how near the nearest truncation decision was to tipping."""
    scores = _bans(list(logits), params, output, eos, words)
    for token, bias in (params.logit_bias or {}).items():
        scores[token] += bias
    scores = _penalties(scores, params, prompt, output)
    if params.temperature == 0 or max(scores) == NEVER:
        return scores, 1.0
    scores = [score / params.temperature for score in scores]
    scores, min_p_margin = _min_p(scores, params.min_p)
    scores = _top_k(scores, params.top_k)
    scores, top_p_margin = _top_p(scores, params.top_p)
    return scores, min(min_p_margin, top_p_margin)


def probabilities(scores):
    best = max(scores)
    weights = [math.exp(score - best) if score > NEVER else 0.0 for score in scores]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def _bans(scores, params, output, eos, words):
    if params.allowed_token_ids is not None:
        scores = [score if token in params.allowed_token_ids else NEVER for token, score in enumerate(scores)]
    for word in words:
        context = list(word[:-1])
        if len(context) <= len(output) and output[len(output) - len(context) :] == context:
            scores[word[-1]] = NEVER
    if len(output) < params.min_tokens:
        for token in {*eos, *params.stop_token_ids}:
            scores[token] = NEVER
    return scores


def _penalties(scores, params, prompt, output):
    counts = Counter(output)
    for token in range(len(scores)):
        if token in counts or token in prompt:
            positive = scores[token] > 0
            scores[token] = (
                scores[token] / params.repetition_penalty if positive else scores[token] * params.repetition_penalty
            )
        scores[token] -= params.frequency_penalty * counts[token]
        scores[token] -= params.presence_penalty * (token in counts)
    return scores


def _min_p(scores, min_p):
    if min_p == 0:
        return scores, 1.0
    best = max(scores)
    shares = [math.exp(score - best) for score in scores]
    margin = min((abs(share - min_p) for share in shares if share < 1), default=1.0)
    return [score if share >= min_p else NEVER for score, share in zip(scores, shares, strict=True)], margin


def _top_k(scores, top_k):
    if not 0 < top_k < len(scores):
        return scores
    least = sorted(scores, reverse=True)[top_k - 1]
    return [score if score >= least else NEVER for score in scores]


def _top_p(scores, top_p):
    if top_p == 1:
        return scores, 1.0
    shares = probabilities(scores)
    likelier = [math.fsum(other for other in shares if other > share) for share in shares]
    margin = min(abs(mass - top_p) for mass in likelier)
    return [score if mass < top_p else NEVER for score, mass in zip(scores, likelier, strict=True)], margin
