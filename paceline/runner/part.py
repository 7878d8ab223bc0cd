"""Names what graphs and executors need of one model: its layers, and the groups that cache for them."""

from __future__ import annotations

from typing import Protocol

from paceline.attention import LayerMap
from paceline.cache.group import KVGroup
from paceline.models import CausalLM
from paceline.runner.executor import Executor
from paceline.runner.features import KeptFeatures


class GraphModel(Protocol):
    """A model that a graph may contain."""

    model: CausalLM
    layers: LayerMap
    groups: list[KVGroup]
    executor: Executor
    kept: KeptFeatures | None
    """What every pass leaves behind for a drafter."""
