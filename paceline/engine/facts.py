"""What is fixed about a loaded engine, for whoever shows or serves it; knows nothing of how it is run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """How an engine runs, once every "auto" is resolved."""

    model_name: str
    model_path: str
    """The directory of the target's files, the tokenizer's among them."""
    max_model_len: int
    """The longest prompt and answer together, in tokens."""
    vocab_size: int
    dtype: str
    """Of the target's weights."""
    device: str
    num_threads: int
    """That compute."""
    kv_cache_dtype: str
    cache: str
    """The cache kind."""
    num_pages: int
    """Of the target's K/V cache, in each of its layer groups."""
    page_size: int
    """Tokens per page."""
    max_num_seqs: int
    scheduling_policy: str
    speculative_method: str | None
    num_speculative_tokens: int
    """The deepest draft; 0 without speculation."""
    context_overflow: str = "error"
    """What becomes of a call that the context cannot hold, unless it says otherwise."""
    verifier: str | None
