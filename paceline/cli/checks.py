"""Knows what can be wrong with an installation or a choice of model, and everything that is looked at."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

from paceline.cli import machine_checks
from paceline.cli.check import BROKEN, OK, WARNING, Check
from paceline.cli.engine_options import EngineChoice
from paceline.cli.requirements import CORE, requirements
from paceline.cli.settings import SECTIONS
from paceline.cli.terminal import size_text
from paceline.core.config_file import unknown_key
from paceline.core.errors import PacelineError
from paceline.core.resolution import FILE_VARIABLE, Resolution
from paceline.core.settings import settings_of
from paceline.kernels.native.library import VARIABLE as KERNELS_VARIABLE

OTHER_VARIABLES = (FILE_VARIABLE, KERNELS_VARIABLE, "PACELINE_TORCH")


@dataclass(frozen=True, slots=True)
class Subject:
    """What the checks look at beside the machine."""

    resolution: Resolution
    engine: EngineChoice


def check_all(subject: Subject) -> list[Check]:
    """Every check, in order; one that fails leaves the others alone."""
    checks: dict[str, Callable[[], Check]] = {
        "python": machine_checks.check_python,
        "packages": _packages,
        "extras": _extras,
        "torch": machine_checks.check_torch,
        "cpu": machine_checks.check_cpu,
        "kernels": machine_checks.check_kernels,
        "memory": machine_checks.check_memory,
        "gpu": machine_checks.check_gpu,
        "disk": machine_checks.check_disk,
        "settings": partial(_settings, subject),
        "pair": _pair,
        "model": partial(_model, subject),
    }
    return [_guarded(name, check) for name, check in checks.items()]


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except PacelineError as error:
        cause, _, fix = str(error).partition("\n")
        return Check(name, BROKEN, cause, fix or None)
    except Exception as error:
        return Check(name, BROKEN, f"{type(error).__name__}: {error}", "Install paceline again, or report this output.")


def _packages() -> Check:
    """Of the core; without them nothing runs."""
    found = requirements().get(CORE, [])
    unmet = [str(one) for one in found if not one.met]
    return Check(
        "packages",
        BROKEN if unmet else OK,
        ", ".join(unmet or map(str, found)),
        "Install them: pip install --upgrade paceline" if unmet else None,
        {one.package: one.installed for one in found},
    )


def _extras() -> Check:
    """None is needed by everybody, so one that is missing is no fault."""
    found = {extra: many for extra, many in requirements().items() if extra != CORE}
    installed = [extra for extra, many in found.items() if all(one.met for one in many)]
    missing = [extra for extra in found if extra not in installed]
    return Check(
        "extras",
        OK,
        f"{', '.join(installed) or 'none'} installed" + (f"; not installed: {', '.join(missing)}" if missing else ""),
        f"If you need one: pip install 'paceline[{missing[0]}]'" if missing else None,
        {extra: {one.package: one.installed for one in many} for extra, many in found.items()},
    )


def _settings(subject: Subject) -> Check:
    known = [setting.variable for section in SECTIONS for setting in settings_of(section.kind).values()]
    known += OTHER_VARIABLES
    unknown = sorted(name for name in os.environ if name.startswith("PACELINE_") and name not in known)
    files = [str(path) for path in subject.resolution.files]
    facts = {"files": files, "unknown_variables": unknown}
    if unknown:
        cause, _, fix = str(unknown_key(f"{unknown[0]} is no setting", unknown[0], known)).partition("\n")
        return Check("settings", WARNING, cause, fix if "mean" in fix else f"Unset {unknown[0]}.", facts)
    return Check("settings", OK, f"from {', '.join(files)}" if files else "no file", facts=facts)


def _pair() -> Check:
    """The embedded pair loads and answers, with and without drafts alike."""
    from paceline.core.params import SamplingParams
    from paceline.engine.llm import LLM

    llm = LLM(max_model_len=64, max_num_seqs=1)
    question, params = [{"role": "user", "content": "Hello!"}], SamplingParams(max_tokens=8, temperature=0.0)
    drafted, plain = (llm.chat(question, params, speculate=on)[0].outputs[0] for on in (True, False))
    same = drafted.token_ids == plain.token_ids
    return Check(
        "pair",
        OK if same else BROKEN,
        f"the embedded pair answers {drafted.text!r}" + ("" if same else f", without drafts {plain.text!r}"),
        None if same else "Drafts must never change a text: please report this output.",
        {"text": drafted.text, "text_without_drafts": plain.text},
    )


def _model(subject: Subject) -> Check:
    """What the chosen model would take, before it is loaded."""
    from paceline.engine.fit import fit

    subject.engine.check_parts()
    found = fit(subject.engine.model, subject.engine.engine_config())
    few = found.num_full_sequences < 1
    pages = -(-found.max_model_len // found.page_size)
    weights = " + ".join(size_text(size) for size in found.weight_bytes.values())
    return Check(
        "model",
        WARNING if few else OK,
        f"{subject.engine.model or 'the embedded pair'}: weights of {weights} as {found.dtype} on {found.device}, "
        f"{size_text(found.kv_cache_bytes)} for {found.num_pages} pages of {found.page_size} tokens as "
        f"{found.kv_cache_dtype}, about {size_text(found.activation_bytes)} for a step, "
        f"{found.num_full_sequences} sequences of {found.max_model_len} tokens at once",
        f"Set num_blocks to at least {pages}, or max_model_len lower." if few else None,
        asdict(found),
    )
