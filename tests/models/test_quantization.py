"""Quantised models: made while they are read, written, read again, and made by others."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from paceline import LLM, CheckpointError, ConfigError, EngineConfig, SamplingParams
from paceline.engine import fit as fit_module
from paceline.engine.fit import fit
from paceline.kernels.native.linear import linear
from paceline.kernels.native.packing import quantise, unpack
from paceline.layers.linear import Linear
from paceline.layers.quantized import pack_linear
from paceline.models import Quantization, load_model
from paceline.models.compressed import PackedLayout, Stored, from_words, to_words
from paceline.models.publishing import quantise_checkpoint
from paceline.models.quantization import linears
from tests.support.checkpoints import edit_json, full_logits, greedy, tiny_gpt2, tiny_llama
from tests.support.native import needs_library
from tests.support.zoo import tiny

SCHEMES = ("int8", "int4")
WIDER = {"hidden_size": 64}
FAMILIES = {
    "llama": {**WIDER, "intermediate_size": 96},
    "qwen3": {**WIDER, "intermediate_size": 96},
    "gemma2": {**WIDER, "intermediate_size": 96},
    "gpt_neox": WIDER,
    "phi3": {**WIDER, "intermediate_size": 96},
    "opt": {**WIDER, "word_embed_proj_dim": 32},
    "gpt2": {},
}
PROMPT = [3, 17, 42, 8, 25, 60, 11]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A directory per family, each made once."""
    made = {}

    def make(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            if family == "gpt2":
                tiny_gpt2(made[family], vocab_size=61)
            else:
                tiny(made[family], family, **FAMILIES[family])
        return made[family]

    return make


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_written_model_is_the_one_quantised_in_memory(checkpoints, tmp_path, family, scheme):
    source, wanted = checkpoints(family), Quantization(scheme)
    written = quantise_checkpoint(source, tmp_path / "out", wanted, shard_bytes=30_000)
    assert written.bytes_after < written.bytes_before
    made, read = load_model(source, quantization=wanted), load_model(tmp_path / "out")
    logits = full_logits(made, PROMPT)
    assert torch.equal(logits, full_logits(read, PROMPT))
    assert greedy(made, PROMPT, 5) == greedy(read, PROMPT, 5)
    exact = full_logits(load_model(source), PROMPT)
    loss = (logits - exact).pow(2).mean().sqrt() / exact.std()
    assert loss < (0.1 if scheme == "int8" else 0.6)


def test_the_head_is_ignored_under_every_name_it_has(checkpoints, tmp_path):
    quantise_checkpoint(checkpoints("gpt_neox"), tmp_path / "out", Quantization("int8"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["ignore"] == ["embed_out", "lm_head"]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_is_quantised_from_the_weights_it_had(checkpoints, family, scheme):
    plain = linears(load_model(checkpoints(family)))
    quantised = linears(load_model(checkpoints(family), quantization=Quantization(scheme)))
    assert set(plain) == set(quantised)
    for name, one in quantised.items():
        kind = "int8" if name == "head" else scheme
        steps, scale = quantise(plain[name].weight, kind)
        repeats = plain[name].weight.shape[1] // scale.shape[1]
        assert one.packed.kind == kind
        assert torch.equal(unpack(one.packed), steps.float() * scale.repeat_interleave(repeats, 1)), name
        if plain[name].bias is not None:
            assert torch.equal(one.packed.bias[: len(one.bias)], plain[name].bias)


@needs_library
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_computes_what_the_native_kernels_compute(checkpoints, scheme, dtype):
    model = load_model(checkpoints("qwen3"), dtype=dtype, quantization=Quantization(scheme))
    for name, one in linears(model).items():
        x = torch.randn(5, one.weight.shape[1], generator=torch.Generator().manual_seed(1))
        expected = linear(x, pack_linear(one))
        torch.testing.assert_close(one(x.to(dtype)).float(), expected, rtol=1e-5, atol=2e-5, msg=name)


def test_the_comparison_finds_rows_that_are_not_rounded(checkpoints):
    """The control: leaving out the rounding of rows, or one group's scale, is far outside the tolerance above."""
    one = load_model(checkpoints("qwen3"), quantization=Quantization("int8")).blocks[0].mlp.down
    x = torch.randn(5, one.weight.shape[1], generator=torch.Generator().manual_seed(1))
    found, planted = one(x), torch.nn.functional.linear(x, unpack(one.packed))
    assert (found - planted).abs().max() > 1e-3


def test_a_tied_head_is_a_copy_and_the_table_stays(checkpoints):
    plain = load_model(checkpoints("gemma2"))
    model = load_model(checkpoints("gemma2"), quantization=Quantization("int4"))
    assert plain.config.tied
    assert torch.equal(model.embedding.tokens.weight, plain.embedding.tokens.weight)
    steps, scale = quantise(plain.embedding.tokens.weight, "int8")
    assert torch.equal(unpack(model.head.packed), steps * scale)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("inputs", [8, 13, 32])
def test_words_hold_the_first_integer_in_their_lowest_bits(bits, inputs):
    low = -(1 << bits - 1)
    steps = torch.randint(low, -low, (3, inputs), generator=torch.Generator().manual_seed(2)).to(torch.int8)
    words = to_words(steps, bits)
    assert words.shape == (3, -(-inputs * bits // 32))
    expected = sum((int(step) - low) << (place * bits) for place, step in enumerate(steps[1, : 32 // bits].tolist()))
    assert int(words[1, 0]) & 0xFFFFFFFF == expected
    assert torch.equal(from_words(words, bits, inputs), steps)


# Checkpoints of others: integers that our own rounding would never make, written by hand.


def arguments(bits, strategy, **more):
    return {"num_bits": bits, "type": "int", "symmetric": True, "strategy": strategy, "dynamic": False} | more


ROWS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
FOREIGN = {
    "channel": (arguments(8, "channel", group_size=-1), "int-quantized", ROWS, None),
    "tensor": (arguments(8, "tensor"), "int-quantized", ROWS, None),
    "words of bytes": (arguments(8, "channel"), "pack-quantized", None, None),
    "group 32": (arguments(4, "group", group_size=32), "pack-quantized", None, 32),
    "group 64": (arguments(4, "group", group_size=64, actorder="weight"), "pack-quantized", None, 64),
    "int4 channel": (arguments(4, "channel", group_size=-1), "pack-quantized", None, None),
}


def foreign(source, out, described, *, most=None):
    """Writes ``source`` with random integers for its matrices; returns what they stand for, by name."""
    weights, form, activations, group = described
    shutil.copytree(source, out)
    bits = weights["num_bits"]
    random, means = torch.Generator().manual_seed(3), {}
    tensors = load_file(out / "model.safetensors")
    for name in [name for name in tensors if "_proj" in name]:
        rows, inputs = tensors.pop(name).shape
        low = -(1 << bits - 1) if most is None else -most
        steps = torch.randint(low, -low, (rows, inputs), generator=random).to(torch.int8)
        shape = (1,) if weights["strategy"] == "tensor" else (rows, inputs // group if group else 1)
        scale = (torch.rand(shape, generator=random) * 0.01 + 0.001).to(torch.bfloat16)
        module = name.removesuffix("weight")
        tensors[f"{module}weight_scale"] = scale
        if form == "pack-quantized":
            tensors[f"{module}weight_packed"] = to_words(steps, bits)
            tensors[f"{module}weight_shape"] = torch.tensor([rows, inputs])
        else:
            tensors[name] = steps
        wide = scale.float() if scale.dim() == 2 else scale.float()[:, None]
        means[name] = steps.float() * wide.repeat_interleave(inputs // wide.shape[1], 1)
    save_file(tensors, out / "model.safetensors")
    group_0 = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    method = {"quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"]}
    edit_json(out / "config.json", quantization_config=method | {"config_groups": {"group_0": group_0}})
    return means


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source")
    tiny_llama(path, hidden=64, intermediate=128)
    return path


@pytest.mark.parametrize("name", FOREIGN)
def test_integers_and_scales_of_others_are_kept(source, tmp_path, name):
    means = foreign(source, tmp_path / "foreign", FOREIGN[name], most=5 if name == "channel" else None)
    model = load_model(tmp_path / "foreign")
    attention, mlp = model.blocks[1].attention, model.blocks[1].mlp
    ours = {
        "self_attn.k_proj": (attention.qkv, 1),
        "self_attn.o_proj": (attention.out, 0),
        "mlp.up_proj": (mlp.gate_up, 1),
    }
    for theirs, (one, index) in ours.items():
        assert torch.equal(one.part_of(unpack(one.packed), index), means[f"model.layers.1.{theirs}.weight"]), theirs
    assert model.head.packed is None
    assert full_logits(model, PROMPT).isfinite().all()


@needs_library
def test_the_least_byte_is_multiplied_rightly(source, tmp_path):
    """Others use -128; no rounding of ours does."""
    foreign(source, tmp_path / "foreign", FOREIGN["channel"])
    one = load_model(tmp_path / "foreign").blocks[0].mlp.down
    assert one.packed.weight.min() == -128
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(1)) * 10
    torch.testing.assert_close(linear(x, pack_linear(one)), one(x), rtol=1e-5, atol=1e-4)


def changed(path, **changes):
    """Replaces tensors; None removes one."""
    tensors = load_file(path / "model.safetensors") | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path / "model.safetensors")


DOWN = "model.layers.0.mlp.down_proj"
QUERY = "model.layers.0.self_attn.q_proj"
TENSORS = {
    "no scale": ({f"{DOWN}.weight_scale": None}, "weight_scale' is missing"),
    "NaN": ({f"{DOWN}.weight_scale": torch.full((64, 4), torch.nan)}, "scales that are not finite"),
    "infinity": ({f"{DOWN}.weight_scale": torch.full((64, 4), torch.inf)}, "scales that are not finite"),
    "huge scales": ({f"{DOWN}.weight_scale": torch.full((64, 4), 1e9)}, "mlp.down cannot be used: .*outside float16"),
    "scales of another shape": (
        {f"{DOWN}.weight_scale": torch.ones(64, 3)},
        r"\[64, 3\], config.json implies \[64, 4\]",
    ),
    "scales of integers": ({f"{DOWN}.weight_scale": torch.ones(64, 4, dtype=torch.int8)}, "is I8, not one of F16"),
    "words of another shape": (
        {f"{DOWN}.weight_packed": torch.zeros(64, 9, dtype=torch.int32)},
        r"\[64, 9\], config.json implies \[64, 16\]",
    ),
    "words of another type": ({f"{DOWN}.weight_packed": torch.zeros(64, 16, dtype=torch.int8)}, "is I8, not I32"),
    "a shape that lies": (
        {f"{DOWN}.weight_shape": torch.tensor([64, 129])},
        r"says \[64, 129\], .*implies \[64, 128\]",
    ),
    "a shape of three": ({f"{DOWN}.weight_shape": torch.tensor([64, 128, 1])}, "weight_shape' has shape"),
    "zero points": (
        {f"{DOWN}.weight_zero_point": torch.zeros(8, 4, dtype=torch.int32)},
        "zero points, .*not supported",
    ),
    "g_idx": ({f"{DOWN}.weight_g_idx": torch.zeros(128, dtype=torch.int32)}, "order of activations, .*not supported"),
    "one of three that is not": (
        {f"{QUERY}.{name}": None for name in ("weight_packed", "weight_scale", "weight_shape")}
        | {f"{QUERY}.weight": torch.zeros(64, 64)},
        "q_proj' and .*k_proj' .*quantised differently",
    ),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_cannot_be_are_refused(source, tmp_path, name):
    foreign(source, tmp_path / "foreign", FOREIGN["group 32"])
    changes, match = TENSORS[name]
    changed(tmp_path / "foreign", **changes)
    with pytest.raises(CheckpointError, match=match):
        load_model(tmp_path / "foreign")


def group(**weights):
    described = {"targets": ["Linear"], "weights": arguments(4, "group", group_size=32) | weights}
    return {"config_groups": {"group_0": described}}


def with_activations(**changes):
    one = group()["config_groups"]["group_0"]
    return {"config_groups": {"group_0": one | {"input_activations": ROWS | changes}}}


CONFIGS = {
    "gptq": ({"quant_method": "gptq"}, "quantised by 'gptq'.*\nGive the unquantised model, and quantization="),
    "awq": ({"quant_method": "awq"}, "quantised by 'awq'"),
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quantised by 'bitsandbytes'"),
    "no method": ({"quant_method": None}, "quantised by 'None'"),
    "format": ({"format": "marlin-24"}, "format is 'marlin-24'"),
    "cache": ({"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme is not supported"),
    "sparsity": ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config is not supported"),
    "sparsity without a format": ({"sparsity_config": {"global_sparsity": 0.5}}, "sparsity_config is not supported"),
    "a sparsity that is no object": ({"sparsity_config": "dense"}, "sparsity_config is not supported"),
    "a cache scheme that says dense": ({"kv_cache_scheme": {"format": "dense"}}, "kv_cache_scheme is not supported"),
    "rotations": ({"transform_config": {"config_groups": {"R1": {}}}}, "transform_config is not supported"),
    "no groups": ({"config_groups": {}}, "config_groups must be an object"),
    "list": ({"config_groups": []}, "config_groups must be an object"),
    "group of nothing": ({"config_groups": {"group_0": 3}}, "group_0 must be an object"),
    "asymmetric": (group(symmetric=False), "asymmetric"),
    "floats": (group(type="float"), "4-bit float, not int"),
    "three bits": (group(num_bits=3), "3-bit int"),
    "unhashable bits": (group(num_bits={"mlp": 8}), "num_bits must be an integer"),
    "order": (group(actorder="group"), "order of activations"),
    "order as a flag": (group(actorder=True), "order of activations"),
    "groups of 16": (group(group_size=16), "groups of 16 inputs .supported: multiples of 32"),
    "groups of bytes": (group(num_bits=8), "groups of 32 inputs .supported: none for 8 bits"),
    "groups that do not divide": (group(group_size=96), "64 inputs, which groups of 96 do not divide"),
    "no group size": (group(group_size=None), "group_size must be an integer"),
    "blocks": (group(strategy="block"), "strategy is 'block'"),
    "static rows": (with_activations(dynamic=False), "input_activations have dynamic 'False'"),
    "rows of 4 bits": (with_activations(num_bits=4), "have num_bits '4', supported is 8"),
    "head": ({"paceline": {"head": "int3"}}, "unknown scheme for the head"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_that_are_not_supported_are_refused(source, tmp_path, name):
    foreign(source, tmp_path / "foreign", FOREIGN["group 32"])
    changes, match = CONFIGS[name]
    config = json.loads((tmp_path / "foreign" / "config.json").read_text())
    edit_json(tmp_path / "foreign" / "config.json", quantization_config=config["quantization_config"] | changes)
    with pytest.raises(CheckpointError, match=match) as error:
        load_model(tmp_path / "foreign")
    assert "\n" in str(error.value) or "must be" in str(error.value)


DENSE = {
    "format": "dense",
    "global_sparsity": 0.1,
    "ignore": [],
    "registry_requires_subclass": False,
    "sparsity_structure": "unstructured",
    "targets": [],
}
ASKS_NOTHING = {
    "dense": {"sparsity_config": {"format": "dense"}},
    "dense, more fields": {"sparsity_config": DENSE},
    "dense 2:4": {"sparsity_config": DENSE | {"sparsity_structure": "2:4", "targets": ["Linear"]}},
    "empty": {"sparsity_config": {}, "transform_config": {}, "kv_cache_scheme": {}},
    "no rotations": {"transform_config": {"config_groups": {}, "requires_grad": False}},
}


@pytest.mark.parametrize("changes", ASKS_NOTHING.values(), ids=ASKS_NOTHING)
def test_configs_that_ask_for_nothing_more_change_nothing(source, tmp_path, changes):
    foreign(source, tmp_path / "foreign", FOREIGN["group 32"])
    expected = full_logits(load_model(tmp_path / "foreign"), PROMPT)
    config = json.loads((tmp_path / "foreign" / "config.json").read_text())
    edit_json(tmp_path / "foreign" / "config.json", quantization_config=config["quantization_config"] | changes)
    assert torch.equal(full_logits(load_model(tmp_path / "foreign"), PROMPT), expected)


NO_SPARSITY = {"format": "dense", "sparsity_config": None}


@pytest.mark.parametrize(
    "form", [{}, {"format": "dense"}, {"format": "dense", "config_groups": {}}, NO_SPARSITY], ids=str
)
def test_a_pruned_model_that_is_stored_dense_is_not_quantised(source, tmp_path, form):
    shutil.copytree(source, tmp_path / "pruned")
    method = {"quant_method": "compressed-tensors", "sparsity_config": DENSE}
    edit_json(tmp_path / "pruned" / "config.json", quantization_config=method | form)
    expected = full_logits(load_model(source), PROMPT)
    assert torch.equal(full_logits(load_model(tmp_path / "pruned"), PROMPT), expected)
    quantised = load_model(tmp_path / "pruned", quantization=Quantization("int8"))
    assert kinds_of(quantised) == {"int8"}


def test_a_config_that_promises_integers_needs_them(source, tmp_path):
    foreign(source, tmp_path / "foreign", FOREIGN["group 32"])
    shutil.copy(source / "model.safetensors", tmp_path / "foreign")
    with pytest.raises(CheckpointError, match="no tensor of it is"):
        load_model(tmp_path / "foreign")


# Options


def test_groups_that_do_not_divide_are_told_with_those_that_do(source):
    with pytest.raises(ConfigError, match=r"64 inputs.*\nSet quantization_group_size to 64"):
        load_model(source, quantization=Quantization("int4", 128))
    with pytest.raises(ConfigError, match="Set it to one of 32, 64, 128"):
        Quantization("int4", 48)
    with pytest.raises(ConfigError, match="unknown quantization 'int3'\nChoose one of: int4, int8"):
        LLM(source, quantization="int3")


def test_a_model_that_no_group_fits_is_advised_int8(tmp_path):
    tiny_llama(tmp_path)
    with pytest.raises(ConfigError, match=r'48 inputs.*\nSet quantization to "int8"'):
        load_model(tmp_path, quantization=Quantization("int4"))


def test_weights_that_are_not_finite_are_refused(source, tmp_path):
    shutil.copytree(source, tmp_path / "broken")
    changed(tmp_path / "broken", **{f"{DOWN}.weight": torch.full((64, 128), torch.inf)})
    with pytest.raises(CheckpointError, match=r"down_proj\.weight': weight has numbers that are not finite"):
        load_model(tmp_path / "broken", quantization=Quantization("int8"))


def test_a_quantised_checkpoint_is_not_quantised_to_something_else(source, tmp_path):
    quantise_checkpoint(source, tmp_path / "out", Quantization("int4"))
    same = load_model(tmp_path / "out", quantization=Quantization("int4"))
    assert torch.equal(full_logits(same, PROMPT), full_logits(load_model(tmp_path / "out"), PROMPT))
    with pytest.raises(ConfigError, match="quantised already, to int4"):
        load_model(tmp_path / "out", quantization=Quantization("int8"))
    with pytest.raises(ConfigError, match="quantised already"):
        quantise_checkpoint(tmp_path / "out", tmp_path / "again", Quantization("int4"))


def kinds_of(model):
    return {one.packed.kind if one.packed is not None and one.quantised else None for one in linears(model).values()}


@pytest.mark.parametrize(
    ("options", "draft", "expected"),
    [
        ({"quantization": "int8"}, {}, ({"int8"}, {"int8"})),
        ({"quantization": "int8"}, {"draft_quantization": "none"}, ({"int8"}, {None})),
        ({"quantization": "int8"}, {"draft_quantization": "int4"}, ({"int8"}, {"int4", "int8"})),
        ({}, {"draft_quantization": "int8"}, ({None}, {"int8"})),
    ],
    ids=["as the target", "the draft not", "the draft otherwise", "the draft alone"],
)
def test_an_engine_quantises_target_and_draft(source, options, draft, expected):
    speculative = {"method": "draft_model", "model": str(source), "num_speculative_tokens": 3, **draft}
    llm = LLM(source, speculative_config=speculative, dtype="float64", max_model_len=64, **options)
    assert kinds_of(llm.engine.runner.model) == expected[0]
    assert kinds_of(llm.engine.proposer.model) == expected[1]
    params = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True, detokenize=False)
    drafted, plain = (llm.generate([PROMPT], params, speculate=on)[0].outputs[0].token_ids for on in (True, False))
    assert drafted == plain


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_told_before_loading_is_what_weights_take(source, tmp_path, monkeypatch, scheme):
    monkeypatch.setattr(fit_module, "free_bytes", lambda device: 2**27)
    plain = fit(source, EngineConfig()).weight_bytes["target"]
    found = fit(source, EngineConfig(quantization=scheme)).weight_bytes["target"]
    model = load_model(source, dtype=torch.float32, quantization=Quantization(scheme))
    packed = sum(one.packed.num_bytes for one in linears(model).values())
    assert found == packed + sum(one.nbytes for one in model.parameters() if not one.is_meta)
    quantise_checkpoint(source, tmp_path / "out", Quantization(scheme))
    assert fit(tmp_path / "out", EngineConfig()).weight_bytes["target"] == found < plain / 2


def test_matrices_have_no_memory_before_torch_needs_it(source):
    model = load_model(source, quantization=Quantization("int8"))
    assert all(one.weight.is_meta for one in linears(model).values())
    full_logits(model, PROMPT)
    assert not any(one.weight.is_meta for one in linears(model).values())


def test_a_row_is_quantised_alone():
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(4))
    for layout in (PackedLayout("int8"), PackedLayout("int4", 32)):
        whole, alone = Stored.of(weight, layout), Stored.of(weight[2:3], layout)
        assert torch.equal(whole.integers[2:3], alone.integers)
        assert torch.equal(whole.scale[2:3], alone.scale)


def test_a_linear_that_is_not_quantised_computes_as_ever():
    one = Linear.from_parts([torch.eye(3)])
    assert not one.quantised
    assert torch.equal(one(torch.ones(2, 3)), torch.ones(2, 3))
