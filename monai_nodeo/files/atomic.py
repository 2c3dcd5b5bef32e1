# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os.path import expanduser
from pathlib import Path

__all__ = ["atomic_path", "check_folder", "check_no_file", "check_output_dir", "check_room", "no_empty_folder"]


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file as a whole or not at all.

    Yields a path of the same name in a hidden folder beside the target; the file there takes the target's place when
    the block ends, and is removed when the block fails in any way. An older file stays until then.

    Args:
        path: the target; its folder must exist.

    Example:
        >>> with atomic_path("note.txt") as partial:
        ...     _ = partial.write_text("complete")
        >>> Path("note.txt").read_text()
        'complete'
    """
    target = Path(path)
    check_folder(target)
    # A folder, not a temporary name: what a killed run leaves does not match "*.nii.gz", and the file gets the usual
    # permissions, which mkstemp would narrow.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        partial = Path(folder) / target.name
        yield partial
        os.replace(partial, target)


def check_folder(path: str | os.PathLike[str]) -> None:
    """Find out early that a file cannot be written because its folder is not there.

    Raises:
        FileNotFoundError: names the folder.
    """
    folder = Path(path).parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{path}: the folder {folder} does not exist; make it first.")


def check_room(folder: Path, needed: int) -> None:
    """Find out early that a disk is too full.

    Args:
        folder: on the disk.
        needed: bytes.

    Raises:
        OSError: ENOSPC, with both figures.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"the results take some {needed / 1e9:.3g} GB and {free / 1e9:.3g} GB are free")


def check_no_file(path: str | os.PathLike[str]) -> None:
    """Find out early that a file has the name of a folder that is to be made, or of one above it.

    Raises:
        NotADirectoryError: names the file.
    """
    folder = Path(expanduser(path))
    for place in (folder, *folder.parents):
        if place.is_file():
            raise NotADirectoryError(f"{place} is a file, and the results need a folder; give another name.")


def check_output_dir(path: str | os.PathLike[str], needed: int = 0) -> Path:
    """Make the folder for results, and find out that it can be written to before anything is computed.

    Args:
        path: of the folder.
        needed: bytes that the results will take.

    Returns:
        The folder, absolute.

    Raises:
        OSError: names the folder and what to do.
    """
    folder = Path(expanduser(path)).absolute()
    check_no_file(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            check_room(folder, needed)
    except OSError as error:
        raise OSError(f"{folder} cannot be written to ({error.strerror}); give another folder.") from error
    return folder


@contextmanager
def no_empty_folder(path: str | os.PathLike[str]) -> Iterator[None]:
    """Where the block fails, a folder that was not there before does not stay without content, nor its parents."""
    wanted = Path(expanduser(path)).absolute()
    new = [folder for folder in (wanted, *wanted.parents) if not os.path.exists(folder)]
    try:
        yield
    except BaseException:
        with suppress(OSError):  # it was not made, or there is something in it
            for folder in new:
                folder.rmdir()
        raise
