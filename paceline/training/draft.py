"""Distils a draft from a target: ``python -m paceline.training.draft --target DIR --data ... --out DIR``."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from paceline.training.data import Blocks, ChatFormat, TokenStream, encode, read_dialogues
from paceline.training.loop import LoopConfig, run, trainable


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, required=True, help="directory of the model to imitate")
    parser.add_argument("--data", nargs="+", required=True, help="JSON-lines files of dialogues")
    parser.add_argument("--held-out", nargs="*", default=[], help="files for the final acceptance")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="where the resumable checkpoint lies")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--hidden-size", type=int, default=80)
    parser.add_argument("--intermediate-size", type=int, default=208)
    parser.add_argument("--num-layers", type=int, default=2)
    parser.add_argument("--num-heads", type=int, default=5)
    parser.add_argument("--num-kv-heads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-compile", action="store_true")
    return parser.parse_args()


def draft_config(arguments: argparse.Namespace, target: LlamaConfig) -> LlamaConfig:
    """The draft shares the target's vocabulary, context and special tokens, and nothing else."""
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    shared = ("vocab_size", "max_position_embeddings", "rope_parameters", *special)
    return LlamaConfig(
        hidden_size=arguments.hidden_size,
        intermediate_size=arguments.intermediate_size,
        num_hidden_layers=arguments.num_layers,
        num_attention_heads=arguments.num_heads,
        num_key_value_heads=arguments.num_kv_heads,
        tie_word_embeddings=True,
        **{name: getattr(target, name) for name in shared},
    )


def _log_probs(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """fp32 log-probabilities [B * T, V] after each of tokens int64[B, T]."""
    with torch.autocast(tokens.device.type, torch.bfloat16):
        logits = model(input_ids=tokens, use_cache=False).logits
    return functional.log_softmax(logits.flatten(0, 1).float(), dim=-1)


def divergence(draft: torch.nn.Module, target: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Mean KL(target || draft) over tokens int64[B, T + 1], in nats."""
    with torch.no_grad():
        wanted = _log_probs(target, tokens[:, :-1])
    return functional.kl_div(_log_probs(draft, tokens[:, :-1]), wanted, log_target=True, reduction="batchmean")


@torch.inference_mode()
def agreement(
    draft: torch.nn.Module, target: torch.nn.Module, stream: TokenStream, *, length: int, rows: int = 32
) -> dict[str, float]:
    """On an assistant's held-out tokens, teacher-forced: how often the greedy choices agree, and sum(min(p, q))."""
    blocks = Blocks(stream, length=length, batch_size=min(rows, (len(stream.tokens) - 1) // length), seed=0)
    tokens, reply = blocks.batch(0)
    equal, overlap, count = 0.0, 0.0, 0
    for part, wanted in zip(tokens.split(8), reply.split(8), strict=True):
        chosen = wanted[:, 1:].flatten()
        p, q = (_log_probs(model, part[:, :-1])[chosen] for model in (target, draft))
        equal += float((p.argmax(-1) == q.argmax(-1)).sum())
        overlap += float(torch.minimum(p.exp(), q.exp()).sum())
        count += int(chosen.sum())
    return {"greedy_agreement": equal / count, "overlap": overlap / count}


def main() -> None:
    arguments = parse()
    torch.manual_seed(arguments.seed)
    target = LlamaForCausalLM.from_pretrained(arguments.target, dtype=torch.float32).eval().requires_grad_(False)
    tokenizer = Tokenizer.from_file(str(arguments.target / "tokenizer.json"))
    chat = ChatFormat()
    stream = encode(read_dialogues(arguments.data), tokenizer, chat)
    draft = LlamaForCausalLM(draft_config(arguments, target.config))
    print(f"{trainable(draft.parameters()):,} parameters, {len(stream.tokens):,} training tokens", flush=True)

    blocks = Blocks(stream, length=arguments.length, batch_size=arguments.batch_size, seed=arguments.seed)
    loss = divergence if arguments.no_compile else torch.compile(divergence)
    run(
        draft,
        lambda step: loss(draft, target, blocks.batch(step)[0]),
        LoopConfig(steps=arguments.steps, tokens_per_step=arguments.batch_size * arguments.length),
        checkpoint=arguments.work / "draft.pt",
        report=lambda line: print(line, flush=True),
    )
    torch.nn.Module.to(draft, torch.bfloat16)
    draft.save_pretrained(arguments.out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(arguments.target / name, arguments.out / name)
    if arguments.held_out:
        unseen = encode(read_dialogues(arguments.held_out), tokenizer, chat)
        print(agreement(draft.float().eval(), target, unseen, length=arguments.length))


if __name__ == "__main__":
    main()
