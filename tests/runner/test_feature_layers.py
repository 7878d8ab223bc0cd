"""Draft modules that read features, natively: what torch computes, and each row as if it were alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paceline.attention import LayerMap
from paceline.cache.group import KVGroup
from paceline.cache.pages import PageAllocator
from paceline.cache.stores import DenseStore
from paceline.core.layer import PassContext
from paceline.core.seats import Seats
from paceline.core.step import DraftTrees
from paceline.models import load_model
from paceline.models.drafters import load_draft_module, load_medusa_heads
from paceline.runner.native import NativeExecutor, obstacle, pack_weights
from paceline.runner.native.lowering import modules
from paceline.runner.rows import RowSpec, RowState, place
from paceline.runner.torch_executor import TorchExecutor
from tests.draft_checkpoints import tiny_eagle, tiny_eagle3, tiny_medusa
from tests.support.checkpoints import dense_attend, tiny_llama
from tests.support.native import check_rows_are_alone, needs_library
from tests.support.zoo import random_tokens

pytestmark = needs_library
CPU = torch.device("cpu")
COUNT = 33
EAGLES = {
    "eagle": (tiny_eagle, {}),
    "eagle, two layers": (tiny_eagle, {"layers": 2}),
    "eagle3": (tiny_eagle3, {"draft_vocab_size": 24}),
    "eagle3, residual": (tiny_eagle3, {"norm_before_residual": True, "layers": 2, "norm_before_fc": True}),
    "eagle3.1": (tiny_eagle3, {"fc_norm": True, "norm_output": True, "head_norm": True}),
}


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    directory = tmp_path_factory.mktemp("target")
    tiny_llama(directory, vocab_size=61, layers=8, hidden=32)
    return load_model(directory)


class OneRequest:
    """One request's pages for a module, and what computes its passes, in torch or natively."""

    def __init__(self, module, impl):
        specs = module.layer_specs
        store = DenseStore(specs, num_pages=13, page_size=4, dtype=module.dtype, device="cpu")
        self.group = KVGroup("draft", store, PageAllocator(12), num_seats=1, max_slots=48, window=None)
        self.group.page_table[0] = np.random.default_rng(0).permutation(12) + 1
        self.seats = Seats(1, 48)
        self.seats.longest[:] = 48
        layers = LayerMap(specs, [store], [0] * len(specs), list(range(len(specs))))
        if impl == "native":
            self.executor = NativeExecutor(module, layers)
        else:
            self.executor = TorchExecutor(module, layers, attention_backend="sdpa", device=CPU)

    def feed(self, module, tokens, inputs, start=1):
        """The tokens at slots from ``start`` on -> (logits of the last, hidden rows, what leaves the last layer)."""
        self.seats.tokens[0, start : start + len(tokens)] = tokens
        ints = (np.array([number], dtype=np.int32) for number in (0, start + len(tokens), start))
        state = RowState(*ints, np.zeros(1, dtype=np.int64), np.array([True]), np.zeros(1, dtype=np.int32))
        batch = place(RowSpec(first_slot=1), state, DraftTrees.empty(1), self.seats, [self.group]).batch
        with torch.inference_mode():
            found = self.executor.run(batch, (module.config.num_layers,), inputs)
            return [part.clone() for part in (found.logits, found.hidden, found.features)]


def rows(count, width, seed=4):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", EAGLES)
def test_passes_are_those_of_torch_and_of_whole_sequences(kind, target, tmp_path):
    save, options = EAGLES[kind]
    save(tmp_path, target.config, **options)
    module = load_draft_module(tmp_path, target)
    assert obstacle(module, CPU) is None
    tokens, inputs = random_tokens(COUNT), rows(COUNT, module.input_size)
    with torch.inference_mode():
        context = PassContext(attend=dense_attend(module), inputs=inputs, taps=(module.config.num_layers,))
        hidden, stream = module(torch.tensor(tokens), torch.arange(1, COUNT + 1), context)
        expected = [module.logits(hidden[-1:]), hidden, stream]
    for impl in ("torch", "native"):
        found = OneRequest(module, impl).feed(module, tokens, inputs)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", EAGLES)
def test_rows_have_the_same_bits_however_many_are_fed(kind, target, tmp_path):
    save, options = EAGLES[kind]
    save(tmp_path, target.config, **options)
    module = load_draft_module(tmp_path, target)
    tokens, inputs = random_tokens(COUNT), rows(COUNT, module.input_size)
    whole = OneRequest(module, "native").feed(module, tokens, inputs)
    for sizes in ([1] * COUNT, [20, 1, 1, 11]):
        paged, start, parts = OneRequest(module, "native"), 0, []
        for size in sizes:
            part = slice(start, start + size)
            parts.append(paged.feed(module, tokens[part], inputs[part], start + 1))
            start += size
        assert torch.equal(parts[-1][0], whole[0])
        for kind_of_row in (1, 2):
            assert torch.equal(torch.cat([part[kind_of_row] for part in parts]), whole[kind_of_row])


@pytest.mark.parametrize("options", [{}, {"fc_norm": True}, {"norm_before_fc": True}], ids=["fc", "3.1", "norm"])
def test_fused_features(options, target, tmp_path):
    tiny_eagle3(tmp_path, target.config, **options)
    module = load_draft_module(tmp_path, target)
    apply_and_compare(target, module.fuse, rows(40, 96))


@pytest.mark.parametrize("options", [{}, {"layers": 2}, {"layers": 2, "vllm": True, "biased": False}])
def test_medusa_heads(options, target, tmp_path):
    tiny_medusa(tmp_path, target.config, **options)
    heads = load_medusa_heads(tmp_path, target)
    for head in heads.heads:
        apply_and_compare(target, head, rows(40, 32))


def apply_and_compare(target, module, x):
    assert module in modules
    executor = OneRequest(target, "native").executor
    with torch.inference_mode():
        expected = module(x)
        pack_weights(module, release=False)
        torch.testing.assert_close(executor.apply(module, x), expected, atol=2e-4, rtol=1e-4)
        check_rows_are_alone(lambda some: executor.apply(module, some).clone(), x, [1, 2, 17, 40])
        pack_weights(module, release=True)
        torch.testing.assert_close(executor.apply(module, x), expected, atol=2e-4, rtol=1e-4)
