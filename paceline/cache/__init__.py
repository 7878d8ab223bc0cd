"""KV memory: layer groups, pages, stores and prefix indexes; knows slots and pages, not tokens' meaning."""

from paceline.cache.group import KVGroup
from paceline.cache.kinds import CacheKind, cache_kinds
from paceline.cache.manager import CacheManager
from paceline.cache.pages import PageAllocator
from paceline.cache.prefix import PrefixIndex, prefix_indexes
from paceline.cache.stores import DenseStore, KVStore, store_dtypes

__all__ = [
    "CacheKind",
    "CacheManager",
    "DenseStore",
    "KVGroup",
    "KVStore",
    "PageAllocator",
    "PrefixIndex",
    "cache_kinds",
    "prefix_indexes",
    "store_dtypes",
]
