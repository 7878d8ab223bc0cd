"""What Paceline computes of an exported head is what training computed of it."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from paceline.core.layer import PassContext
from paceline.models import load_model
from paceline.models.drafters import load_draft_module, load_medusa_heads
from paceline.training.eagle3 import Eagle3Head
from paceline.training.head import Places, read_states
from paceline.training.head_recipe import given_of
from paceline.training.hugging_face import load_frozen
from paceline.training.medusa import MedusaBlocks
from paceline.training.regenerate import read_replies
from tests.support.checkpoints import dense_attend
from tests.training.heads import TOKENS

STEPS = 2


@torch.inference_mode()
def test_medusa_heads_draft_as_they_were_trained(trained, deep, replies) -> None:
    options = trained["medusa"][0]
    frozen = load_frozen(deep.target, torch.device("cpu"))
    given = given_of(frozen, read_replies(replies, deep.target), options)
    head = MedusaBlocks(given, options).eval()
    tensors = load_file(options.out / "model.safetensors")
    head.load_state_dict({name: one for name, one in tensors.items() if name.startswith("blocks.")}, strict=False)
    tokens = torch.arange(7, 31)
    places = Places(torch.arange(20).unsqueeze(0), torch.ones(1, 20, TOKENS).bool())
    expected = head(read_states(frozen, tokens.unsqueeze(0), given.taps), places, TOKENS)

    target = load_model(deep.target, dtype=torch.float32)
    module = load_medusa_heads(options.out, target)
    hidden = target(tokens, torch.arange(len(tokens)), PassContext(attend=dense_attend(target)))[0]
    for ours, theirs in zip(module(hidden[:20]), expected, strict=True):
        torch.testing.assert_close(ours[:, given.vocabulary.ids], theirs[0], atol=2e-4, rtol=1e-3)


@torch.inference_mode()
def test_an_eagle3_head_drafts_as_it_was_trained(trained, deep, replies) -> None:
    options = trained["eagle3"][0]
    frozen = load_frozen(deep.target, torch.device("cpu"))
    given = given_of(frozen, read_replies(replies, deep.target), options)
    head = Eagle3Head(given, options).eval()
    tensors = load_file(options.out / "model.safetensors")
    head.load_state_dict({name: one for name, one in tensors.items() if name not in ("d2t", "t2d")})
    tokens = torch.arange(7, 31)
    places = Places(torch.arange(len(tokens) - STEPS).unsqueeze(0), torch.ones(1, len(tokens) - STEPS, STEPS).bool())
    expected = head(read_states(frozen, tokens.unsqueeze(0), given.taps), places, STEPS)

    target = load_model(deep.target, dtype=torch.float32)
    module = load_draft_module(options.out, target)
    context = PassContext(attend=dense_attend(target), taps=module.taps)
    features = module.fuse(target(tokens, torch.arange(len(tokens)), context)[1])
    for place in (0, 5, len(tokens) - STEPS - 1):
        inputs = features[: place + 1]
        for step in range(STEPS):
            read = tokens[1 : place + 2 + step]
            context = PassContext(attend=dense_attend(module), taps=(module.config.num_layers,), inputs=inputs)
            hidden, stream = module(read, torch.arange(1, 1 + len(read)), context)
            found = module.logits(hidden)[-1]
            assert found.isfinite().nonzero().squeeze(1).tolist() == given.vocabulary.ids.tolist()
            torch.testing.assert_close(found[given.vocabulary.ids], expected[step][0, place], atol=2e-4, rtol=1e-3)
            inputs = torch.cat([inputs, stream[-1:]])
