#!/usr/bin/env bash
# Builds the native kernels with AddressSanitizer and UBSan in a copy of this checkout, and runs their tests there.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git -C "$root" ls-files -z --cached --others --exclude-standard -- setup.py pyproject.toml README.md paceline tests |
    tar -C "$root" --null -T - -cf - | tar -C "$copy" -xf -
cd "$copy"

# Without recovery the first finding ends the process; at -O1 the build is quick and the findings have lines.
flags="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
CFLAGS="$flags" CXXFLAGS="$flags" LDFLAGS="$flags" PACELINE_OPTIMISE="-O1 -g" \
    "$python" setup.py -q build_ext --inplace
library=paceline/kernels/native/_native.so
nm -D "$library" | grep __asan >/dev/null || { echo "$library was built without AddressSanitizer" >&2; exit 1; }

# A finding ends the process at once, so nothing is captured. Python is not built with the sanitizer, which therefore
# has to be loaded first; leaks of Python are not ours.
compiler=${CXX:-g++}
LD_PRELOAD="$("$compiler" -print-file-name=libasan.so) $("$compiler" -print-file-name=libstdc++.so)" \
    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH="$copy" OMP_NUM_THREADS=1 \
    "$python" -m pytest -x -q --capture=no -p no:cacheprovider tests/kernels/test_linear.py tests/kernels/test_glue.py \
    tests/kernels/test_sampling.py tests/kernels/test_edits.py tests/kernels/test_logprobs.py tests/kernels/test_heads.py \
    tests/kernels/test_attention.py tests/kernels/test_attention_input.py tests/runner/test_shapes.py \
    tests/runner/test_kept_features.py tests/runner/test_step_ops.py tests/runner/test_rows.py tests/runner/test_accept.py "$@"
