"""The native library loads lazily, runs at every level of the processor, and is not missed where it is absent."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from paceline.core.errors import ConfigError
from paceline.kernels.native import library
from paceline.kernels.native.linear import linear
from paceline.kernels.native.packing import pack
from paceline.kernels.native.structures import NativeStatus, Operation
from tests.support.native import needs_library

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _looks_again(monkeypatch):
    monkeypatch.delenv(library.VARIABLE, raising=False)
    library.reload()
    yield
    monkeypatch.undo()
    library.reload()


def compiler() -> str | None:
    name = (os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "").split()
    return shutil.which(name[0]) if name else None


@pytest.mark.skipif(compiler() is None or sys.platform == "win32", reason="needs a C++ compiler")
@pytest.mark.skipif("PACELINE_KERNELS" in os.environ, reason="PACELINE_KERNELS says which")
@pytest.mark.skipif("CI" not in os.environ and not library.PATH.exists(), reason="python setup.py build_ext --inplace")
def test_a_compiler_gives_a_library():
    assert library.reason() is None
    assert library.level() == library.levels()[-1]


@needs_library
def test_every_level_can_be_forced(monkeypatch):
    for name in library.levels():
        monkeypatch.setenv(library.VARIABLE, name)
        library.reload()
        assert library.level() == name
        monkeypatch.delenv(library.VARIABLE)
        library.select(name)
        assert library.level() == name


@needs_library
def test_a_level_that_the_processor_lacks_is_narrowed(monkeypatch):
    found = library._library()
    monkeypatch.setattr(
        library, "_library", lambda: library.Library(found.handle, ("a", "b", "c"), (True, True, False))
    )
    library.select("c")
    assert library.level() == "b"
    monkeypatch.setattr(library, "_library", lambda: library.Library(found.handle, ("a",), (False,)))
    library.select(None)
    assert "another kind of processor" in library.reason().cause
    monkeypatch.undo()


@needs_library
def test_the_library_refuses_a_level_that_it_cannot_run():
    handle = library._library().handle
    for level in (-1, 99):
        assert handle.paceline_run(level, None, 0, 1, None) == NativeStatus.NO_SUCH_LEVEL
    wrong = (Operation * 1)((99, None))
    assert handle.paceline_run(0, wrong, 1, 1, None) == NativeStatus.NO_SUCH_CODE


@needs_library
def test_a_level_that_does_not_exist_is_an_error(monkeypatch):
    monkeypatch.setenv(library.VARIABLE, "avx1024")
    library._chosen.cache_clear()
    with pytest.raises(ConfigError, match=r"avx1024(.|\n)*off"):
        library.level()


def absent(cause: str) -> None:
    library.reload()
    assert library.level() is None
    assert cause in library.reason().cause
    assert library.reason().fix
    with pytest.raises(library.NativeUnavailableError, match=cause):
        linear(torch.zeros(1, 4), pack(torch.zeros(4, 4), "fp32"))


def test_kernels_can_be_turned_off(monkeypatch):
    monkeypatch.setenv(library.VARIABLE, "off")
    absent("turns the native kernels off")


def test_without_the_library_the_reason_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "PATH", tmp_path / "none.so")
    absent("were not built")
    assert library.levels() == []
    torn = tmp_path / "torn.so"
    torn.write_bytes(b"\x7fELF and no more")
    monkeypatch.setattr(library, "PATH", torn)
    absent("cannot be loaded")


def test_what_to_do_without_the_library_is_told_of_checkouts_and_of_installations(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "PATH", tmp_path / "none.so")
    monkeypatch.setattr(library, "CHECKOUT", tmp_path)
    absent("were not built")
    assert "pip install" in library.reason().fix
    for name in ("setup.py", "pyproject.toml"):
        (tmp_path / name).touch()
    absent("were not built")
    assert library.reason().fix.endswith("python setup.py build_ext --inplace")


@needs_library
def test_a_library_of_another_version_is_not_used(monkeypatch):
    monkeypatch.setattr(library, "INTERFACE_VERSION", 999)
    absent("not 999")


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, check=False, env=variables
    )


def test_everything_imports_without_the_library():
    modules = "paceline.kernels.reference, paceline.kernels.native.linear, paceline.engine.llm"
    done = python("-c", f"import {modules}", PACELINE_KERNELS="off")
    assert done.returncode == 0, done.stderr


@needs_library
def test_a_forked_child_computes():
    code = (
        "import os, torch\n"
        "from paceline.kernels.native.linear import linear\n"
        "from paceline.kernels.native.packing import pack\n"
        "torch.set_num_threads(2)\n"
        "packed, x = pack(torch.ones(64, 8), 'fp32'), torch.ones(4, 8)\n"
        "first = linear(x, packed)\n"
        "child = os.fork()\n"
        "if child == 0: os._exit(0 if torch.equal(linear(x, packed), first) else 3)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
    )
    done = python("-W", "ignore", "-c", code)
    assert done.returncode == 0, done.stderr


def test_a_build_without_a_compiler_succeeds(tmp_path):
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip("needs setuptools 77, as the build does")
    directories = ["--build-lib", str(tmp_path / "library"), "--build-temp", str(tmp_path / "objects")]
    done = python("setup.py", "build_ext", *directories, CC="/bin/false", CXX="/bin/false")
    assert done.returncode == 0, done.stderr
    assert "building extension" in done.stderr
    assert not list((tmp_path / "library").rglob("*.so"))
