"""Engines compute on no more threads than a container gives the time of, unless somebody says how many."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from paceline.core import machine
from paceline.engine.threads import VARIABLES, choose_threads, num_threads
from tests.core.test_machine import PLAIN, lay
from tests.support.calls import greedy, make
from tests.support.checkpoints import tiny_llama
from tests.support.native import needs_library

ONE_OF_TWO = {
    "version 2": {"sys/fs/cgroup/box/cpu.max": "100000 100000"},
    "version 1": {
        "proc/self/cgroup": "3:cpu,cpuacct:/box\n",
        "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "100000",
        "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000",
    },
}


@pytest.fixture(autouse=True)
def two_threads(monkeypatch) -> Iterator[None]:
    """As torch has them on two cores where nobody says otherwise."""
    before = torch.get_num_threads()
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(machine, "num_cores", lambda: 2)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_llama(path)
    return path


def started() -> int:
    return len(os.listdir("/proc/self/task"))


@needs_library
@pytest.mark.skipif(sys.platform != "linux", reason="reads files of Linux")
@pytest.mark.parametrize("version", ONE_OF_TWO)
def test_a_quota_of_one_core_means_one_thread(version, model, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "ROOT", lay(tmp_path, PLAIN | ONE_OF_TWO[version]))
    llm = make(model, dtype="float32", model_impl="native")
    assert llm.facts.num_threads == torch.get_num_threads() == 1
    before = started()
    llm.generate([[5, 6, 7]] * 4, greedy())
    assert started() == before  # the kernels start none either


def test_without_a_quota_all_are_used(model, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "ROOT", lay(tmp_path, PLAIN))
    assert make(model, dtype="float32").facts.num_threads == 2


def test_a_process_bound_to_one_core_uses_one(model, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "ROOT", lay(tmp_path, PLAIN))
    monkeypatch.setattr(machine, "num_cores", lambda: 1)
    assert make(model, dtype="float32").facts.num_threads == 1


@pytest.mark.parametrize("name", VARIABLES)
def test_who_sets_a_variable_is_believed(name, model, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "ROOT", lay(tmp_path, PLAIN | ONE_OF_TWO["version 2"]))
    monkeypatch.setenv(name, "2")
    assert make(model, dtype="float32").facts.num_threads == 2


def test_threads_that_were_chosen_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "ROOT", lay(tmp_path, PLAIN | ONE_OF_TWO["version 2"]))
    monkeypatch.setenv(VARIABLES[0], "")  # so that it is restored
    assert num_threads() == 1
    choose_threads(3)
    assert num_threads() == 3
