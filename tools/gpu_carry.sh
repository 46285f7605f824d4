#!/usr/bin/env bash
# Make the kit for a borrowed GPU machine without a network, and announce the journey in this machine's ledger.
#   bash tools/gpu_carry.sh --python 3.12 --budget 9m --out build/kit
# kit/wheels/ goes into the Python of that machine, beside its own torch; kit/src.tar is this commit; kit/home is the
# journey's GLASSHOUSE_HOME with keys of its own. What comes back: glasshouse publish --from ARCHIVE
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-.venv/bin/python}" -m tools.journey carry "$@"
