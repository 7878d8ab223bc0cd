"""Builds the native kernels where there is a compiler; without one the package installs all the same."""

from __future__ import annotations

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

NATIVE = Path("paceline/kernels/native")
SOURCES = NATIVE / "csrc"
MODULE = ".".join((*NATIVE.parts, "_native"))
# Nothing may reorder or contract floating-point work: a row's bits must not depend on what the compiler fancies.
FLAGS = ["-std=c++17", "-pthread", "-fvisibility=hidden", "-Wall", "-Wextra"]
FLAGS += os.environ.get("PACELINE_OPTIMISE", "-O3 -g0").split()  # scripts/sanitize_kernels.sh wants other ones
FLAGS += ["-fno-fast-math", "-ffp-contract=off", "-fno-math-errno"]
FLAGS += ["-Wno-maybe-uninitialized"]  # GCC says it of its own AVX-512 header
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]
X86 = {
    "generic": [],
    "avx2": AVX2,
    "avx512": AVX512,
    "avx512_bf16": [*AVX512, "-mavx512bf16", "-mavx512vnni"],
}
LEVELS: dict[str, dict[str, list[str]]] = {"x86_64": X86, "AMD64": X86, "aarch64": {"neon": []}, "arm64": {"neon": []}}


class BuildNative(build_ext):
    """Compiles level.cpp once per instruction set, with the flags of that set, and the rest for any processor."""

    def get_ext_filename(self, fullname: str) -> str:
        return f"{fullname.replace('.', os.sep)}.so"  # loaded by ctypes: no module of one Python version

    def build_extension(self, ext: Extension) -> None:
        levels = LEVELS.get(platform.machine(), {"generic": []})
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            built = dict(zip(levels, pool.map(self._level, levels, levels.values()), strict=True))
        there = [name for name in levels if built[name]]
        objects = [path for name in there for path in built[name]]
        for name in ("dispatch", "pool"):
            objects += self._compile(name, "common", [f"-DPACELINE_HAS_{level}" for level in there])
        path = Path(self.get_ext_fullpath(ext.name))
        path.parent.mkdir(parents=True, exist_ok=True)
        arguments = ["-pthread"]
        self.compiler.link_shared_object(objects, str(path), extra_postargs=arguments, target_lang="c++")

    def _level(self, name: str, flags: list[str]) -> list[str]:
        """An older compiler that does not know an instruction set leaves that level out."""
        try:
            return self._compile("level", name, [*flags, f"-DPACELINE_LEVEL={name}"])
        except CompileError as error:
            if not flags:
                raise
            self.warn(f"kernels for {name} are left out: {error}")
            return []

    def _compile(self, source: str, directory: str, flags: list[str]) -> list[str]:
        objects: list[str] = self.compiler.compile(
            [str(SOURCES / f"{source}.cpp")],
            output_dir=str(Path(self.build_temp) / directory),
            include_dirs=[str(SOURCES)],
            extra_postargs=[*FLAGS, *flags],
        )
        return objects


native = Extension(MODULE, [str(path) for path in sorted(SOURCES.glob("*.cpp"))], language="c++", optional=True)
setup(ext_modules=[] if sys.platform == "win32" else [native], cmdclass={"build_ext": BuildNative})
