# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
from types import SimpleNamespace

import click
import pytest
import torch
from synthetic import deformed_pair, quick_settings

from monai_nodeo import RegisterPair, Settings
from monai_nodeo.apps.cli._options import Bytes
from monai_nodeo.data import PairError
from monai_nodeo.files import check_output_dir
from monai_nodeo.registration import needed_memory

CPU = torch.device("cpu")
GROUPS = {
    "none": ("", "", ()),
    "v2": ("0::/a/b\n", "a", ("memory.max", "memory.current", "inactive_file")),
    "v1": (
        "9:cpu:/x\n4:memory:/a/b\n0::/\n",
        "memory/a/b",
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ),
    "container": (
        "4:memory:/not/here\n",
        "memory",
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ),
}


@pytest.mark.parametrize("kind", GROUPS)
def test_free_memory_is_the_least_of_the_system_and_its_control_groups(kind, tmp_path, monkeypatch):
    lines, folder, names = GROUPS[kind]
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 4000 kB\n")
    (proc / "self" / "cgroup").write_text(lines)
    if folder:
        (groups / folder).mkdir(parents=True)
        for name, text in zip(names, ("3000000\n", "2500000\n"), strict=False):
            (groups / folder / name).write_text(text)
        (groups / folder / "memory.stat").write_text(f"cache 7\n{names[2]} 500000\n")
    monkeypatch.setattr(needed_memory, "_PROC", proc)
    monkeypatch.setattr(needed_memory, "_CGROUP", groups)
    assert needed_memory.free_memory(CPU) == (1_000_000 if folder else 4000 * 1024)


@pytest.mark.parametrize(("limit", "left"), [("3000000", 3_000_000 - 1000 * 1024), ("1000", 0), ("unlimited", None)])
def test_free_memory_is_what_the_address_space_leaves(limit, left, tmp_path, monkeypatch):
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "status").write_text("Name:\tpython\nVmPeak:\t 2000 kB\nVmSize:\t 1000 kB\n")
    (tmp_path / "self" / "limits").write_text(
        f"Limit   Soft Limit  Hard Limit  Units\nMax address space  {limit}  unlimited  bytes\n"
    )
    monkeypatch.setattr(needed_memory, "_PROC", tmp_path)
    assert needed_memory.free_memory(CPU) == left


def test_a_system_that_tells_nothing_is_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr(needed_memory, "_PROC", tmp_path)
    assert needed_memory.free_memory(CPU) is None
    needed_memory.check_memory(Settings.preset(), (10**4,) * 3, 1, CPU)


def test_on_a_gpu_what_torch_holds_unused_counts_as_free(monkeypatch):
    cuda = {"mem_get_info": (5000, 9000), "memory_reserved": 700, "memory_allocated": 300}
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert needed_memory.free_memory(torch.device("cuda:0")) == 5400


def test_a_pair_that_cannot_fit_is_refused_before_the_work(monkeypatch, caplog):
    settings = quick_settings(2)
    fixed, moving, _ = deformed_pair((20, 24))
    settings = settings.replace(crop_air=False)
    needed = needed_memory.needed_memory(settings, (20, 24))
    monkeypatch.setattr(needed_memory, "free_memory", lambda device: needed)
    RegisterPair(settings, handlers=())(fixed, moving)
    assert caplog.messages[-1].startswith("this may end for want of memory: 20x24 voxels take")
    monkeypatch.setattr(needed_memory, "free_memory", lambda device: needed - 1)
    with pytest.raises(PairError, match=r"^20x24 voxels take .* GB of memory, and .* GB are free on cpu; take .*$"):
        RegisterPair(settings, handlers=())(fixed, moving)


@pytest.mark.parametrize(
    "more", [{"pairs": 2}, {"spatial_shape": (64, 64, 65)}, {"solver": "euler"}, {"dense_iterations": 1}]
)
def test_more_work_needs_more_memory(more):
    few = {"dense_iterations": 0, "num_steps": 8}
    call = {"spatial_shape": (64, 64, 64), "pairs": 1}
    settings = Settings.preset(**few)
    changed = settings.replace(**{k: v for k, v in more.items() if k not in call})
    less = needed_memory.needed_memory(settings, **call)
    assert needed_memory.needed_memory(changed, **call | {k: v for k, v in more.items() if k in call}) > less


def test_a_disk_without_room_is_found_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    assert check_output_dir(tmp_path / "fits", 1000).is_dir()
    with pytest.raises(OSError, match=r"results take some .* GB and .* GB are free"):
        check_output_dir(tmp_path / "out", 1001)


@pytest.mark.parametrize("dims", [2, 3])
def test_settings_get_leaner_until_they_fit(dims):
    shape = (512, 512, 300)[:dims]
    settings = Settings.preset(spatial_dims=dims)

    def whole(settings: Settings) -> int:
        return needed_memory._LIBRARIES + needed_memory.needed_memory(settings, shape)

    assert needed_memory.fitting_settings(settings, shape, whole(settings)) == (settings, "")
    fitting, cost = needed_memory.fitting_settings(settings, shape, whole(settings) - 1)
    assert whole(fitting) < whole(settings)
    assert cost
    with pytest.raises(PairError, match=r"^512x512.* voxels take .* GB of memory with the leanest settings, and .* GB"):
        needed_memory.fitting_settings(settings, shape, needed_memory._LIBRARIES)


@pytest.mark.parametrize(("text", "found"), [("4GB", 4e9), ("1.5 g", 1.5e9), ("800MB", 8e8)])
def test_sizes_of_memory(text, found):
    assert Bytes().convert(text, None, None) == found


@pytest.mark.parametrize("text", ["0GB", "4", "GB"])
def test_what_is_no_size_of_memory_is_refused(text):
    with pytest.raises(click.BadParameter, match="is no size of memory; expected one such as 4GB"):
        Bytes().convert(text, None, None)
