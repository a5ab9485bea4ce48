#!/usr/bin/env bash
# Everything that must pass before a change lands: ruff, mypy, pytest. Arguments go to pytest:
#   ./scripts/test.sh tests/test_layers.py -k arrows
# CGDPM_TEST_WORKERS sets the number of test processes (2), CGDPM_SHARED the folder of optional development data.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/_env.sh
prepare_environment

failed=()
echo "== ruff check"
"$VENV_PYTHON" -m ruff check . || failed+=("ruff")
echo "== mypy cgdpm_med"
"$VENV_PYTHON" -m mypy cgdpm_med || failed+=("mypy")
echo "== pytest"
# One thread a process: the tests are small, and two processes are faster than one with two threads.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
"$VENV_PYTHON" -m pytest -q -n "${CGDPM_TEST_WORKERS:-2}" --dist loadfile "$@" || failed+=("pytest")

if ((${#failed[@]})); then
    echo "FAILED: ${failed[*]} (see above; one test alone: ./scripts/test.sh -n 0 tests/test_x.py -k name)" >&2
    exit 1
fi
