"""The recipes of heads on a toy target: losses fall, killed runs end alike, layouts are the published ones."""

from __future__ import annotations

import json
from dataclasses import replace
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file, save_file

from paceline.cli.main import run
from paceline.core.errors import ConfigError
from paceline.training.block import train_dflash
from paceline.training.data import DataError
from paceline.training.eagle3 import train_eagle3
from paceline.training.mtp import train_mtp
from tests.support.checkpoints import edit_json
from tests.training.heads import DRAFTED, RECIPES, TOKENS, options_of
from tests.training.recording import RecordingProgress
from tests.training.test_recipes import KilledError, killed_at, same_weights

H, INNER, VOCABULARY = 32, 48, 320
HEADS, KV_HEADS, DIM = 2, 1, 16


@pytest.mark.parametrize("name", RECIPES)
def test_the_loss_falls_and_drafts_are_accepted(trained, name) -> None:
    options, progress, metrics = trained[name]
    losses = [report.loss for report in progress.reports if report.stage == "step"]
    assert losses[-1] < 0.7 * losses[0]
    assert metrics == json.loads((options.out / "metrics.json").read_text())
    for found in metrics["acceptance"].values():
        rates = found["acceptance_per_position"]
        assert len(rates) == TOKENS
        assert rates[0] > 0.5
        assert found["places"] >= 40
        survival = [rates[0], rates[0] * rates[1], rates[0] * rates[1] * rates[2]]
        assert found["expected_tokens_per_step"] == pytest.approx(1 + sum(survival), abs=1e-3)


@pytest.mark.parametrize("name", RECIPES)
def test_a_killed_run_ends_with_the_same_weights(deep, replies, name, monkeypatch) -> None:
    recipe = RECIPES[name]
    whole = options_of(deep, name, f"{name}_whole", steps=30, replies_from=replies, eval_prompts=2)
    recipe.train(whole, RecordingProgress())
    options = replace(whole, out=deep.directory / f"{name}_killed")
    killed_at(monkeypatch, 25)
    with pytest.raises(KilledError):
        recipe.train(options, RecordingProgress())
    progress = RecordingProgress()
    recipe.train(options, progress)
    assert [report.done for report in progress.reports if report.stage == "step"] == [30]
    assert same_weights(options.out, whole.out)


def layer(prefix: str, *, width: int = H, bias: bool = False, head_norm: bool = False) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a decoder layer."""
    rows = {"q_proj": HEADS * DIM, "k_proj": KV_HEADS * DIM, "v_proj": KV_HEADS * DIM}
    shapes = {f"self_attn.{name}.weight": (count, width) for name, count in rows.items()}
    shapes |= {f"self_attn.{name}.bias": (count,) for name, count in rows.items() if bias}
    shapes |= {f"self_attn.{name}.weight": (DIM,) for name in ("q_norm", "k_norm") if head_norm}
    shapes |= {
        "self_attn.o_proj.weight": (H, HEADS * DIM),
        "mlp.gate_proj.weight": (INNER, H),
        "mlp.up_proj.weight": (INNER, H),
        "mlp.down_proj.weight": (H, INNER),
        "input_layernorm.weight": (H,),
        "post_attention_layernorm.weight": (H,),
    }
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


LAYOUTS = {
    "eagle3": {
        **layer("layers.0", width=2 * H),
        "layers.0.hidden_norm.weight": (H,),
        "fc.weight": (H, 3 * H),
        "norm.weight": (H,),
        "lm_head.weight": (DRAFTED, H),
        "d2t": (DRAFTED,),
        "t2d": (VOCABULARY,),
    },
    "medusa": {
        **{f"blocks.{head}.layers.0.weight": (H, H) for head in range(TOKENS)},
        "lm_heads.0.weight": (DRAFTED, H),
        "token_map": (DRAFTED,),
    },
    "mtp": {
        **layer("model.mtp_layers.0"),
        "model.mtp_layers.0.token_layernorm.weight": (H,),
        "model.mtp_layers.0.hidden_layernorm.weight": (H,),
        "model.mtp_layers.0.input_proj.weight": (H, 2 * H),
        "model.mtp_layers.0.final_layernorm.weight": (H,),
    },
    "dflash": {
        **layer("layers.0", head_norm=True),
        **layer("layers.1", head_norm=True),
        "fc.weight": (H, 3 * H),
        "hidden_norm.weight": (H,),
        "norm.weight": (H,),
    },
}


@pytest.mark.parametrize("name", RECIPES)
def test_tensors_have_exactly_the_published_names_and_shapes(trained, name) -> None:
    options, _, _ = trained[name]
    tensors = load_file(options.out / "model.safetensors")
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == LAYOUTS[name]
    kinds = {"d2t": torch.int64, "t2d": torch.bool, "token_map": torch.int64}
    assert all(tensor.dtype == kinds.get(key, torch.bfloat16) for key, tensor in tensors.items())


def test_offsets_and_members_name_the_same_tokens_of_which_the_unembedding_is_the_targets(trained, deep) -> None:
    tensors = load_file(trained["eagle3"][0].out / "model.safetensors")
    ids = tensors["d2t"] + torch.arange(DRAFTED)
    assert torch.equal(tensors["t2d"].nonzero().squeeze(1), ids)
    rows = load_file(deep.target / "model.safetensors")["model.embed_tokens.weight"][ids]
    assert torch.equal(tensors["lm_head.weight"], rows)
    medusa = load_file(trained["medusa"][0].out / "model.safetensors")
    assert torch.equal(medusa["token_map"], ids)


def test_configs_say_what_the_published_ones_say(trained) -> None:
    configs = {name: json.loads((found[0].out / "config.json").read_text()) for name, found in trained.items()}
    for name in ("eagle3", "dflash"):
        config = configs[name]
        assert config["speculators_model_type"] == config["speculators_config"]["algorithm"] == name
        proposal = config["speculators_config"]["proposal_methods"][0]
        assert proposal["speculative_tokens"] == TOKENS
        assert config["speculators_config"]["verifier"] == {
            "name_or_path": "target",
            "architectures": ["LlamaForCausalLM"],
        }
        assert config["transformer_layer_config"]["head_dim"] == DIM
    assert configs["eagle3"]["draft_vocab_size"] == DRAFTED
    assert configs["eagle3"]["eagle_aux_hidden_state_layer_ids"] == [0, 1, 2]
    assert configs["dflash"]["block_size"] == TOKENS + 1
    assert configs["dflash"]["draft_vocab_size"] == VOCABULARY
    assert configs["dflash"]["mask_token_id"] == 2
    assert configs["medusa"]["num_heads"] == TOKENS
    assert configs["medusa"]["truncated_vocab_size"] == DRAFTED
    assert configs["mtp"]["model_type"] == "mimo"
    assert configs["mtp"]["num_nextn_predict_layers"] == 1


def test_a_trained_unembedding_and_a_draft_vocabulary_are_saved(deep, replies) -> None:
    changes = {"draft_vocab_size": DRAFTED, "train_unembedding": True}
    options = options_of(deep, "dflash", "dflash_reduced", steps=2, replies_from=replies, eval_prompts=2, **changes)
    train_dflash(options, RecordingProgress())
    tensors = load_file(options.out / "model.safetensors")
    assert tensors["lm_head.weight"].shape == (DRAFTED, H)
    ids = tensors["d2t"] + torch.arange(DRAFTED)
    rows = load_file(deep.target / "model.safetensors")["model.embed_tokens.weight"][ids]
    assert not torch.equal(tensors["lm_head.weight"], rows)


def test_a_checkpoint_is_exported_without_training(deep, replies, monkeypatch) -> None:
    options = options_of(deep, "mtp", "mtp_exported", steps=100, replies_from=replies)
    killed_at(monkeypatch, 25)
    with pytest.raises(KilledError):
        train_mtp(options, RecordingProgress())
    assert not options.out.exists()
    metrics = train_mtp(replace(options, export_only=True), RecordingProgress())
    assert metrics["step"] == 20
    tensors = load_file(options.out / "model.safetensors")
    assert tensors.keys() == LAYOUTS["mtp"].keys()
    kept = torch.load(options.work_directory / "checkpoint.pt", weights_only=True)["model"]
    assert all(torch.equal(one, kept[name.removeprefix("model.")].bfloat16()) for name, one in tensors.items())
    with pytest.raises(ConfigError, match="there is no checkpoint"):
        train_mtp(replace(options, out=deep.directory / "nothing", export_only=True), RecordingProgress())


def test_replies_of_another_target_are_refused(deep, replies, tmp_path) -> None:
    lines = replies.read_text().splitlines(keepends=True)
    head = {**json.loads(lines[0]), "target": "another"}
    (tmp_path / "replies.jsonl").write_text(json.dumps(head) + "\n" + "".join(lines[1:]))
    options = options_of(deep, "mtp", "refused", replies_from=tmp_path / "replies.jsonl")
    with pytest.raises(ConfigError, match="written by another target"):
        train_mtp(options, RecordingProgress())
    for text, cause in (
        ("{}\n", "is no file of replies"),
        ("x", "is no file of replies"),
        (lines[0], "holds no reply"),
    ):
        (tmp_path / "replies.jsonl").write_text(text)
        with pytest.raises(DataError, match=cause):
            train_mtp(options, RecordingProgress())
    with pytest.raises(DataError, match="there is no file"):
        train_mtp(replace(options, replies_from=tmp_path / "missing.jsonl"), RecordingProgress())


def test_the_module_has_biases_where_its_target_has(deep, replies) -> None:
    """As MiMo has them, which is a Qwen2."""
    target = deep.directory / "biased"
    copytree(deep.target, target)
    edit_json(target / "config.json", attention_bias=True)
    tensors = load_file(target / "model.safetensors")
    for name in [one for one in tensors if "self_attn" in one]:
        tensors[name.replace(".weight", ".bias")] = torch.zeros(tensors[name].shape[0], dtype=torch.bfloat16)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    options = options_of(deep, "mtp", "mtp_biased", target=target, steps=2, replies=20, eval_prompts=2)
    train_mtp(options, RecordingProgress())
    shapes = {name: tuple(one.shape) for name, one in load_file(options.out / "model.safetensors").items()}
    assert shapes == LAYOUTS["mtp"] | layer("model.mtp_layers.0", bias=True)
    assert json.loads((options.out / "config.json").read_text())["attention_bias"] is True


def test_a_target_of_too_few_layers_is_refused(toy) -> None:
    options = options_of(toy, "eagle3", "shallow", replies=2, eval_prompts=2)
    with pytest.raises(ConfigError, match="the target has 1 layers, of which a head reads three"):
        train_eagle3(options, RecordingProgress())


def test_a_draft_vocabulary_larger_than_the_targets_is_refused(deep, replies) -> None:
    options = options_of(deep, "eagle3", "too_large", draft_vocab_size=VOCABULARY + 1, replies_from=replies)
    with pytest.raises(ConfigError, match="draft_vocab_size is 321, but the target has 320 tokens"):
        train_eagle3(options, RecordingProgress())


def test_commands_train_heads(deep, replies, capsys, tmp_path) -> None:
    for name, recipe in RECIPES.items():
        out = str(tmp_path / name)
        flags = ["--target", str(deep.target), "--data", deep.data, "--out", out, "--replies-from", str(replies)]
        small = ["--length", "32", "--steps", "2", "--no-compile", "--eval-prompts", "2"]
        reduced = ["--draft-vocab-size", "64"] if "draft_vocab_size" in recipe.changes else []
        assert run(["train", name, *flags, *small, *reduced]) == 0
        printed = capsys.readouterr().out
        assert "step 2/2" in printed
        assert "expected tokens per step" in printed
