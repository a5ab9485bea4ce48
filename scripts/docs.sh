#!/usr/bin/env bash
# Builds the site into build/site, without the network; a warning is an error. ./scripts/docs.sh serve shows it while you write.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/_env.sh
prepare_environment '[dev,docs]'
export NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true
exec "$VENV_PYTHON" -m mkdocs "${1:-build}" --strict --quiet
