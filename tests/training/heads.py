"""The recipes of heads as tests call them: small, and on a toy target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from paceline.training.block import train_dflash
from paceline.training.eagle3 import train_eagle3
from paceline.training.head_options import DFlashOptions, Eagle3Options, HeadOptions, MedusaOptions, MtpOptions
from paceline.training.medusa import train_medusa
from paceline.training.mtp import train_mtp
from tests.training.recording import RecordingProgress

DRAFTED, TOKENS = 64, 3


@dataclass(frozen=True)
class Recipe:
    options: type[HeadOptions]
    train: Callable[[Any, RecordingProgress], Mapping[str, Any]]
    changes: Mapping[str, Any]


RECIPES = {
    "eagle3": Recipe(Eagle3Options, train_eagle3, {"draft_vocab_size": DRAFTED}),
    "medusa": Recipe(MedusaOptions, train_medusa, {"draft_vocab_size": DRAFTED}),
    "mtp": Recipe(MtpOptions, train_mtp, {}),
    "dflash": Recipe(DFlashOptions, train_dflash, {"places": 0.5}),
}


def options_of(deep, name: str, directory: str, **changes: Any) -> Any:
    recipe = RECIPES[name]
    options = recipe.options(
        data=(deep.data,),
        held_out=(deep.data,),
        out=deep.directory / directory,
        target=deep.target,
        reply_tokens=12,
        length=32,
        num_speculative_tokens=TOKENS,
        compile=False,
        checkpoint_every=10,
        report_every=10,
        eval_prompts=24,
        **recipe.changes,
    )
    return replace(options, **changes)
