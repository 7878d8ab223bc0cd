"""Knows the two shapes that speed is compared on, and writes them as Hugging Face directories with random weights."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from paceline.training.data import ChatFormat
from paceline.training.tokenizer import save_tokenizer, train_tokenizer

LONGEST = 4096
SEED = 1


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama's sizes; embedding and output are two matrices."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab_size: int

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def num_read(self) -> int:
        """Weights that a step reads: all but the embedding, of which it reads a row per token."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate) + self.vocab_size * self.hidden

    @property
    def num_parameters(self) -> int:
        norms = (2 * self.layers + 1) * self.hidden
        return self.num_read + self.vocab_size * self.hidden + norms

    def config(self) -> dict[str, object]:
        """As transformers writes it."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": LONGEST,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "torch_dtype": "bfloat16",
            "vocab_size": self.vocab_size,
        }


SHAPES = {
    "S": Shape(hidden=384, layers=8, heads=6, kv_heads=2, intermediate=1536, vocab_size=8192),
    "M": Shape(hidden=1024, layers=24, heads=16, kv_heads=4, intermediate=4864, vocab_size=32000),
}


def matrices(shape: Shape) -> Iterator[tuple[str, int, int]]:
    """(name, out, in) of everything but norms."""
    kv = shape.kv_heads * shape.head_dim
    for layer in range(shape.layers):
        place = f"model.layers.{layer}"
        yield f"{place}.self_attn.q_proj.weight", shape.hidden, shape.hidden
        yield f"{place}.self_attn.k_proj.weight", kv, shape.hidden
        yield f"{place}.self_attn.v_proj.weight", kv, shape.hidden
        yield f"{place}.self_attn.o_proj.weight", shape.hidden, shape.hidden
        yield f"{place}.mlp.gate_proj.weight", shape.intermediate, shape.hidden
        yield f"{place}.mlp.up_proj.weight", shape.intermediate, shape.hidden
        yield f"{place}.mlp.down_proj.weight", shape.hidden, shape.intermediate
    yield "model.embed_tokens.weight", shape.vocab_size, shape.hidden
    yield "lm_head.weight", shape.vocab_size, shape.hidden


def _spread(shape: Shape, name: str, columns: int) -> float:
    """The standard deviation of a matrix."""
    if name.startswith("model.embed_tokens"):
        return 1.0
    joins = name.endswith(("o_proj.weight", "down_proj.weight"))  # the residual stream
    return 1 / math.sqrt(columns * (2 * shape.layers if joins else 1))


def norms(shape: Shape) -> Iterator[str]:
    for layer in range(shape.layers):
        yield f"model.layers.{layer}.input_layernorm.weight"
        yield f"model.layers.{layer}.post_attention_layernorm.weight"
    yield "model.norm.weight"


def write(shape: Shape, directory: Path) -> Path:
    """The shape's directory, written unless it is there.

    Stored in bfloat16, float32 and bfloat16 engines read the very same numbers. Embeddings have unit variance, and what
    layers add to them is scaled down with their number, as trained models are begun: else noise of quantisation grows
    from layer to layer, and no engine's choices with 4 bits would be another's.
    """
    about = directory / "shape.json"
    wanted = json.dumps(asdict(shape) | {"seed": SEED}) + "\n"
    if about.exists() and about.read_text(encoding="utf-8") == wanted:
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    random = torch.Generator().manual_seed(SEED)
    weights = {
        name: (torch.randn(rows, columns, generator=random) * _spread(shape, name, columns)).bfloat16()
        for name, rows, columns in matrices(shape)
    }
    weights |= {name: torch.ones(shape.hidden, dtype=torch.bfloat16) for name in norms(shape)}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(shape.config(), indent=1) + "\n", encoding="utf-8")
    # Nothing is tokenised; but some engines do not start without a tokenizer.
    chat = ChatFormat()
    save_tokenizer(train_tokenizer([], vocab_size=300, chat=chat), directory, chat=chat, max_length=LONGEST)
    about.write_text(wanted, encoding="utf-8")
    return directory
