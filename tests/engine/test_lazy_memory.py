"""The K/V cache takes memory page by page as texts come to need it, however much it may come to hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from paceline.cache import DenseStore, PageAllocator
from paceline.core.layer import LayerSpec
from paceline.core.machine import memory
from paceline.core.pages import HUGE, allocate
from tests.support.calls import assert_idle, greedy, make
from tests.support.checkpoints import tiny_llama

MIB = 2**20
LONG = 1_000_000
SPEC = LayerSpec(num_heads=4, num_kv_heads=2, head_dim=8, scale=1.0)
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def resident() -> int:
    """Bytes."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024


@linux
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_long_context_costs_what_its_texts_take(dtype, tmp_path):
    tiny_llama(tmp_path, max_positions=LONG)
    before = resident()
    llm = make(tmp_path, dtype=dtype)
    reserved = llm.stats()["memory_bytes"]["kv_target"]
    if reserved < 900 * MIB:
        pytest.skip(f"40 % of free memory is {reserved / MIB:.0f} MiB, too little to tell")
    assert llm.max_model_len == LONG
    llm.generate([[5, 6, 7]] * 8, greedy())
    assert resident() - before < reserved / 2
    assert resident() - before < 500 * MIB  # the angles of a million positions are most of it
    assert_idle(llm.engine)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("num_pages", [3, 5000])
def test_pages_begin_as_zeros(dtype, num_pages):
    """Small caches and those for which the system is asked for huge pages."""
    store = DenseStore([SPEC], num_pages=num_pages, page_size=16, dtype=dtype, device="cpu")
    assert (store.num_bytes // 2 >= HUGE) == (num_pages > 3)
    k, v = store.pools(0)
    assert k.shape == v.shape == (num_pages, 2, 16, 8)
    assert k.dtype == v.dtype == dtype
    assert not k.any() and not v.any()  # noqa: PT018
    rows = torch.ones(1, 2, 8)
    store.write(0, rows, 2 * rows, torch.tensor([num_pages - 1]), torch.tensor([15]))
    assert (int(k.count_nonzero()), int(v.count_nonzero())) == (16, 16)
    assert float(v[-1, 1, 15, 7]) == 2.0


def test_pages_that_were_used_go_first():
    pages = PageAllocator(10**8)
    first = pages.allocate(3)
    assert first == [1, 2, 3]
    pages.release([2])
    assert pages.allocate(2) == [2, 4]
    assert pages.num_free == 10**8 - 4
    assert pages.allocate(10**8) is None
    pages.release([1, 3, 2, 4])
    assert pages.num_free == 10**8


def test_what_the_system_does_not_give_is_a_memory_error():
    with pytest.raises(MemoryError, match="no room for"):
        allocate(2**60, huge=True)


LIMITED = """
import resource, sys
from pathlib import Path
from paceline import LLM, ConfigError
size = int(next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmSize")).split()[1])
resource.setrlimit(resource.RLIMIT_AS, (size * 1024 + 2**29,) * 2)
try:
    LLM(sys.argv[1], device="cpu")
except ConfigError as error:
    print(error)
"""


@linux
@pytest.mark.skipif(memory().available < 6 * 2**30, reason="40 % of free memory may be below the limit")
def test_a_limit_on_the_process_is_told_with_what_to_change(tmp_path):
    tiny_llama(tmp_path, max_positions=LONG)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path], capture_output=True, text=True, timeout=100, check=True
    )
    cause, advice = done.stdout.strip().split("\n")
    assert cause.startswith("the system gives no")
    assert "num_blocks to at most" in advice
