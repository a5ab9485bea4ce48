#!/usr/bin/env bash
# Everything that must pass before a change lands: ruff, mypy, pytest. Arguments go to pytest:
#   ./scripts/test.sh tests/unit/test_layers.py -k arrows
# CGDPM_TEST_WORKERS=2 spreads pytest over two processes, CGDPM_SHARED names the folder of optional development data.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/_env.sh
prepare_environment '[dev,docs]'

failed=()
echo "== ruff check"
"$VENV_PYTHON" -m ruff check . || failed+=("ruff")
echo "== ruff format"
"$VENV_PYTHON" -m ruff format --check . || failed+=("ruff format")
echo "== mypy"
"$VENV_PYTHON" -m mypy || failed+=("mypy")
echo "== pytest"
# One process by default: each further one imports PyTorch and MONAI again, which a short suite does not earn back.
workers="${CGDPM_TEST_WORKERS:-0}"
if ((workers > 1)); then export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"; fi
"$VENV_PYTHON" -m pytest -q --durations=15 -n "$workers" --dist loadfile "$@" || failed+=("pytest")

if ((${#failed[@]})); then
    echo "FAILED: ${failed[*]} (see above; one test alone: ./scripts/test.sh tests/test_x.py -k name)" >&2
    exit 1
fi
