"""Probes of the machine: the fastest way counts, of the model's kind of products, in pages like its weights'."""

from __future__ import annotations

import ctypes
import time

import pytest
import torch
from torch import nn

from paceline.benchmark import probes
from paceline.benchmark.probes import MachineProbes, products
from paceline.benchmark.weights import main_kind, main_pages
from paceline.core import pages
from paceline.core.errors import ConfigError
from paceline.kernels.native.packing import pack
from paceline.layers.linear import Linear

CPU = torch.device("cpu")
HUGE_SMAPS = """7f00-8f00 rw-p 00000000 00:00 0
Rss:                 100 kB
AnonHugePages:        75 kB
VmFlags: rd wr
8f00-9f00 rw-p 00000000 00:00 0
Rss:                  40 kB
AnonHugePages:         0 kB
"""


@pytest.mark.parametrize("kind", list(products))
def test_every_kind_is_probed(kind, monkeypatch):
    monkeypatch.setattr(probes, "MATRIX_SIZE", 32)
    found = MachineProbes(CPU, kind, seconds=0.0).read(2**20)
    assert found.bytes_per_second > 0
    assert found.flops_per_second > 0
    assert (found.kind, found.num_bytes, found.num_threads) == (kind, 2**20, torch.get_num_threads())
    assert {found.reader, found.multiplier} <= {probes.TORCH, probes.NATIVE}


@pytest.mark.parametrize("where", list(probes.buffers))
def test_memory_of_every_kind_of_page_is_read(where, monkeypatch):
    monkeypatch.setattr(probes, "MATRIX_SIZE", 32)
    probe = MachineProbes(CPU, "fp32", pages=where, seconds=0.0)
    assert probe.read(3 * 2**20 + 77).num_bytes == 3 * 2**20
    assert probe.read(None).pages == where
    assert float(probe._memory.sum()) == probe._memory.numel()


def test_the_fastest_way_counts(monkeypatch):
    """A slow reader beside a fast one changes nothing but the name; alone it would be what the machine can do."""
    monkeypatch.setattr(probes, "MATRIX_SIZE", 32)
    pause = 0.02
    both = {"slow": lambda: time.sleep(pause), "fast": lambda: None}
    monkeypatch.setattr(probes, "_readers", lambda _memory: both)
    found = MachineProbes(CPU, "fp32", seconds=0.0).read(2**20)
    assert found.reader == "fast"
    del both["fast"]
    alone = MachineProbes(CPU, "fp32", seconds=0.0).read(2**20)
    assert alone.reader == "slow"
    assert alone.bytes_per_second <= 2**20 / pause


def test_pages_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="unknown pages 'large'"):
        MachineProbes(CPU, "fp32", pages="large")
    with pytest.raises(ConfigError, match="--probe-pages"):
        MachineProbes(torch.device("meta"), "fp32", pages="huge")


@pytest.mark.parametrize("huge", [True, False])
def test_memory_begins_at_a_huge_page_and_can_be_written(huge):
    for size in (1, 4096, 5 * 2**20 + 3):
        memory = pages.allocate(size, huge=huge)
        assert len(memory) == size
        assert not any(memory[:: max(1, size // 100)])
        memory[size - 1] = 7
        assert ctypes.addressof(ctypes.c_char.from_buffer(memory)) % pages.HUGE == 0
        share = pages.huge_share(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
        assert share is None or (0 <= share <= 1 and (huge or share == 0))


def test_the_share_of_huge_pages_is_the_mappings_own(tmp_path):
    smaps = tmp_path / "smaps"
    smaps.write_text(HUGE_SMAPS)
    assert pages.huge_share(0x7F80, str(smaps)) == 0.75
    assert pages.huge_share(0x8F00, str(smaps)) == 0.0
    assert pages.huge_share(0x9F00, str(smaps)) is None
    assert pages.huge_share(0x7F80, str(tmp_path / "missing")) is None


def model(*shapes: tuple[int, int]) -> nn.Sequential:
    return nn.Sequential(nn.Embedding(500, 64), *(Linear(nn.Parameter(torch.randn(shape))) for shape in shapes))


def test_a_models_kind_is_that_of_most_of_its_linears_bytes():
    found = model((32, 64), (64, 32))
    assert main_kind(found) == "fp32"
    assert main_pages(found) in ("default", "huge")
    found[1].packed = pack(torch.randn(320, 640), "int8")
    assert main_kind(found) == "int8"
    found[1].packed = pack(torch.randn(16, 64), "int8")  # the other linear, not the embedding, is larger
    assert main_kind(found) == "fp32"


def test_weights_in_huge_pages_ask_for_a_probe_in_huge_pages(monkeypatch):
    found = model((8, 8), (64, 32))
    shares = {found[2].weight.data_ptr(): 0.9}
    monkeypatch.setattr("paceline.benchmark.weights.huge_share", lambda address: shares.get(address, 0.0))
    assert main_pages(found) == "huge"
    shares.clear()
    assert main_pages(found) == "default"
