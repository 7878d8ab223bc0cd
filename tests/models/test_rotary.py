"""Rotary embeddings that depend on a sequence's length: the regime is fixed when a request comes, for it alone."""

from __future__ import annotations

import json

import pytest
import torch

from paceline.core.batch import Batch
from paceline.core.request import Group
from paceline.engine.input_processor import InputProcessor
from paceline.layers.placement import Placement
from paceline.layers.rotary import MAX_TABLE_BYTES, Rotary
from paceline.layers.rotary_kinds import RotaryConfig
from paceline.models import load_config, load_model
from paceline.runner import ModelRunner
from tests.support.checkpoints import edit_json, full_logits, perturb
from tests.support.engines import Models, cache_content, drive, run
from tests.support.zoo import (
    ORIGINAL,
    dynamic,
    greedy_job,
    hold,
    longrope,
    phi3_longrope,
    random_tokens,
    reference_logits,
    tiny,
    to_legacy,
)

MODELS = {
    "dynamic": ("llama", dynamic()),
    "longrope": ("llama", {"rope_parameters": longrope(4)}),
    "longrope, partial": ("phi3", phi3_longrope()),
    "longrope, attention_factor": ("phi3", phi3_longrope(attention_factor=1.3)),
}


@pytest.mark.parametrize(("family", "options"), MODELS.values(), ids=MODELS)
def test_logits_of_short_and_long_texts(tmp_path, family, options):
    """At every length what transformers computes for a text of that length, from either generation of config."""
    reference = tiny(tmp_path, family, **options)
    lengths = (10, ORIGINAL, ORIGINAL + 1, 60)
    expected = [reference_logits(reference, random_tokens(length)) for length in lengths]
    new = load_model(tmp_path)
    to_legacy(tmp_path / "config.json")
    for model in (new, load_model(tmp_path)):
        for length, logits in zip(lengths, expected, strict=True):
            found = full_logits(model, random_tokens(length))
            torch.testing.assert_close(found, logits, atol=2e-4, rtol=0)


@pytest.mark.parametrize(("prompt", "new"), [(8, 10), (12, 30), (40, 20)], ids=["short", "crossing", "long"])
@pytest.mark.parametrize("name", MODELS)
def test_greedy_text_keeps_its_regime(tmp_path, name, prompt, new):
    family, options = MODELS[name]
    reference = tiny(tmp_path, family, **options)
    tokens = random_tokens(prompt)
    text = run(Models(load_model(tmp_path), {}).engine(block_size=4), [greedy_job(tokens, new)])[0][0]
    hold(reference, prompt + new)
    expected = reference_logits(reference, tokens + text)
    assert text == expected[prompt - 1 : -1].argmax(-1).tolist()
    assert len(set(text)) > 2


@pytest.mark.parametrize("kind", ["su", "yarn"])
def test_early_names_of_longrope(tmp_path, kind):
    tiny(tmp_path, "phi3", **phi3_longrope())
    to_legacy(tmp_path / "config.json")
    written = load_config(tmp_path).rotaries[0]
    assert written.kind == "longrope"
    scaling = json.loads((tmp_path / "config.json").read_text())["rope_scaling"]
    edit_json(tmp_path / "config.json", rope_scaling={**scaling, "type": kind})
    found = load_config(tmp_path).rotaries[0]
    rope = {**scaling, "rope_type": kind, "rope_theta": 1e4, "partial_rotary_factor": 0.75}
    edit_json(tmp_path / "config.json", rope_scaling=None, rope_parameters=rope)
    assert load_config(tmp_path).rotaries[0] == found
    assert (found.lists, found.scaling, found.rotary_dim) == (written.lists, written.scaling, written.rotary_dim)
    assert found.kind in ("longrope", "su")


def test_what_a_dynamic_model_serves(tmp_path):
    """Its factor times the context that it was trained for; a drafter may do with less."""
    tiny(tmp_path, "llama", **dynamic())
    model = load_model(tmp_path)
    assert model.config.max_position_embeddings == 4 * ORIGINAL
    assert Models(model, {}).engine().seats.max_len == 4 * ORIGINAL


def test_what_a_yarn_model_serves(tmp_path):
    """Its factor times its original context, also where the file has only the scaling added."""
    reference = tiny(tmp_path, "qwen2", max_position_embeddings=96)
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 96}
    edit_json(tmp_path / "config.json", rope_parameters=None, rope_theta=1e4, rope_scaling=yarn)
    model = load_model(tmp_path)
    assert model.config.max_position_embeddings == 4 * 96
    config = type(reference.config).from_pretrained(tmp_path, attn_implementation="eager")
    reference = type(reference).from_pretrained(tmp_path, config=config)
    tokens = random_tokens(130)
    torch.testing.assert_close(full_logits(model, tokens), reference_logits(reference, tokens), atol=2e-4, rtol=0)


@pytest.fixture(scope="module", params=["dynamic", "longrope, partial"])
def models(request, tmp_path_factory) -> Models:
    directory = tmp_path_factory.mktemp("regimes")
    family, options = MODELS[request.param]
    tiny(directory / "target", family, **options)
    perturb(directory / "target", directory / "near", 0.03)
    load = lambda name: load_model(directory / name, dtype=torch.float64)  # noqa: E731
    return Models(load("target"), {"near": load("near")})


PROMPT = random_tokens(14, seed=3)
JOBS = [greedy_job(PROMPT, 6), greedy_job(PROMPT, 30), greedy_job(PROMPT[:9], 12), greedy_job(PROMPT[:12], 40)]
"""Texts that start alike and end in different regimes."""
NEAR = {"method": "draft_model", "model": "near"}


def together(models: Models) -> None:
    expected = [run(models.engine(enable_prefix_caching=False), [job])[0] for job in JOBS]
    assert expected[1][0][:6] != expected[0][0], "the regimes give the same text, which proves nothing"
    for speculation, chunk in ((None, 2048), (NEAR, 5)):
        engine = models.engine(speculation, block_size=4, max_num_batched_tokens=chunk)

        def content(engine, step) -> None:
            if step % 3 == 0:
                for group, model in enumerate([models.target, *models.drafts.values()][: len(engine.cache.groups)]):
                    cache_content(engine, model, group)

        for _again in range(2):  # the second time prefixes are found
            assert run(engine, JOBS, hook=content) == expected
        assert engine.cache.num_prefix_hits > 0
        assert engine.counters.num_accepted > 0 or speculation is None


def test_requests_of_different_regimes_share_a_step(models):
    together(models)


def test_neighbours_regimes_are_caught(models, monkeypatch):
    """The planted bug: one regime, the longest, for all rows of a step."""
    true = ModelRunner.forward

    def mixed(self: ModelRunner, batch: Batch, *rest):
        batch.longest[:] = batch.longest.max()
        return true(self, batch, *rest)

    monkeypatch.setattr(ModelRunner, "forward", mixed)
    with pytest.raises(AssertionError):
        together(models)


def test_a_prefix_key_without_the_regime_is_caught(models, monkeypatch):
    monkeypatch.setattr(Group, "prefix_salt", property(lambda self: self.cache_salt))
    with pytest.raises(AssertionError):
        together(models)


def test_a_drafter_that_shares_across_regimes_is_caught(models, monkeypatch, tmp_path):
    """The planted bug: the key knows the target's regime, not the drafter's; no token shows it, the K/V do."""
    tiny(tmp_path, "llama")
    plain = Models(load_model(tmp_path, dtype=torch.float64), models.drafts)

    def check() -> None:
        engine = plain.engine(NEAR, block_size=4)
        for job in (JOBS[0], JOBS[1]):
            run(engine, [job], hook=lambda engine, _: cache_content(engine, models.drafts["near"], 1))

    check()
    monkeypatch.setattr(Group, "prefix_salt", property(lambda self: f"{self.regimes[0]}{self.cache_salt}"))
    with pytest.raises(AssertionError):
        check()


def cached_tokens(engine, job) -> int:
    group = InputProcessor(engine, None).group(list(job.prompt), job.params)
    engine.add(group)
    drive(engine, [group])
    return group.members[0].num_cached_tokens


def test_prefixes_are_shared_within_a_regime_only(models):
    engine = models.engine(block_size=4)
    short, long = JOBS[0], JOBS[1]
    assert cached_tokens(engine, short) == 0
    assert cached_tokens(engine, short) == 12
    assert cached_tokens(engine, long) == 0
    assert cached_tokens(engine, long) == 12
    assert cached_tokens(engine, short) == 12


def test_models_without_regimes_need_nothing(tmp_path):
    tiny(tmp_path, "llama")
    engine = Models(load_model(tmp_path), {}).engine()
    assert InputProcessor(engine, None).group(PROMPT, JOBS[0].params).regimes == (0, 0)
    assert engine.runner.model.regimes(engine.seats.longest) is None


@pytest.mark.parametrize("kind", ["default", "dynamic", "longrope"])
def test_rotary_without_a_table_equals_rotary_with_one(kind):
    on = Placement(torch.float32, torch.device("cpu"))
    positions = torch.tensor([0, 5, 1000, 3])
    options = {
        "kind": kind,
        "scaling": {"factor": 2.0, "original_max_position_embeddings": 2048.0},
        "lists": {"short_factor": (1.0, 1.1, 1.2, 1.3), "long_factor": (2.0, 3.0, 4.0, 5.0)},
    }
    small, large = (
        Rotary(RotaryConfig(rotary_dim=8, max_position_embeddings=count, theta=1e4, **options), on=on)
        for count in (1024, MAX_TABLE_BYTES)
    )
    assert small.table is not None
    assert large.table is None
    for expected, found in zip(small(positions), large(positions), strict=True):
        assert torch.equal(expected, found)
