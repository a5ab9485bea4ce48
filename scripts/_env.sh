# shellcheck shell=bash
# Sourced by the scripts from the repository root: prepare_environment [EXTRAS] makes or refreshes ./.venv and sets
# VENV_PYTHON. Packages come from wherever pip is configured to look; on Linux without a GPU, a pip configuration that
# offers CPU builds of PyTorch saves a large download.

VENV_PYTHON=".venv/bin/python"

_fits() { # a Python that this package supports and that can make virtual environments
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1
}

_find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python python3.13 python3.12 python3.11 python3.10; do
        if _fits "$candidate"; then
            echo "$candidate"
            return
        fi
        if [[ "$candidate" == "${PYTHON:-}" ]]; then break; fi # a Python asked for is used or refused, never replaced
    done
    echo "error: ${PYTHON:-this machine} offers no Python 3.10 or newer with venv and ensurepip." >&2
    echo "       Install one, or name it: PYTHON=/path/to/python3 $0" >&2
    return 1
}

_stamp() { # changes with the declared packages, the interpreter and the place of the checkout
    "$VENV_PYTHON" - <<'PY'
import hashlib, os, pathlib, sys
digest = hashlib.sha256(f"{sys.version} {os.getcwd()}".encode())
for name in ("pyproject.toml", "constraints.txt"):
    digest.update(pathlib.Path(name).read_bytes())
print(digest.hexdigest())
PY
}

prepare_environment() { # EXTRAS as pip wants them: [dev,docs]
    local python stamp extras="${1:-}" stamp_file=".venv/.cgdpm-med-stamp"
    if ! "$VENV_PYTHON" -m pip --version >/dev/null 2>&1 || ! _fits "$VENV_PYTHON"; then
        python="$(_find_python)"
        echo "== making .venv with $("$python" --version)"
        "$python" -m venv --clear .venv
    fi
    stamp="$(_stamp)"
    if grep -qxF -- "$stamp$extras" "$stamp_file" 2>/dev/null; then
        echo "== .venv is up to date"
        return
    fi
    local quiet=(--quiet)
    if [[ -t 1 ]]; then quiet=(--progress-bar on); fi
    # PyTorch first and at its exact version: a range that admits newer releases may pull gigabytes of CUDA libraries.
    echo "== installing $(grep '^torch==' constraints.txt) into .venv (the largest part)"
    "$VENV_PYTHON" -m pip install "${quiet[@]}" -c constraints.txt "$(grep '^torch==' constraints.txt)"
    echo "== installing cgdpm-med$extras into .venv"
    "$VENV_PYTHON" -m pip install "${quiet[@]}" -c constraints.txt -e ".$extras"
    printf '%s\n' "$stamp" "$stamp$extras" >"$stamp_file"
}
