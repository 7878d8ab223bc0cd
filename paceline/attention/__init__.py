"""How rows attend to cached K/V: a protocol and its backends."""

from paceline.attention.base import AttentionBackend, LayerMap, attention_backends
from paceline.attention.native import NativeAttention
from paceline.attention.reference import ReferenceAttention
from paceline.attention.sdpa import SdpaAttention

__all__ = [
    "AttentionBackend",
    "LayerMap",
    "NativeAttention",
    "ReferenceAttention",
    "SdpaAttention",
    "attention_backends",
]
