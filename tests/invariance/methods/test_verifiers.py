"""Every ratio verifier with every method: it runs, keeps greedy texts, repeats a seed and leaks nothing; or refuses."""

from __future__ import annotations

import pytest

from paceline.core.errors import ConfigError
from paceline.core.params import SamplingParams
from paceline.speculation import verifiers
from tests.invariance.conftest import VOCAB_SIZE
from tests.invariance.methods.answers import speculation
from tests.support.engines import Job, Models, preempt_every, prompts, run
from tests.support.matrix import REFUSED, covers

PROMPTS = prompts(5, VOCAB_SIZE, [23, 9, 14])
GREEDY = [
    Job(prompt, SamplingParams(temperature=0.0, repetition_penalty=penalty, max_tokens=14, ignore_eos=True))
    for prompt, penalty in zip(PROMPTS, (1.0, 1.2, 1.0), strict=True)
]
SEEDED = [
    Job(prompt, SamplingParams(temperature=0.8, seed=number, n=1 + number % 2, max_tokens=12, ignore_eos=True))
    for number, prompt in enumerate(PROMPTS)
]
RATIO = sorted(name for name in verifiers if verifiers[name].needs_probs)


@covers("verifier {}", param=("verifier", RATIO))
def test_ratio_verifiers(method: str, verifier: str, llama: Models, record_property) -> None:
    """Without prefixes that are found: a method that reads features drafts in the first step only if one was."""
    options, more = speculation(method, verifier=verifier), {"block_size": 4, "enable_prefix_caching": False}
    try:
        engine = llama.engine(options, **more)
    except ConfigError as error:
        cause, advice = str(error).split("\n")
        record_property(REFUSED, cause)
        assert "Set " in advice
        return
    assert run(engine, GREEDY, hook=preempt_every(4)) == run(llama.engine(), GREEDY)
    together = run(engine, SEEDED)
    assert run(engine, SEEDED) == together
    assert run(llama.engine(options, **more), SEEDED[1:]) == together[1:]
    assert engine.counters.num_drafted > 0


def test_there_are_ratio_verifiers_and_refusals_name_the_way_out(llama: Models) -> None:
    assert RATIO == ["block", "token", "traversal", "tree"]
    with pytest.raises(ConfigError, match=r"trees.*\n.*trees: match"):
        llama.engine(speculation("medusa", verifier="block"))
