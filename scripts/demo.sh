#!/usr/bin/env bash
# Segments a synthetic cine study with the shipped weights and compares the result with its known truth.
# Results go to demo_output/. Arguments go to the demo: ./scripts/demo.sh --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/_env.sh
prepare_environment

exec .venv/bin/cgdpm-med demo demo_output "$@"
