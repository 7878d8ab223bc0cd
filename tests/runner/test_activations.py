"""The estimate of what a pass takes between its ops, beside what a recorded pass takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from paceline.models import load_model
from paceline.runner.activations import activation_bytes
from paceline.runner.native.recorded_pass import RecordedPass
from paceline.runner.native.recorder import LOGITS, TOKENS, Recorder
from tests.support.engines import Models
from tests.support.native import needs_library
from tests.support.zoo import tiny


@needs_library
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
@pytest.mark.parametrize(("rows", "samples"), [(512, 16), (64, 64)])
def test_the_estimate_is_near(family: str, rows: int, samples: int, tmp_path: Path) -> None:
    tiny(tmp_path, family)
    model = load_model(tmp_path, dtype=torch.float32)
    runner = Models(model, {}).engine(model_impl="native").runner
    recorder = Recorder({TOKENS: rows, LOGITS: samples})
    RecordedPass(runner.model, runner.layers, recorder)
    taken = sum(buffer.numel() * buffer.element_size() for buffer in recorder._acquired)
    assert taken / 2 < activation_bytes(model, rows=rows, samples=samples) < 3 * taken
