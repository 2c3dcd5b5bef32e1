# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import nibabel as nib
import numpy as np
import pytest
import torch

from monai_nodeo.apps import demo
from monai_nodeo.data.examples import example_pair


@pytest.mark.parametrize(("spatial_dims", "spacing"), [(2, 2.0), (3, 5.0)])
def test_assessment_knows_the_truth(spatial_dims, spacing):
    pair = example_pair(spatial_dims, spacing)
    truth = torch.from_numpy(pair.ddf)
    right, wrong = demo.assess(pair, truth), demo.assess(pair, torch.zeros_like(truth))
    assert (right.error_mean, right.error_95, right.folding, wrong.folding) == (0, 0, 0, 0)
    assert min(right.grey, right.white) > 0.85 > max(wrong.grey, wrong.white)
    assert wrong.error_95 > wrong.error_mean > 3


def test_assessment_is_in_millimetres_and_per_cent():
    pair = example_pair(2, 4.0)
    shifted = torch.from_numpy(pair.ddf) + torch.tensor([3.0, 4.0])[:, None, None]
    assert demo.assess(pair, shifted).error_mean == pytest.approx(5 * 4.0, rel=1e-5)
    # A field that mirrors the first axis is folded everywhere.
    mirrored = torch.from_numpy(pair.ddf) * 0
    mirrored[0] = -2 * torch.arange(mirrored.shape[1])[:, None]
    assert demo.assess(pair, mirrored).folding == 100


def test_demo_registers_prints_and_saves(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "_QUICK_SPACING", {2: 2.0, 3: 5.0})
    demo.main(["--quick", "--output", str(tmp_path / "new" / "folder")])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if " before " in line or " after " in line]
    assert [row[:2] for row in rows[::2]] == [["2D", "before"], ["3D", "before"]]
    for before, after in zip(rows[::2], rows[1::2], strict=True):
        grey, white, error = (np.array(row, dtype=float) for row in zip(before[2:5], after[1:4], strict=True))
        assert grey[1] > grey[0]
        assert white[1] > white[0]
        assert error[1] < 0.8 * error[0]
    for name in ("2d", "3d"):
        folder = tmp_path / "new" / "folder" / name
        assert (folder / "registration.png").stat().st_size > 10_000
        assert (folder / "history.png").exists()
        fixed, warped = (nib.load(folder / f"{n}.nii.gz") for n in ("fixed", "warped"))
        assert warped.shape == fixed.shape
        np.testing.assert_allclose(warped.affine, fixed.affine)
        assert nib.load(folder / "displacement.nii.gz").header.get_intent()[0] == "vector"


def test_folder_that_cannot_be_made_is_found_first(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stopped:
        demo.main(["--output", str(tmp_path / "file" / "folder")])
    assert stopped.value.code == 2
    assert "--output" in capsys.readouterr().err
