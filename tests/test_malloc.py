# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import ctypes
import platform
import subprocess
import sys

import pytest

from monai_nodeo.registration.malloc import give_back_kept_memory, keep_freed_memory

# malloc.h: the option's number and glibc's default
DEFAULTS = {-1: 128 * 1024, -2: 128 * 1024, -4: 65536}
MMAP_MAX = -4


class _Libc:
    """Records what glibc would be told."""

    def __init__(self) -> None:
        self.options: dict[int, int] = {}
        self.trimmed = 0

    def mallopt(self, option: int, value: int) -> int:
        self.options[option] = value
        return 1

    def malloc_trim(self, pad: int) -> int:
        assert pad == 0
        self.trimmed += 1
        return 1


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> _Libc:
    fake = _Libc()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: fake)
    return fake


def test_freed_memory_is_kept_inside_and_given_back_afterwards(libc):
    give_back_kept_memory()  # there is none
    with keep_freed_memory() as give_back:
        assert libc.options.keys() == DEFAULTS.keys()
        assert libc.options[MMAP_MAX] == 0
        assert all(libc.options[option] != DEFAULTS[option] for option in DEFAULTS)
        assert not libc.trimmed
        give_back()
        give_back_kept_memory()
        assert libc.trimmed == 2
    assert libc.options == DEFAULTS
    assert libc.trimmed == 3
    give_back_kept_memory()
    assert libc.trimmed == 3


def test_inner_use_leaves_the_outer_one_as_it_is(libc):
    with keep_freed_memory():
        kept = dict(libc.options)
        with keep_freed_memory():
            pass
        assert libc.options == kept
    assert libc.options == DEFAULTS


def test_an_exception_passes_also_through_nested_use(libc):
    for count in (1, 2):
        with pytest.raises(KeyError, match="inside"), keep_freed_memory(), keep_freed_memory():
            raise KeyError("inside")
        assert libc.options == DEFAULTS
        assert libc.trimmed >= count


class _HalfOfIt:
    def mallopt(self, option: int, value: int) -> int:
        raise AssertionError("set, but can never be set back")


def _no_library(name: None) -> None:
    raise OSError("no such library")


def _windows(name: None) -> None:
    raise TypeError("argument of type 'NoneType' is not iterable")


# musl has neither function
@pytest.mark.parametrize("library", [lambda name: object(), lambda name: _HalfOfIt(), _no_library, _windows])
def test_nothing_happens_without_glibc(monkeypatch, library):
    monkeypatch.setattr(ctypes, "CDLL", library)
    with keep_freed_memory() as give_back:
        give_back()
    with pytest.raises(KeyError, match="inside"), keep_freed_memory():
        raise KeyError("inside")


# In a process of its own: what other tests left in the heap decides what a shared one gives back.
_KEEP_AND_GIVE_BACK = """
import os
from pathlib import Path

import torch

from monai_nodeo.registration.malloc import keep_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

def allocate_and_free():
    arrays = [torch.ones(4 * 2**18) for _ in range(16)]  # 4 MiB each
    del arrays

torch.ones(1)
before = resident()
with keep_freed_memory():
    allocate_and_free()
    assert resident() > before + 48
    allocate_and_free()
    assert resident() < before + 96, "added, not reused"
assert resident() < before + 32
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
def test_the_real_library_keeps_and_gives_back():
    subprocess.run([sys.executable, "-c", _KEEP_AND_GIVE_BACK], check=True, timeout=60)
