"""Log-probabilities of chosen tokens; knows logits and tokens only.

Shape letters: N positions asked for, V vocabulary, K most alternatives asked for at one of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.core.outputs import TokenLogprobs


def token_logprobs(logits: Tensor, tokens: list[int], top: list[int]) -> list[TokenLogprobs]:
    """Of ``tokens[i]`` under row i of ``logits`` f[N, V], with the ``top[i]`` likeliest tokens (ties: lower id first).

    A token's rank is 1 + the number of tokens that are likelier.
    """
    logprobs = logits.log_softmax(-1)
    index = torch.tensor(tokens, device=logits.device).unsqueeze(1)
    own = logprobs.gather(-1, index)
    rank = 1 + (logprobs > own).sum(-1, keepdim=True)
    best = logprobs.topk(min(max(top), logits.shape[-1]), dim=-1)
    # One copy to the host: float64 holds the integers exactly.
    table = torch.cat([part.double() for part in (own, rank, best.values, best.indices)], dim=-1).tolist()
    return [_unpack(*row) for row in zip(tokens, table, top, strict=True)]


def _unpack(token: int, numbers: list[float], count: int) -> TokenLogprobs:
    own, rank, *best = numbers
    half = len(best) // 2
    pairs = sorted(((int(token), value) for value, token in zip(best[:half], best[half:], strict=True)), key=_likeliest)
    return TokenLogprobs(token, own, int(rank), tuple(pairs[:count]))


def _likeliest(pair: tuple[int, float]) -> tuple[float, int]:
    return -pair[1], pair[0]
