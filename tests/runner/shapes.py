"""Draws models of any sizes, and runs the same jobs through them natively and in torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paceline.core.batch import Batch
from paceline.core.params import SamplingParams
from paceline.kernels.native import library
from paceline.models import CausalLM, Quantization, load_model
from paceline.models.config import DTYPES
from paceline.runner import Choice, model_impls
from tests.support.engines import Job, Models, Tokens, one_by_one, run
from tests.support.zoo import tiny

CPU = torch.device("cpu")
LARGEST_HEAD = 600
WIDEST = 1400
"""All query heads together, roughly: checkpoints stay small."""
CONTEXT = 96
TOLERANCE = {None: 1e-3, "int8": 0.2, "int4": 0.2}
"""On the distance of logits, by their length: torch multiplies the quantised weights by rows that it does not round."""
HALF_TOLERANCE = {torch.float32: 0.0, torch.float16: 1e-2, torch.bfloat16: 0.1}
"""More of it for weights of this type."""


@dataclass(frozen=True)
class Shape:
    """A checkpoint's family and config, what it is quantised to, and the options of the engine that runs it."""

    family: str
    config: dict[str, Any]
    dtype: torch.dtype
    quantization: Quantization | None
    options: dict[str, Any]
    jobs: list[Job]
    level: str
    """Of the kernels."""
    num_threads: int
    speculation: dict[str, Any] = field(default_factory=lambda: {"method": "ngram", "num_speculative_tokens": 3})

    def save(self, directory: Path) -> None:
        tiny(directory, self.family, dtype=self.dtype, **self.config)

    def load(self, directory: Path, dtype: torch.dtype) -> CausalLM:
        return load_model(directory, dtype=dtype, quantization=self.quantization)

    @property
    def tolerance(self) -> float:
        kept = DTYPES[self.options["kv_cache_dtype"]]
        return TOLERANCE[self.quantization and self.quantization.scheme] + sum(
            HALF_TOLERANCE[dtype] for dtype in (self.dtype, kept)
        )


class Draw:
    """Random sizes, of which small and uneven ones are as likely as large ones."""

    def __init__(self, seed: int, number: int) -> None:
        self.random = np.random.default_rng((seed, number))

    def size(self, most: int, *, step: int = 1) -> int:
        """A multiple of ``step``; of all magnitudes up to ``most`` alike."""
        return step * max(1, round(float(np.exp(self.random.uniform(0, np.log(max(1, most // step)))))))

    def of(self, *choices: Any) -> Any:
        return choices[int(self.random.integers(len(choices)))]


def draw(seed: int, number: int) -> Shape:
    one = Draw(seed, number)
    group = one.of(32, 64, 128)
    scheme = one.of(None, None, None, "int8", "int4")
    family = one.of(*FAMILIES)
    unit = group if scheme == "int4" else 1
    vocab_size = one.size(400) + 4
    common = {"vocab_size": vocab_size, "num_hidden_layers": one.of(1, 2), "max_position_embeddings": CONTEXT}
    config = common | FAMILIES[family](one, unit)
    widest = max(32, config["hidden_size"], config["num_attention_heads"] * config.get("head_dim", 1))
    # Scores and sums of all sizes stay small, else rounding alone makes other logits.
    expand = dict.fromkeys(("init_std",) if family == "opt" else ("initializer_range",), 2.0 * widest**-0.5)
    return Shape(
        family,
        config | expand | {"tie_word_embeddings": one.of(True, False)},
        one.of(torch.float32, torch.float32, torch.bfloat16, torch.float16),
        None if scheme is None else Quantization(scheme, group),
        {
            "block_size": one.size(40),
            "max_num_batched_tokens": 8 + one.size(64),
            "kv_cache_dtype": one.of("float32", "float32", "bfloat16", "float16"),
        },
        [_job(one, vocab_size) for _ in range(one.of(1, 2, 4))],
        one.of(*library.levels() or ["native"]),
        one.of(1, 2, 3),
    )


def _job(one: Draw, vocab_size: int) -> Job:
    prompt = one.random.integers(vocab_size, size=one.size(60))
    controls = one.of({"temperature": 0.0}, {"temperature": 1.0, "seed": 5, "top_p": 0.9}, {"top_k": 3, "seed": 1})
    return Job(tuple(map(int, prompt)), SamplingParams(max_tokens=one.of(1, 5, 9), ignore_eos=True, **controls))


def _head_dim(one: Draw, unit: int, heads: int, *, step: int = 2) -> int:
    step = math.lcm(unit, step)
    most = max(step, min(LARGEST_HEAD, WIDEST // heads) // step * step)
    return one.of(one.size(most, step=step), most, step)


def _grouped(one: Draw, unit: int) -> dict[str, Any]:
    kv_heads = one.of(1, 1, 2, 3)
    heads = kv_heads * one.of(1, 2, 3, 7, 64 if kv_heads == 1 else 1)
    return {
        "hidden_size": one.size(160, step=math.lcm(unit, heads)),  # transformers wants it so
        "intermediate_size": one.size(160, step=unit),
        "num_key_value_heads": kv_heads,
        "num_attention_heads": heads,
        "head_dim": _head_dim(one, unit // math.gcd(unit, heads), heads),
    }


def _windowed(one: Draw, unit: int) -> dict[str, Any]:
    return _grouped(one, unit) | {"sliding_window": one.size(CONTEXT)}


def _gemma(one: Draw, unit: int) -> dict[str, Any]:
    return _windowed(one, unit) | {"query_pre_attn_scalar": one.size(300), "num_hidden_layers": 2}


def _classic(one: Draw, unit: int) -> dict[str, Any]:
    """As many K/V heads as query heads, which make up the width together; odd heads too."""
    heads = one.of(1, 2, 3)
    head_dim = _head_dim(one, unit, heads, step=1)
    return {"num_attention_heads": heads, "hidden_size": heads * head_dim}


def _opt(one: Draw, unit: int) -> dict[str, Any]:
    return _classic(one, unit) | {"ffn_dim": one.size(160, step=unit), "word_embed_proj_dim": one.size(90, step=unit)}


def _gpt_neox(one: Draw, unit: int) -> dict[str, Any]:
    sizes = _classic(one, max(unit, 2)) | {"intermediate_size": one.size(160, step=unit)}
    head_dim = sizes["hidden_size"] // sizes["num_attention_heads"]
    rotated = 2 * one.size(max(1, head_dim // 2))
    # Half a channel more, so that the product is not just below the number of channels that is meant.
    rope = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": min(1.0, (rotated + 0.5) / head_dim),
    }
    return sizes | {"rope_parameters": rope}


FAMILIES: dict[str, Callable[[Draw, int], dict[str, Any]]] = {
    "llama": _grouped,
    "qwen3": _grouped,
    "mistral": _windowed,
    "gemma2": _gemma,
    "gemma3_text": _gemma,
    "gpt_neox": _gpt_neox,
    "opt": _opt,
}


@dataclass(frozen=True)
class Seen:
    """What a pass was given, and its logits."""

    batch: Batch
    logits: torch.Tensor


def passes(model: CausalLM, impl: str, shape: Shape) -> tuple[list[Tokens], list[Seen]]:
    """Every pass of the shape's jobs, one after the other."""
    model_impls[impl].prepare_weights(Choice(), model)
    engine = one_by_one(Models(model, {}).engine(model_impl=impl, **shape.options))
    found: list[Seen] = []
    compute = engine.runner.executor.run

    def watched(batch: Batch, taps: tuple[int, ...], *more: Any) -> Any:
        result = compute(batch, taps, *more)
        found.append(Seen(batch, result.logits.clone()))
        return result

    engine.runner.executor.run = watched  # type: ignore[method-assign]
    return [run(engine, [job])[0] for job in shape.jobs], found


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Of rows, by the length of the expected ones."""
    return float((found - expected).norm() / expected.norm().clamp(min=1e-6))
