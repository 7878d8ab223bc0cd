"""What is asked in a benchmark: dialogues, made to exact lengths or read from files of prompts."""

from paceline.benchmark.workloads.dialogue import ChatDialogue, Dialogue, TokenDialogue, fitted
from paceline.benchmark.workloads.files import TextPrompt, prompt_formats, read_prompts
from paceline.benchmark.workloads.synthetic import plain_token_ids, shared_prefix, synthetic

__all__ = [
    "ChatDialogue",
    "Dialogue",
    "TextPrompt",
    "TokenDialogue",
    "fitted",
    "plain_token_ids",
    "prompt_formats",
    "read_prompts",
    "shared_prefix",
    "synthetic",
]
