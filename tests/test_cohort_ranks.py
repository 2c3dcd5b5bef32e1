# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cohorts import QUICK, ROOT, as_it_was, environment, here, make_rows, stamps, table, write_list

# MONAI says of every config file, whoever wrote it, that parsing it runs code.
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")

CONFIGS = [str(ROOT / "bundle" / "configs" / f"{name}.json") for name in ("inference", "inference_2d", "multi_gpu")]


def torchrun(pairs: Path, out: Path, processes: int = 2) -> subprocess.CompletedProcess[str]:
    settings = ["--datalist", str(pairs), "--output_dir", str(out), "--report", "False", "--quiet", "True"]
    bundle = ["-m", "monai.bundle", "run", "--config_file", str(CONFIGS), "--bundle_root", str(ROOT / "bundle")]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    words = [*launch, *bundle, *settings, "--iterations", "[3,3]"]
    return subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=180)


def test_ranks_share_pairs_and_ledger(tmp_path: Path) -> None:
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
