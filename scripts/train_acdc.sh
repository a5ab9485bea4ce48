#!/usr/bin/env bash
# From a folder in ACDC's layout to weights: denoiser, guidance network, calibration.
#   ./scripts/train_acdc.sh ACDC RUN            what CPUs can do, hours
#   ./scripts/train_acdc.sh ACDC RUN gpu        the larger recipe, for one GPU
# The same command goes on where it was stopped. It ends with the command for the table of the test patients.
set -euo pipefail
if [[ $# -lt 2 || $# -gt 3 || "${3:-gpu}" != gpu ]]; then
    sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
if [[ ! -d "$1" ]]; then
    echo "error: $1 is no folder" >&2
    exit 2
fi
mkdir -p "$2"
acdc="$(cd "$1" && pwd)"
run="$(cd "$2" && pwd)"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/_env.sh
prepare_environment
python="$PWD/$VENV_PYTHON"
bundle="$PWD/bundles/acdc_segmentation"
cd "$bundle" # MONAI looks for configs/logging.conf here

train=configs/train.yaml
inference=configs/inference.yaml
if [[ $# == 3 ]]; then
    train="$train','configs/gpu.yaml"
fi
stage() { # configuration files, output folder, further keys
    "$python" -m monai.bundle run --bundle_root . --dataset_dir "$acdc" --config_file "['$1']" --output_dir "$2" "${@:3}"
}

echo "== 1: the denoiser"
stage "$train" "$run"
echo "== 2: the guidance network"
stage "$train','configs/train_guidance.yaml" "$run/guidance" --denoiser_weights "$run/model.pt"
cp "$run/guidance/guidance.pt" "$run/guidance.pt.part" && mv "$run/guidance.pt.part" "$run/guidance.pt"
if [[ $# == 2 ]]; then # the command reads inference.yaml alone
    echo "== 3: the calibration, on the validation patients"
    "${python%/*}/cgdpm-med" calibrate "$acdc" --weights "$run/model.pt"
fi
echo "== done: $run. The table of the test patients, in $bundle:"
echo "$python -m monai.bundle run --bundle_root . --dataset_dir '$acdc' --weights '$run/model.pt' \\"
echo "    --output_dir '$run/test' --config_file \"['$inference','configs/evaluate.yaml']\""
