"""Makes tiny random checkpoints with transformers, and runs whole sequences without a cache to compare with."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from paceline.core.layer import Attend, PassContext
from paceline.models import CausalLM
from paceline.training.data import ChatFormat
from paceline.training.tokenizer import save_tokenizer, train_tokenizer

# Large enough that greedy text wanders instead of repeating one token.
SPREAD = 0.2
BOS, END, PAD = 0, 1, 2

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "What is the capital of France? The capital of France is Paris.",
    "Count from one to ten: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10.",
    "A train leaves the station at noon and arrives at three in the afternoon.",
    "Thank you, that is all I need. Have a nice day!",
    "Ünïcödé wörks töö: naïve café, 東京, 🙂.",
]


def tiny_llama(
    directory: Path,
    *,
    seed: int = 0,
    vocab_size: int = 320,
    tied: bool = False,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int | None = None,
    rope: dict[str, Any] | None = None,
    layers: int = 2,
    hidden: int = 32,
    intermediate: int = 48,
    max_positions: int = 256,
    bias: bool = False,
    mlp_bias: bool = False,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "1GB",
) -> PreTrainedModel:
    """Saves a random Llama to ``directory`` and returns it, in float32 whatever it is stored in."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim or hidden // num_heads,
        max_position_embeddings=max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0} | (rope or {}),
        tie_word_embeddings=tied,
        attention_bias=bias,
        mlp_bias=mlp_bias,
        initializer_range=SPREAD,
        bos_token_id=BOS,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    return save_random(LlamaForCausalLM, config, directory, seed=seed, dtype=dtype, max_shard_size=max_shard_size)


def tiny_gpt2(
    directory: Path,
    *,
    seed: int = 0,
    vocab_size: int = 320,
    num_heads: int = 4,
    layers: int = 2,
    hidden: int = 32,
    intermediate: int | None = None,
    max_positions: int = 256,
    scale_by_depth: bool = False,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "1GB",
) -> PreTrainedModel:
    """Saves a random GPT-2 to ``directory`` and returns it, in float32 whatever it is stored in."""
    config = GPT2Config(
        vocab_size=vocab_size,
        n_embd=hidden,
        n_layer=layers,
        n_head=num_heads,
        n_inner=intermediate,
        n_positions=max_positions,
        scale_attn_by_inverse_layer_idx=scale_by_depth,
        initializer_range=SPREAD,
        bos_token_id=BOS,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    return save_random(GPT2LMHeadModel, config, directory, seed=seed, dtype=dtype, max_shard_size=max_shard_size)


def save_random(
    model_class: Any,
    config: Any,
    directory: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "1GB",
) -> PreTrainedModel:
    """Saves a model of random weights to ``directory`` and returns it, in float32 whatever it is stored in."""
    config._attn_implementation = "eager"
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = model_class(config)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # biases and norms start at constants, which would hide mistakes
                parameter.data.add_(torch.randn_like(parameter), alpha=SPREAD)
            elif "c_proj" in name:  # GPT-2 starts its residual branches smaller
                parameter.data.mul_((2 * config.n_layer) ** 0.5)
            elif "wpe" in name:  # tied embeddings pull the text towards repetition, positions push it on
                parameter.data.mul_(4)
        model.to(dtype).save_pretrained(directory, max_shard_size=max_shard_size)
    return model.float().eval()


def perturb(source: Path, out: Path, scale: float, *, seed: int = 1) -> None:
    """Copies a checkpoint, adding noise of ``scale`` times each weight's spread: a draft that is sometimes right."""
    shutil.copytree(source, out, dirs_exist_ok=True)
    random = torch.Generator().manual_seed(seed)
    for file in sorted(out.glob("*.safetensors")):
        tensors = load_file(file)
        for name, tensor in tensors.items():
            noise = torch.randn(tensor.shape, generator=random)
            expand = tensor.float().std(correction=0)
            tensors[name] = (tensor.float() + noise * expand * scale).to(tensor.dtype)
        save_file(tensors, file, metadata={"format": "pt"})


def tiny_tokenizer(directory: Path, *, vocab_size: int = 320, max_length: int = 256) -> None:
    """Saves a byte-level BPE with chat template; ids 0, 1 and 2 are <|bos|>, <|end|> and <|pad|>."""
    chat = ChatFormat()
    save_tokenizer(
        train_tokenizer(SENTENCES, vocab_size=vocab_size, chat=chat), directory, chat=chat, max_length=max_length
    )


def edit_json(path: Path, **changes: Any) -> None:
    """Changes keys of a JSON file; None removes the key."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def dense_attend(model: CausalLM) -> Attend:
    """Causal attention of one whole sequence: row t sees rows 0 to t, and of those the layer's window."""

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        spec = model.layer_specs[layer]
        k, v = (part.repeat_interleave(spec.num_heads // spec.num_kv_heads, dim=1) for part in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * spec.scale
        if spec.softcap is not None:
            scores = torch.tanh(scores / spec.softcap) * spec.softcap
        distance = torch.arange(len(q))[:, None] - torch.arange(len(k))
        hidden = (distance < 0) | (distance >= (spec.window or len(k)))
        weights = functional.softmax(scores.masked_fill(hidden, -torch.inf), dim=-1)
        return torch.einsum("hqk,khd->qhd", weights, v)

    return attend


def full_logits(model: CausalLM, token_ids: list[int], *, longest: int | None = None) -> torch.Tensor:
    """[T, V] logits of a whole sequence that may come to have ``longest`` tokens, computed without a cache."""
    with torch.inference_mode():
        hidden, _ = full_pass(model, token_ids, dense_attend(model), longest=longest)
        return model.logits(hidden)


def full_pass(
    model: CausalLM, token_ids: list[int], attend: Attend, *, longest: int | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Runs the model over a whole sequence, in the regime of its longest continuation."""
    regimes = model.regimes(np.array([longest or len(token_ids)], dtype=np.int32))
    of_rows = None if regimes is None else regimes.repeat(len(token_ids))
    return model(torch.tensor(token_ids), torch.arange(len(token_ids)), PassContext(attend=attend, rope_length=of_rows))


def greedy(model: CausalLM, prompt: list[int], num_tokens: int) -> list[int]:
    """Greedy continuation, computed without a cache; end-of-sequence tokens do not stop it."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(int(full_logits(model, tokens)[-1].argmax()))
    return tokens[len(prompt) :]
