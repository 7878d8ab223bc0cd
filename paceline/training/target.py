"""Trains a small Llama-style target on dialogues: ``python -m paceline.training.target --data ... --out DIR``."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from paceline.training.data import Blocks, ChatFormat, TokenStream, encode, read_dialogues
from paceline.training.loop import LoopConfig, run, trainable
from paceline.training.tokenizer import save_tokenizer, train_tokenizer


def model_config(arguments: argparse.Namespace, *, vocab_size: int, bos: int, end: int, pad: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=arguments.hidden_size,
        intermediate_size=arguments.intermediate_size,
        num_hidden_layers=arguments.num_layers,
        num_attention_heads=arguments.num_heads,
        num_key_value_heads=arguments.num_kv_heads,
        head_dim=arguments.head_dim,
        max_position_embeddings=arguments.length,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=bos,
        eos_token_id=end,
        pad_token_id=pad,
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", required=True, help="JSON-lines files of dialogues")
    parser.add_argument("--held-out", nargs="*", default=[], help="files for the final loss")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="where the resumable checkpoint lies")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024, help="tokens per row, and the model's context")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--hidden-size", type=int, default=192)
    parser.add_argument("--intermediate-size", type=int, default=512)
    parser.add_argument("--num-layers", type=int, default=6)
    parser.add_argument("--num-heads", type=int, default=6)
    parser.add_argument("--num-kv-heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-compile", action="store_true")
    return parser.parse_args()


def cross_entropy(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss of tokens int64[B, T + 1], in nats."""
    with torch.autocast(tokens.device.type, torch.bfloat16):
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


@torch.inference_mode()
def held_out_loss(model: torch.nn.Module, stream: TokenStream, *, length: int, rows: int = 64) -> float:
    blocks = Blocks(stream, length=length, batch_size=min(rows, (len(stream.tokens) - 1) // length), seed=0)
    tokens, _ = blocks.batch(0)
    losses = [float(cross_entropy(model, part)) for part in tokens.split(8)]
    return sum(losses) / len(losses)


def main() -> None:
    arguments = parse()
    torch.manual_seed(arguments.seed)
    chat = ChatFormat()
    dialogues = read_dialogues(arguments.data)
    texts = [turn.text for dialogue in dialogues for turn in dialogue]
    tokenizer = train_tokenizer(texts, vocab_size=arguments.vocab_size, chat=chat)
    save_tokenizer(tokenizer, arguments.out, chat=chat, max_length=arguments.length)
    stream = encode(dialogues, tokenizer, chat)
    ids = {name: tokenizer.token_to_id(getattr(chat, name)) or 0 for name in ("bos", "end", "pad")}
    model = LlamaForCausalLM(model_config(arguments, vocab_size=tokenizer.get_vocab_size(), **ids))
    print(f"{trainable(model.parameters()):,} parameters, {len(stream.tokens):,} training tokens", flush=True)

    blocks = Blocks(stream, length=arguments.length, batch_size=arguments.batch_size, seed=arguments.seed)
    loss = cross_entropy if arguments.no_compile else torch.compile(cross_entropy)
    config = LoopConfig(steps=arguments.steps, tokens_per_step=arguments.batch_size * arguments.length)
    run(
        model,
        lambda step: loss(model, blocks.batch(step)[0]),
        config,
        checkpoint=arguments.work / "target.pt",
        report=lambda line: print(line, flush=True),
    )
    torch.nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(arguments.out)
    if arguments.held_out:
        unseen = encode(read_dialogues(arguments.held_out), tokenizer, chat)
        print(f"held-out loss {held_out_loss(model.float().eval(), unseen, length=arguments.length):.4f} nats/token")


if __name__ == "__main__":
    main()
