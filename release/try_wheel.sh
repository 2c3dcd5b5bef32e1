#!/usr/bin/env bash
# A fresh environment with the wheel alone, no extras, registers a pair and warps its labels: what "make package" ends with.
# Usage: release/try_wheel.sh PYTHON_WITH_NILEARN FOLDER   (the first makes the example pair, the second is made anew)
set -euo pipefail
maker=$1 folder=$2
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
rm -rf "$folder"
mkdir -p "$folder"
"$maker" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check -c "$root/constraints.txt" "$root"/dist/*.whl
(cd "$root" && "$maker" -c "
import sys
from monai_nodeo.data.examples import example_pair, write_pair
write_pair(example_pair(2, 2.0), sys.argv[1])" "$folder")
cd "$folder" # not the tree, so that the installed package is what runs
env/bin/monai-nodeo register -f fixed.nii.gz -m moving.nii.gz \
    --fixed-label fixed_label.nii.gz --moving-label moving_label.nii.gz -o out
env/bin/monai-nodeo apply -i moving_label.nii.gz -r fixed.nii.gz -t out -n label -o warped_label.nii.gz
env/bin/monai-nodeo info out
