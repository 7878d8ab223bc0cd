"""Log-probabilities of chosen tokens; knows logits and tokens only.

Tokens are ranked by their logits, so that neither ranks nor the likeliest tokens hang on how a log-probability rounds.
``in_torch`` is the definition and runs anywhere; ``in_native`` reads a row once or twice and copies nothing. A row with
a NaN has NaN for every log-probability, ranks that are 1, and its first tokens as the likeliest.

Shape letters: R rows, N positions asked for, V vocabulary, K most alternatives asked for at one of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from paceline.core.batch import Int32
from paceline.core.outputs import TokenLogprobs
from paceline.kernels.native.logprobs import logprobs
from paceline.sampling.scores import compute_dtype, row_index

Float64 = npt.NDArray[np.float64]


def in_torch(logits: Tensor, rows: list[int], tokens: list[int], top: list[int]) -> list[TokenLogprobs]:
    """Of ``tokens[i]`` under row ``rows[i]`` of ``logits`` [R, V], with the ``top[i]`` likeliest, of equals the lowest.

    A token's rank is 1 + the number of tokens that have a larger logit.
    """
    asked = logits[row_index(np.asarray(rows), logits.device)].to(compute_dtype(logits))
    scores = asked.log_softmax(-1)  # [N, V]
    broken = asked.amax(-1, keepdim=True).isnan()
    ranked = asked.masked_fill(broken, 0.0) if bool(broken.any()) else asked
    index = torch.tensor(tokens, device=logits.device).unsqueeze(1)
    rank = 1 + (ranked > ranked.gather(-1, index)).sum(-1, keepdim=True)
    best = _best_tokens(ranked, min(max(top), logits.shape[-1]))
    # One copy to the host: float64 holds the integers exactly.
    parts = (scores.gather(-1, index), rank, best, scores.gather(-1, best))
    table = torch.cat([part.double() for part in parts], dim=-1).cpu().numpy()
    ids, values = np.split(table[:, 2:], 2, axis=1)
    return _listed(tokens, top, table[:, 0], table[:, 1].astype(np.int64), (ids.astype(np.int64), values))


def in_native(logits: Tensor, rows: list[int], tokens: list[int], top: list[int]) -> list[TokenLogprobs]:
    """As ``in_torch``, for logits that native kernels take; log-probabilities are rounded to float32 from float64.

    A row's numbers have the same bits alone and among others, at any level and number of threads.
    """
    logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    wanted = np.minimum(np.asarray(top, dtype=np.int64), logits.shape[1])
    found = logprobs(logits, np.asarray(rows, dtype=np.int64), np.asarray(tokens, dtype=np.int64), wanted)
    order = np.argsort(-found.top_logits, axis=1, kind="stable")
    best = np.take_along_axis(found.top_tokens, order, axis=1)
    ordered = np.take_along_axis(found.top_logits, order, axis=1)
    with np.errstate(over="ignore", invalid="ignore"):  # logits as far apart as float32 reaches, and infinite ones
        own, values = ((each - found.log_sums[:, None]).astype(np.float32) for each in (found.logits[:, None], ordered))
    return _listed(tokens, top, own[:, 0], found.ranks, (best, values))


def best_in_torch(logits: Tensor, count: int) -> tuple[Int32, Float64]:
    """The ``count`` likeliest tokens of rows of ``logits`` [R, V] and their log-probabilities, [R, count] each.

    They come in the order of their numbers; a row with a NaN has NaN for every log-probability.
    """
    scores = logits.to(compute_dtype(logits)).log_softmax(-1)
    ranked = scores.nan_to_num(nan=0.0)
    tokens = _best_tokens(ranked, count).sort(dim=-1).values
    return tokens.cpu().numpy().astype(np.int32), scores.gather(-1, tokens).double().cpu().numpy()


def best_in_native(logits: Tensor, count: int) -> tuple[Int32, Float64]:
    """As ``best_in_torch``, for logits that native kernels take."""
    logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    rows = np.arange(len(logits), dtype=np.int64)
    found = logprobs(logits, rows, np.zeros_like(rows), np.full_like(rows, count))
    return found.top_tokens, found.top_logits - found.log_sums[:, None]


def _best_tokens(ranked: Tensor, count: int) -> Tensor:
    """int64[N, count] the best of each row of ``ranked`` f[N, V], best first, of equals the lowest."""
    if count == 0:
        return ranked.new_zeros(len(ranked), 0, dtype=torch.int64)
    least = ranked.topk(count, dim=-1).values[:, -1:]
    taken = ranked >= least
    if int(taken.count_nonzero()) > len(ranked) * count:
        # Which of the tokens that tie for the last places it takes, topk leaves open.
        better, tied = ranked > least, ranked == least
        taken = better | (tied & (tied.cumsum(-1) <= count - better.sum(-1, keepdim=True)))
    best = taken.nonzero()[:, 1].view(len(ranked), count)
    order = ranked.gather(-1, best).sort(dim=-1, descending=True, stable=True).indices
    return best.gather(-1, order)


def _listed(
    tokens: list[int], top: list[int], own: np.ndarray, ranks: np.ndarray, best: tuple[np.ndarray, np.ndarray]
) -> list[TokenLogprobs]:
    """``own`` [N], ``ranks`` [N]; the ``best`` tokens and their values [N, K]; each row takes its first ones."""
    columns = zip(tokens, top, own.tolist(), ranks.tolist(), *(part.tolist() for part in best), strict=True)
    return [
        TokenLogprobs(token, value, rank, tuple(zip(ids[:count], values[:count], strict=True)))
        for token, count, value, rank, ids, values in columns
    ]
