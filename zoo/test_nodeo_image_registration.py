# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""For ci/unit_tests of the model zoo: the configs run. MODELS names the folder of the bundle, "models" in the zoo."""

import os
import tempfile
import unittest
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.bundle import create_workflow
from scipy.ndimage import gaussian_filter

BUNDLE = Path(os.environ.get("MODELS", "models")) / "nodeo_image_registration"
SHAPES = {"inference.json": (16, 18, 14), "inference_2d.json": (20, 22)}
FEW = {"settings#shrink_factors": [2, 1], "settings#iterations": [2, 2], "settings#dense_iterations": 0}


class TestNodeoImageRegistration(unittest.TestCase):
    def test_inference_configs(self):
        for name, shape in SHAPES.items():
            with self.subTest(name), tempfile.TemporaryDirectory() as folder:
                files = {side: os.path.join(folder, f"{side}.nii.gz") for side in ("fixed", "moving")}
                for seed, file in enumerate(files.values()):
                    image = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2.0)
                    nib.save(nib.Nifti1Image(image.astype(np.float32), np.eye(4)), file)
                workflow = create_workflow(
                    workflow_type="infer",
                    config_file=[str(BUNDLE / "configs" / file) for file in dict.fromkeys(["inference.json", name])],
                    meta_file=str(BUNDLE / "configs" / "metadata.json"),
                    logging_file=False,
                    bundle_root=str(BUNDLE),
                    output_dir=os.path.join(folder, "out"),
                    device="cpu",
                    report=False,
                    **files,
                    **FEW,
                )
                self.assertEqual(workflow.check_properties(), [])
                workflow.initialize()
                workflow.run()
                workflow.finalize()
                found = nib.load(os.path.join(folder, "out", "moving_to_fixed", "warped.nii.gz"))
                self.assertEqual(found.shape, shape)


if __name__ == "__main__":
    unittest.main()
