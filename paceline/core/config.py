"""Engine options, resolved once and never changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from paceline.core.errors import ConfigError, shown
from paceline.core.settings import About, check_fields
from paceline.core.unknown_fields import instead

MAX_INT32 = 2**31 - 1
_PAGES = "num_blocks, the pages of the K/V cache, or leave it out: by default it takes what memory allows"
ELSEWHERE = {
    **dict.fromkeys(("gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override"), _PAGES),
    **dict.fromkeys(("speculative_model", "num_speculative_tokens"), "speculative_config"),
    **dict.fromkeys(("max_seq_len_to_capture", "n_ctx", "ctx_size"), "max_model_len"),
    **dict.fromkeys(("n_batch", "max_num_partial_prefills"), "max_num_batched_tokens"),
    **dict.fromkeys(("n_threads", "num_threads"), "the environment variable OMP_NUM_THREADS"),
    "load_in_8bit": 'quantization="int8"',
    "load_in_4bit": 'quantization="int4"',
    "torch_dtype": "dtype",
    "device_map": "device",
    "draft_model": "model",
}
"""Options of vLLM, llama.cpp and transformers -> what means the same."""


def _from_mapping(cls: type[Any], values: Mapping[str, Any], kind: str) -> Any:
    known = {item.name for item in fields(cls)}
    unknown = sorted(set(values) - known, key=str)
    if unknown:
        fix = instead(str(unknown[0]), known, ELSEWHERE)
        raise ConfigError(f"unknown {kind} option {shown(unknown[0])}\n{fix}")
    return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculativeConfig:
    """How drafts are made and verified."""

    method: Annotated[
        str,
        About(
            "How drafts are made: draft_model; tli or slem, of another tokenizer; ngram, suffix, ...",
            flag="speculative_method",
        ),
    ]
    model: Annotated[str | None, About("Directory or Hub id of the draft model.", flag="draft")] = None
    revision: Annotated[
        str | None,
        About("Branch, tag or commit of the draft model on the Hub; by default its main one.", flag="draft_revision"),
    ] = None
    draft_quantization: Annotated[
        str | None, About("The draft model's quantization: int8, int4 or none; by default the target's.")
    ] = None
    num_speculative_tokens: Annotated[int, About("Draft tokens per step.", low=1, high=64)] = 4
    draft_top_k: Annotated[
        int, About("Draft tokens per level: 1 drafts chains, more drafts trees of the likeliest paths.", low=1, high=16)
    ] = 1
    draft_max_nodes: Annotated[
        int | None, About("Most tokens of a drafted tree that are verified, the likeliest; by default all.", low=1)
    ] = None
    composite_copies: Annotated[str, About("composite: the method that copies, where there is something to copy.")] = (
        "suffix"
    )
    composite_drafts: Annotated[str, About("composite: the method with a model that drafts elsewhere.")] = "draft_model"
    early_exit_layers: Annotated[
        int | None, About("early_exit: the target's layers that draft; by default half of them.", low=1)
    ] = None
    verifier: Annotated[
        str,
        About("match never changes the text; token, block keep more of a chain; tree, traversal of a drawn tree."),
    ] = "match"
    prompt_lookup_max: Annotated[int, About("ngram: longest n-gram that is looked up.", low=1, high=32)] = 4
    prompt_lookup_min: Annotated[int, About("ngram: shortest n-gram that is looked up.", low=1, high=32)] = 2
    suffix_decoding_max_tree_depth: Annotated[
        int, About("suffix: most tokens that a match and its draft have together.", low=2, high=256)
    ] = 24
    suffix_decoding_max_cached_requests: Annotated[
        int, About("suffix: finished answers that drafts are taken from; 0: none.", low=0, high=1_000_000)
    ] = 10_000
    suffix_decoding_max_spec_factor: Annotated[
        float, About("suffix: draft tokens per token of the match.", above=0, high=64)
    ] = 1.0
    suffix_decoding_min_token_prob: Annotated[
        float, About("suffix: least part of the occurrences that went on as the draft does.", low=0, high=1)
    ] = 0.1
    token_recycling_nodes: Annotated[int, About("token_recycling: most nodes of a draft.", low=1, high=1024)] = 8
    token_recycling_successors: Annotated[
        int, About("token_recycling: likeliest next tokens that are kept of each token.", low=1, high=64)
    ] = 8
    lookahead_window: Annotated[int, About("lookahead: n-grams that are guessed at a time.", low=1, high=64)] = 3
    lookahead_ngram: Annotated[int, About("lookahead: tokens of each n-gram.", low=2, high=16)] = 3
    lookahead_guesses: Annotated[int, About("lookahead: n-grams that are tried at a time.", low=1, high=64)] = 3

    def __post_init__(self) -> None:
        check_fields(self)
        if self.prompt_lookup_max < self.prompt_lookup_min:
            raise ConfigError(
                f"prompt_lookup_max must be at least prompt_lookup_min ({self.prompt_lookup_min}), "
                f"got {self.prompt_lookup_max}\nSet prompt_lookup_max to {self.prompt_lookup_min}."
            )

    @classmethod
    def of(cls, values: Mapping[str, Any] | SpeculativeConfig | None) -> SpeculativeConfig | None:
        if values is None or isinstance(values, SpeculativeConfig):
            return values
        if not isinstance(values, Mapping) or not {"method", "model"} & set(values):
            raise ConfigError('speculative_config needs a "method" or a "model"\nFor example {"method": "ngram"}.')
        if values.get("method") is None:
            values = {**values, "method": "draft_model"}
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
        config: SpeculativeConfig = _from_mapping(cls, plain, "speculative_config")
        return config


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Options of one engine; names follow vLLM's."""

    dtype: Annotated[
        str,
        About("auto, float32, bfloat16, float16 or float64; auto is the checkpoint's, float32 if torch computes."),
    ] = "auto"
    quantization: Annotated[
        str | None,
        About("int8 or int4: weights are quantised while they are read; by default as the checkpoint has them."),
    ] = None
    quantization_group_size: Annotated[
        int, About("int4: inputs that share a scale, 32, 64 or 128.", low=32, high=128)
    ] = 32
    device: Annotated[str, About("auto, cpu or cuda.")] = "auto"
    kv_cache_dtype: Annotated[str, About("Type of the K/V cache; auto is the model's.")] = "auto"
    cache: Annotated[
        str, About("paged; static, one page of the whole context per sequence; or none, which recomputes.")
    ] = "paged"
    block_size: Annotated[int, About("Tokens per page.", low=1, high=4096)] = 16
    num_blocks: Annotated[
        int | None, About("Pages of the K/V cache; by default what memory allows.", low=1, high=MAX_INT32)
    ] = None
    max_model_len: Annotated[
        int | None,
        About("Longest prompt and answer together, in tokens; by default the model's context.", low=2, high=MAX_INT32),
    ] = None
    context_overflow: Annotated[
        str, About("What becomes of a call that the context cannot hold: error, truncate (the prompt) or slide.")
    ] = "error"
    max_num_seqs: Annotated[int, About("Answers generated at the same time.", low=1, high=4096)] = 64
    max_num_batched_tokens: Annotated[int, About("Tokens computed per step.", low=1, high=MAX_INT32)] = 2048
    prefill_chunk_seconds: Annotated[
        float,
        About("Seconds that prompts may add to a step while anybody decodes; 0 is no bound.", low=0, high=60),
    ] = 0.05
    num_scheduler_steps: Annotated[
        int | None,
        About(
            "Rounds that a step may have, each a token or a draft and its verification; by default what takes 8 ms.",
            low=1,
            high=64,
        ),
    ] = None
    enforce_eager: Annotated[
        bool, About("Compute every step pass by pass, none as one recorded call; the texts are the same.")
    ] = False
    enable_prefix_caching: Annotated[bool, About("Keep the K/V of shared prompt beginnings.")] = True
    prefix_cache_max_entries: Annotated[
        int | None,
        About("Most pages kept for shared prompt beginnings; by default all that fit.", low=1, high=MAX_INT32),
    ] = None
    scheduling_policy: Annotated[str, About("Who is served first: fcfs, priority or fair.")] = "fcfs"
    attention_backend: Annotated[str, About("auto, sdpa, native or reference.")] = "auto"
    model_impl: Annotated[
        str, About("Who computes the model: native, one call of compiled kernels per step; torch; or auto.")
    ] = "auto"
    numerics: Annotated[
        str, About("exact: no bit of a row depends on other rows; fast: prompts may use torch's matrix products.")
    ] = "exact"
    seed: Annotated[int, About("Requests without a seed draw theirs from this one.", low=-(2**63), high=2**63 - 1)] = 0
    revision: Annotated[str | None, About("Branch, tag or commit of a model of the Hub; by default its main one.")] = (
        None
    )
    speculative: SpeculativeConfig | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def of(cls, **options: Any) -> EngineConfig:
        """Builds the config from keyword options, naming the first unknown one."""
        config: EngineConfig = _from_mapping(cls, options, "engine")
        return config
