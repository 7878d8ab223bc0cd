"""``paceline doctor`` reports whatever is missing or odd, and its exit code tells how bad that is."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from paceline.cli import doctor as doctor_command
from paceline.cli import machine_checks, requirements
from paceline.cli.check import Check
from paceline.cli.main import run
from paceline.core import machine
from paceline.kernels.native import library
from tests.cli.conftest import model_arguments, root

NAMES = [
    "python",
    "packages",
    "extras",
    "torch",
    "cpu",
    "kernels",
    "memory",
    "gpu",
    "disk",
    "settings",
    "pair",
    "model",
]


def report(capsys, *arguments: str) -> tuple[int, dict[str, dict]]:
    code = run(["doctor", "--json", *arguments])
    found = json.loads(capsys.readouterr().out)
    assert list(found["checks"]) == NAMES
    assert found["status"] == ["ok", "warning", "broken"][code]
    return code, found["checks"]


def test_a_model_is_told_with_what_it_takes(capsys, pair):
    _, checks = report(capsys, *model_arguments(pair), "--num-blocks", "40", "--block-size", "8")
    assert {checks[name]["status"] for name in ("python", "packages", "pair")} == {"ok"}
    facts = checks["model"]["facts"]
    assert (facts["num_pages"], facts["page_size"], facts["max_model_len"]) == (40, 8, 256)
    assert set(facts["weight_bytes"]) == {"target", "draft"}
    assert checks["pair"]["facts"]["text"] == checks["pair"]["facts"]["text_without_drafts"]


def test_what_is_wrong_is_told_without_stopping(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PACELINE_BLOCKSIZE", "8")
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.setattr(machine, "usable_cores", lambda: 0)
    code, checks = report(capsys, str(tmp_path / "none"))
    assert code == 2
    assert "no directory" in checks["model"]["text"]
    assert checks["model"]["fix"].startswith("Give a model directory")
    assert (checks["settings"]["status"], checks["settings"]["fix"]) == ("warning", "Did you mean PACELINE_BLOCK_SIZE?")
    assert checks["torch"]["status"] == "warning"
    assert "OMP_NUM_THREADS" in checks["torch"]["fix"]


def test_without_torch_the_rest_is_still_told():
    code = "import sys; sys.modules['torch'] = None; from paceline.cli.main import run; sys.exit(run(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root(), check=False)
    checks = json.loads(done.stdout)["checks"]
    assert {name for name in NAMES if checks[name]["status"] == "broken"} == {"torch", "gpu", "pair", "model"}
    assert (done.returncode, done.stderr) == (2, "")


@pytest.mark.parametrize(("statuses", "code"), [("ok ok", 0), ("ok warning ok", 1), ("broken warning", 2)])
def test_exit_code_is_that_of_the_worst(capsys, monkeypatch, statuses, code):
    checks = [Check(f"c{number}", status, "text", "do this") for number, status in enumerate(statuses.split())]
    monkeypatch.setattr(doctor_command, "check_all", lambda subject: checks)
    assert run(["doctor"]) == code
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.count("do this") == len(checks)
    assert all(f"{check.status:<8} {check.name}" in out for check in checks)


def installed(monkeypatch, versions: dict[str, str | None]) -> None:
    def version(name: str) -> str:
        if versions.get(name, "999") is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions.get(name, "999")

    monkeypatch.setattr(requirements, "version", version)


def test_missing_packages_are_named(capsys, monkeypatch):
    installed(monkeypatch, {"uvicorn": None, "numpy": "1.2.3"})
    code, checks = report(capsys)
    assert code == 2
    assert checks["packages"]["text"].startswith("numpy 1.2.3 (needs ")
    assert checks["extras"]["status"] == "ok"
    assert "not installed: serve" in checks["extras"]["text"]
    assert "pip install 'paceline[" in checks["extras"]["fix"]


def test_requirements_of_an_installed_package(monkeypatch):
    lines = ["torch>=2.11", 'fastapi[all]>=0.115; extra == "serve"', 'paceline[serve]; extra == "all"', "rich"]
    monkeypatch.setattr(requirements, "PROJECT", Path("/nowhere"))
    monkeypatch.setattr(requirements, "requires", lambda _name: lines)
    installed(monkeypatch, {"torch": "2.9.1+cpu", "fastapi": "0.115.0"})
    found = requirements.requirements()
    assert {extra: [(one.package, one.met) for one in many] for extra, many in found.items()} == {
        "core": [("torch", False), ("rich", True)],
        "serve": [("fastapi", True)],
    }


def test_requirements_of_this_checkout():
    found = requirements.requirements()
    assert {"core", "serve", "train"} <= set(found)
    assert not {"test", "dev", "all"} & set(found)
    assert "torch" in {one.package for one in found["core"]}


def test_a_gpu_that_torch_does_not_see(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine_checks, "DRIVER", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", None)
    found = machine_checks.check_gpu()
    assert (found.status, found.fix) == ("warning", "Install torch for CUDA.")
    monkeypatch.setattr(machine_checks, "DRIVER", tmp_path / "none")
    monkeypatch.setattr(machine_checks.shutil, "which", lambda _name: None)
    assert machine_checks.check_gpu().status == "ok"


def test_absent_kernels_are_told_with_what_to_do(monkeypatch):
    monkeypatch.setenv("PACELINE_KERNELS", "off")
    library.reload()
    found = machine_checks.check_kernels()
    assert (found.status, found.facts["level"]) == ("warning", None)
    assert "PACELINE_KERNELS=off" in found.text
    assert found.fix == "Unset PACELINE_KERNELS."
    monkeypatch.setenv("PACELINE_KERNELS", "")
    library.reload()
    found = machine_checks.check_kernels()
    assert found.text.startswith("native" if found.facts["level"] else "torch alone")


def test_a_small_machine(monkeypatch):
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(2**33, 2**28, 2**29))
    monkeypatch.setattr(machine, "cpu_quota", lambda: 0.5)
    assert machine_checks.check_memory().status == "warning"
    assert "of the container's 0.5 GiB" in machine_checks.check_memory().text
    assert "limited to the time of 0.5" in machine_checks.check_cpu().text


def test_a_disk_without_room(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "a" / "b"))
    assert machine_checks.check_disk().facts["cache"] == str(tmp_path / "a" / "b")
    monkeypatch.setattr(machine_checks, "LITTLE_DISK", 2**80)
    assert machine_checks.check_disk().status == "warning"
