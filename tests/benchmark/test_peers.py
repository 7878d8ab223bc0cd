"""Other engines beside ours: a real one in the current environment, and everything that can keep one from running."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from paceline.benchmark.accuracy import write_greedily
from paceline.benchmark.measure import measure
from paceline.benchmark.peers import Missing, Peer, PeerError, PeerProcess, ReadyPeer, peers, prepare
from paceline.benchmark.peers.catalogue import TRANSFORMERS
from paceline.benchmark.peers.compare import Task, agreement
from paceline.benchmark.peers.environment import environment_python
from paceline.benchmark.schedule import TrialPlan
from paceline.benchmark.trial import Experiment, TrialResult, Variant
from paceline.cli.main import run
from tests.benchmark.fakes import FakeProbes, raw_file
from tests.support.calls import random_prompt

PYTHON = Path(sys.executable)
NOTHING = {"environment": "none", "requirements": ()}
ADAPTER = """
import os, time
class Engine:
    versions = {"engine": "1"}
    def __init__(self, settings):
        self.settings = settings
    def generate(self, prompts, max_tokens):
        print("noise on the standard output")
        time.sleep(self.settings.get("seconds", 0))
        if self.settings.get("die"):
            os._exit(3)
        answers = [[self.settings["token"]] * (max_tokens + self.settings.get("more", 0)) for _ in prompts]
        return answers, [(time.perf_counter(), max_tokens)]
def load(model, threads, settings):
    if settings.get("broken"):
        raise RuntimeError("no such kernel")
    return Engine(settings)
"""


@pytest.fixture
def adapter(tmp_path):
    path = tmp_path / "adapter.py"
    path.write_text(ADAPTER)
    return path


def task(draft=None):
    return Task(model="m", draft=draft, prompts=[[1, 2], [3]], expected=[[7] * 4] * 2, threads=1)


class Listed(Peer):
    """A peer whose settings are a list instead of a product."""

    __slots__ = ()
    listed: list[dict] = []

    def settings(self, draft):
        return self.listed


def with_settings(adapter, *settings):
    kind = type("Some", (Listed,), {"listed": list(settings), "__slots__": ()})
    return prepare("it", kind(adapter=adapter, **NOTHING), task(), start=lambda: PYTHON)


def test_the_fastest_setting_that_agrees_is_chosen(adapter):
    slow, fast = {"token": 7, "seconds": 0.2}, {"token": 7, "seconds": 0.01}
    wrong, broken, long = {"token": 8}, {"token": 7, "broken": True}, {"token": 7, "more": 1}
    found = with_settings(adapter, slow, wrong, fast, broken, long)
    assert isinstance(found, ReadyPeer)
    with found.process:
        assert found.best.settings == fast
        assert found.versions == {"engine": "1"}
        reasons = [one.reason for one in found.tried]
        assert reasons[0] is reasons[2] is None
        assert "0% of its greedy choices" in reasons[1]
        assert reasons[3] == "RuntimeError: no such kernel"
        assert "gave [2, 2" in reasons[4]
        sample = found.side([[1]], 4).run(0)
        assert sample.figures["num_tokens"] == 4


def test_a_peer_that_cannot_run_is_reported_with_the_reason(adapter, tmp_path):
    assert with_settings(adapter, {"token": 7, "broken": True}).reason.endswith("no such kernel")
    assert "it ended" in with_settings(adapter, {"token": 7, "die": True}).reason
    assert "0%" in with_settings(adapter, {"token": 8}).reason
    peer = Peer(adapter=adapter, **NOTHING)
    gone = prepare("it", peer, task(), start=lambda: tmp_path / "missing")
    assert isinstance(gone, Missing)
    assert "could not be started" in gone.reason
    undrafted = prepare("it", Peer(adapter=adapter, **NOTHING, needs_draft=True), task(), start=lambda: PYTHON)
    assert "draft model" in undrafted.reason


def test_an_environment_that_cannot_be_made_says_why(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho first >&2; echo 'no venv here' >&2; exit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(PeerError, match="could not be made: no venv here"):
        environment_python(tmp_path, Peer(adapter=tmp_path, environment="peer", requirements=("x",)))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    with pytest.raises(PeerError, match="could not be made"):
        environment_python(tmp_path, Peer(adapter=tmp_path, environment="peer", requirements=("x",)))


def test_the_command_reports_who_is_missing(pair, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    one = {"dtype": ("float32",), "prompt_lookup_num_tokens": (4,)}
    monkeypatch.setitem(peers._parts, "lookup", Peer(adapter=TRANSFORMERS, **NOTHING, sweep=one))
    monkeypatch.setitem(peers._parts, "nobody", Peer(adapter=tmp_path / "none.py", **NOTHING))
    options = ["--input-lens", "8", "--output-lens", "6", "--pairs", "1", "--warmup", "0", "--threads", "1"]
    command = ["bench", "peers", pair[0], "--device", "cpu", "--max-num-seqs", "4", *options, "--this-environment"]
    assert run([*command, "--engines", "lookup,nobody", "--json", "out.json"]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    ((name, point),) = found["points"].items()
    assert name == "lookup, batch 1, input 8, output 6"
    assert point["parameters"]["agreement"] > 0.9
    assert point["sides"]["control"]["figures"]["tokens_per_second"]["median"] > 0
    assert found["notes"][0].startswith("nobody is missing: ")
    assert found["notes"][0] in capsys.readouterr().out.replace("\n", " ")
    assert run([*command, "--engines", "abacus"]) == 2
    assert "unknown peer 'abacus'" in capsys.readouterr().err


def test_agreement_counts_to_the_first_difference():
    assert agreement([[1, 2, 3, 4]], [[1, 2, 3, 4]]) == 1
    assert agreement([[1, 9, 3, 4], [5, 6, 7, 8]], [[1, 2, 3, 4], [5, 6, 7, 8]]) == 5 / 8


def test_sweeps_are_every_combination():
    assert len(peers["transformers-prompt-lookup"].settings(None)) == 4
    assert peers["transformers-assisted"].settings("draft")[0] == {"dtype": "bfloat16", "assistant": "draft"}
    assert peers["llama.cpp-q8_0"].settings(None) == [{"type": "q8_0", "flash_attn": on} for on in (True, False)]


def test_transformers_gives_our_greedy_answers_and_is_measured_beside_us(pair, llm, tmp_path):
    prompts = [random_prompt(seed, 9) for seed in (1, 2)]
    expected = [one.answer for one in write_greedily(llm, prompts, 8)]
    asked = Task(model=pair[0], draft=pair[1], prompts=prompts, expected=expected, threads=1)
    with PeerProcess(PYTHON, TRANSFORMERS) as process:
        for settings in ({}, {"assistant": pair[1]}, {"prompt_lookup_num_tokens": 3}):
            process.load(asked.model, threads=1, settings={"dtype": "float32", **settings})
            answers = process.generate(prompts, 8)
            assert answers.token_ids == expected
            counts = [count for _, count in answers.steps]
            assert counts == sorted(counts)
            assert counts[-1] == (8 if not settings else 16)
        peer = ReadyPeer("transformers", process, None, {})
        ours = Variant("ours", lambda _: TrialResult({"tokens_per_second": len(write_greedily(llm, prompts, 8)) / 1.0}))
        one = Experiment(
            name="peers",
            parameters={},
            subject=ours,
            control=peer.side(prompts, 8),
            metric="tokens_per_second",
            lower_is_better=False,
        )
        plan = TrialPlan(num_pairs=1, num_warmup=0)
        record = measure([one], plan, probes=FakeProbes(), raw=raw_file(tmp_path / "raw.json"))
    assert record["points"]["peers"]["summary"]["control"]["num_tokens"]["median"] == 16
