# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What the MONAI model zoo asks of a bundle (its CONTRIBUTING.md and ci/verify_bundle.py), on one that was built.

python zoo/verify.py FOLDER/nodeo_image_registration
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from monai.bundle import create_workflow, verify_metadata, verify_net_in_out

NECESSARY = ("LICENSE", "configs/metadata.json")
PREFERRED = ("models/model.pt", "configs/inference.json")
KEYS = ("bundle_root", "device", "network_def", "inferer", "output_dir")
SECTIONS = (  # of the zoo's docs/readme_template.md
    "Authors",
    "Tags",
    "Model Description",
    "Data",
    "Performance",
    "System Configuration",
    "Limitations",
    "Citation Info",
    "References",
)
LARGEST = 25 * 2**20  # bytes of a file


def problems(bundle: Path) -> list[str]:
    """What the zoo would refuse.

    Args:
        bundle: folder of the bundle.
    """
    found = [f"{file}: there is no such file" for file in (*NECESSARY, *PREFERRED) if not (bundle / file).is_file()]
    if found:
        return found
    files = [path for path in bundle.rglob("*") if path.is_file()]
    found += [f"{path}: larger than 25 MB" for path in files if path.stat().st_size > LARGEST]
    metadata, config = (
        json.loads((bundle / f"configs/{name}.json").read_text(encoding="utf-8")) for name in ("metadata", "inference")
    )
    if metadata["version"] not in metadata["changelog"]:
        found.append(f"configs/metadata.json: version {metadata['version']} is not in the changelog")
    if "supported_apps" not in metadata:
        found.append("configs/metadata.json: no supported_apps")
    found += [f"configs/inference.json: no {key}" for key in KEYS if key not in config]
    text = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    headings = [line.strip("# *") for line in text.splitlines() if line.startswith("#")]
    found += [f"docs/README.md: no section {name}" for name in SECTIONS if name not in headings]
    found += [f"docs/README.md: no word about {word}" for word in ("TorchScript", "TensorRT") if word not in text]
    if not (bundle / "docs" / "data_license.txt").is_file():
        found.append("docs/data_license.txt: there is no such file")
    return found + _of_monai(bundle, metadata["schema"].rpartition("/")[2])


def _of_monai(bundle: Path, schema: str) -> list[str]:
    """What MONAI itself finds; it raises an error for the first fault."""
    configs = bundle / "configs"
    meta, meta_2d = str(configs / "metadata.json"), str(configs / "metadata_2d.json")
    config, config_2d = str(configs / "inference.json"), str(configs / "inference_2d.json")
    verify_metadata(meta_file=meta, filepath=str(bundle / "schema" / schema))
    for metas, files in ((meta, config), ([meta, meta_2d], [config, config_2d])):
        verify_net_in_out("network_def", meta_file=metas, config_file=files, device="cpu", bundle_root=str(bundle))
    workflow = create_workflow(
        workflow_type="inference", bundle_root=str(bundle), config_file=config, meta_file=meta, logging_file=False
    )
    workflow.network_def.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    return [f"configs/inference.json: no property {name}" for name in workflow.check_properties()]


if __name__ == "__main__":
    messages = problems(Path(sys.argv[1]))
    print("\n".join(messages) or "nothing to complain about")
    sys.exit(bool(messages))
