#!/usr/bin/env bash
# A fresh environment with the wheel alone, no extras, registers a pair, and what needs an extra says which; then, with the
# extras, the commands and the Python of the README's first pages: what "make package" ends with.
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
env/bin/monai-nodeo info out

# Usage: lacks EXTRA COMMAND...
lacks() {
    local extra=$1 said
    shift
    if said=$("$@" 2>&1) || [[ $said != *"pip install 'monai-nodeo[$extra]'"* ]]; then
        echo "expected a failure that names [$extra]: $*"
        echo "$said"
        exit 1
    fi
    echo "[$extra] is named by: $*"
}
echo '[{"fixed": "fixed.nii.gz", "moving": "moving.nii.gz"}]' >pairs.json
lacks cohort env/bin/monai-nodeo cohort pairs.json -o pairs --workers 2
lacks report env/bin/monai-nodeo report out
lacks view env/bin/monai-nodeo view out
lacks bundle env/bin/python -c "import monai_nodeo.apps.bundle.workflow"
lacks dicom env/bin/monai-nodeo convert out/transform.h5 transform.dcm
lacks zarr env/bin/monai-nodeo apply -i moving.nii.gz -r fixed.nii.gz -t out -o warped.ome.zarr
lacks demo env/bin/python -m monai_nodeo.apps.demo --quick

env/bin/python -m pip install --quiet --disable-pip-version-check -c "$root/constraints.txt" "$(echo "$root"/dist/*.whl)[all]"
# The first block below a heading of the README.
readme() {
    awk -v heading="## $1" '$0 == heading {here = 1} here && /^```/ {if (inside) exit; inside = 1; next} inside' "$root/README.md"
}
cp moving_label.nii.gz moving_labels.nii.gz
readme "Register two files" >commands.sh
readme "In Python" >script.py
PATH="$folder/env/bin:$PATH" bash -ex commands.sh
env/bin/python script.py
