# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from pathlib import Path

import pytest
from cohorts import QUICK, ROOT, as_it_was, environment, here, make_rows, stamps, table, write_list

from monai_nodeo.apps.cohort import ranks
from monai_nodeo.data import PairDataset
from monai_nodeo.losses import LocalNCCLoss, RegistrationLoss
from monai_nodeo.registration import PairInferer, Settings

CONFIGS = [str(ROOT / "bundle" / "configs" / f"{name}.json") for name in ("inference", "inference_2d", "multi_gpu")]


def torchrun(pairs: Path, out: Path, processes: int = 2) -> subprocess.CompletedProcess[str]:
    settings = ["--datalist", str(pairs), "--output_dir", str(out), "--report", "False"]
    bundle = ["-m", "monai.bundle", "run", "--config_file", str(CONFIGS), "--bundle_root", str(ROOT / "bundle")]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    words = [*launch, *bundle, *settings, "--settings::iterations", "[3,3]", "--settings::initial_transform", "none"]
    return subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=180)


@pytest.mark.long
def test_ranks_share_pairs_and_ledger(tmp_path):
    """A broken pair on one rank stops no other; the command then finds all done but that one."""
    rows = make_rows(tmp_path / "data", 5)
    rows[1]["moving"] = str(tmp_path / "missing.nii.gz")
    pairs, out = write_list(tmp_path / "pairs.json", rows), tmp_path / "out"
    done = torchrun(pairs, out)
    assert done.returncode != 0
    assert "p01" in done.stderr
    assert "missing.nii.gz" in done.stderr
    found = table(out)
    assert [row["status"] for row in found.values()] == ["done", "failed", "done", "done", "done"]
    kept = {id: stamp for id, stamp in stamps(out).items() if id != "p01"}
    with as_it_was():
        again = here(pairs, "-o", out, *QUICK)
        alone = here(pairs, "-o", tmp_path / "alone", *QUICK)
    assert again.exit_code == alone.exit_code == 3, again.stderr
    assert kept.items() <= stamps(out).items()
    assert table(tmp_path / "alone") == found


def test_other_loss_is_another_result(tmp_path, monkeypatch):
    """Which the settings do not tell; it is the same wherever its class lies in the package."""
    dataset = PairDataset(make_rows(tmp_path / "data", 1))
    settings = Settings.preset(spatial_dims=2, iterations=[3, 3], initial_transform=None)

    def run(**parts: RegistrationLoss) -> dict[str, int]:
        ranks.run(PairInferer(settings, **parts), dataset, tmp_path / "out", report=False)
        return stamps(tmp_path / "out")

    found = [run(), run(), *(run(loss=RegistrationLoss(LocalNCCLoss(2, side))) for side in (7, 9, 9))]
    assert [a == b for a, b in zip(found, found[1:], strict=False)] == [True, False, False, True]
    monkeypatch.setattr(LocalNCCLoss, "__module__", "monai_nodeo.losses.elsewhere")
    assert run(loss=RegistrationLoss(LocalNCCLoss(2, 9))) == found[-1]
