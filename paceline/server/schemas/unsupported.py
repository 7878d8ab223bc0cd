"""Knows fields of other services that would change an answer and are not supported: their harmless values."""

from __future__ import annotations

from paceline.server.schemas.reading import Neutral

_NO_TOOLS = (
    "is not supported yet: this service neither offers tools to a model nor reads calls of them\n"
    "Leave them out, or write calls and their results as text."
)
TOOL_REASONS = dict.fromkeys(
    ("tools", "tool_choice", "functions", "function_call", "tool_calls", "tool_call_id"), _NO_TOOLS
)
OF_TEXT: Neutral = {
    # OpenAI's
    "audio": (),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "verbosity": ("medium",),
    # vLLM's
    "cache_salt": (),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "length_penalty": (1,),
    "logits_processors": (),
    "prompt_logprobs": (),
    "structured_outputs": (),
    "truncate_prompt_tokens": (-1,),
    "use_beam_search": (False,),
    # llama.cpp's, and of what is built on it
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "grammar": (),
    "json_schema": (),
    "mirostat": (0,),
    "n_predict": (-1,),
    "repeat_penalty": (1,),
    "tfs_z": (1,),
    "top_n_sigma": (-1,),
    "typical_p": (1,),
    "xtc_probability": (0,),
    # models and code of somebody else's
    "lora": (),
    "lora_path": (),
    "lora_request": (),
    "trust_remote_code": (False,),
}
OF_TEMPLATES: Neutral = {
    "chat_template": (),
    "chat_template_kwargs": (),
    "continue_final_message": (False,),
    "documents": (),
    "enable_thinking": (False,),
    "mm_processor_kwargs": (),
    "tools": (),
}
"""They change what a chat template writes."""
OF_PROMPTS: Neutral = {
    **OF_TEMPLATES,
    # Of one endpoint or another; those that an endpoint has itself are not asked here.
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": (),
    "input": (),
    "logprobs": (False, 0),
    "messages": (),
    "n": (1,),
    "parallel_tool_calls": (True, False),
    "prompt": (),
    "reasoning": ({"effort": "none"}, {"enabled": False}),
    "suffix": (),
    "thinking": ({"type": "disabled"}, False),
    "tool_choice": ("none", "auto"),
    "top_logprobs": (0,),
    "web_search_options": (),
}
IGNORED = frozenset(
    {
        "cache_prompt",
        "include_reasoning",
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        "request_id",
        "safety_identifier",
        "service_tier",
        "spaces_between_special_tokens",
        "store",
        "user",
    }
)
"""They change nothing in a text."""
