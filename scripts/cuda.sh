#!/usr/bin/env bash
# Runs everything that needs a GPU: the marked tests, then the demo on it. Ends within ten minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
"$python" -m pytest -m cuda -q
"$python" -m paceline.cli.main demo --json
