"""Tiny random checkpoints of every family, and their config files as Transformers wrote them before version 5."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    PreTrainedModel,
)

from paceline.core.params import SamplingParams
from paceline.models import CausalLM
from tests.support.checkpoints import BOS, END, PAD, save_random
from tests.support.engines import Job, Models, run

VOCAB_SIZE = 61
MAX_POSITIONS = 96
WINDOW = 7
SPREAD = 0.4
"""Greedy text wanders."""

SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_POSITIONS,
    "bos_token_id": BOS,
    "eos_token_id": END,
    "pad_token_id": PAD,
}
GROUPED = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "initializer_range": SPREAD}
GEMMA = {**GROUPED, "head_dim": 16, "query_pre_attn_scalar": 12, "sliding_window": WINDOW, "num_hidden_layers": 4}
BASE: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": WINDOW},
    "qwen2": {**GROUPED, "sliding_window": None},
    "qwen3": {**GROUPED, "head_dim": 16, "sliding_window": None},
    "gemma2": {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma3_text": {**GEMMA, "sliding_window_pattern": 3},
    "phi3": {**GROUPED, "num_key_value_heads": 4, "original_max_position_embeddings": MAX_POSITIONS},
    "gpt_neox": {**SIZES, "intermediate_size": 64, "initializer_range": SPREAD},
    "opt": {**SIZES, "ffn_dim": 64, "init_std": SPREAD},
}

ORIGINAL = 24
"""Positions up to which the length-dependent rotary embeddings below are in their first regime."""


def dynamic(factor: float = 4.0) -> dict[str, Any]:
    """Options of a model that serves 4 * 24 positions."""
    rope = {"rope_type": "dynamic", "factor": factor, "rope_theta": 10000.0}
    return {"max_position_embeddings": ORIGINAL, "rope_parameters": rope}


def longrope(num_pairs: int, **more: Any) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0 + 0.1 * pair for pair in range(num_pairs)],
        "long_factor": [1.5 + 2.0 * pair for pair in range(num_pairs)],
        "original_max_position_embeddings": ORIGINAL,
        **more,
    }


def phi3_longrope(**more: Any) -> dict[str, Any]:
    """Options of a tiny Phi-4-mini: six of eight channels are rotated."""
    return {
        "num_key_value_heads": 2,
        "original_max_position_embeddings": ORIGINAL,
        "rope_parameters": longrope(3, partial_rotary_factor=0.75, **more),
    }


def tiny(directory: Path, family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """Saves a random model of the family to ``directory`` and returns it as transformers' own, in float32."""
    config = AutoConfig.for_model(family, **{**BASE[family], **options})
    return save_random(_wandering(AutoModelForCausalLM.from_config), config, directory, seed=seed, dtype=dtype)


def _wandering(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same model with greedy texts that do not repeat one token."""
    return lambda config: _unsettle(make(config))


def _unsettle(model: Any) -> Any:
    if model.config.tie_word_embeddings:  # else the token that was read last is the likeliest to come again
        model.get_input_embeddings().weight.data.mul_(0.1)
    for name, parameter in model.named_parameters():
        if "embed_positions" in name:
            parameter.data.mul_(4)
    return model


def tiny_gemma3_with_vision(directory: Path) -> PreTrainedModel:
    """A Gemma 3 whose text model lies beside one that sees images."""
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config={**BASE["gemma3_text"], "model_type": "gemma3_text"},
        vision_config={**vision, "image_size": 8, "patch_size": 4, "model_type": "siglip_vision_model"},
        mm_tokens_per_image=4,
        image_token_index=VOCAB_SIZE - 1,
        boi_token_index=VOCAB_SIZE - 2,
        eoi_token_index=VOCAB_SIZE - 3,
        initializer_range=SPREAD,
    )
    config.eos_token_id = END
    return save_random(_wandering(Gemma3ForConditionalGeneration), config, directory)


def to_legacy(path: Path) -> dict[str, Any]:
    """Rewrites config.json as Transformers 4 would have written it; returns it."""
    config = json.loads(path.read_text())
    legacy = _legacy(config)
    path.write_text(json.dumps(legacy))
    return legacy


def _legacy(config: dict[str, Any]) -> dict[str, Any]:
    new = ("rope_parameters", "dtype", "layer_types", "_sliding_window_pattern", "transformers_version")
    legacy = {key: value for key, value in config.items() if key not in new}
    legacy["torch_dtype"] = config["dtype"]
    rope = config.get("rope_parameters")
    if rope is not None and "full_attention" in rope:
        local = rope["sliding_attention"]
        legacy |= _named_alone(rope["full_attention"], "rope_theta", kind_key="rope_type")
        legacy |= {"rope_local_base_freq": local["rope_theta"]}
    elif rope is not None:
        neox = config["model_type"] == "gpt_neox"
        legacy |= _named_alone(rope, "rotary_emb_base" if neox else "rope_theta")
        if "partial_rotary_factor" in rope:
            legacy["rotary_pct" if neox else "partial_rotary_factor"] = rope["partial_rotary_factor"]
    if legacy.get("head_dim") == config["hidden_size"] // config["num_attention_heads"]:
        del legacy["head_dim"]
    return legacy


def _named_alone(rope: dict[str, Any], theta: str, kind_key: str = "type") -> dict[str, Any]:
    rest = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
    kind = rest.pop("rope_type")
    return {theta: rope["rope_theta"], "rope_scaling": None if kind == "default" else {kind_key: kind, **rest}}


def hold(reference: PreTrainedModel, length: int) -> None:
    """Makes transformers rotate as for sequences of ``length`` tokens from now on, whatever it is given."""
    rotary = reference.model.rotary_emb
    with torch.inference_mode():
        reference(input_ids=torch.zeros(1, length, dtype=torch.int64), use_cache=False)
    rotary.original_max_seq_len = 0  # else a short sequence takes dynamic frequencies back
    rope = rotary.config.rope_parameters
    if rope["rope_type"] == "longrope":
        rope["original_max_position_embeddings"] = 0 if length > rope["original_max_position_embeddings"] else 10**9


def reference_logits(model: Any, token_ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0]
        return logits


def random_tokens(count: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(3, VOCAB_SIZE - 3, size=count)]


def greedy_job(prompt: list[int], num_tokens: int) -> Job:
    return Job(tuple(prompt), SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True))


def assert_continues(reference: Any, model: CausalLM, prompt: list[int], num_tokens: int, **options: Any) -> list[int]:
    """The engine's greedy text is the reference's, and so are the logits all along it; returns the text."""
    engine = Models(model, {}).engine(block_size=4, **options)
    text = run(engine, [greedy_job(prompt, num_tokens)])[0][0]
    whole = prompt + text
    expected = reference_logits(reference, whole)
    # What it chose at each place, given all before, is what it would have written.
    assert text == expected[len(prompt) - 1 : -1].argmax(-1).tolist()
    assert len(set(text)) > 2, "greedy output too dull to prove anything"
    return text
