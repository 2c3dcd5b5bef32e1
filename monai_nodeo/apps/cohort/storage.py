# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Errors of the place where results go: they end a run, while errors of a pair end the pair."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os.path import expanduser
from pathlib import Path

from monai_nodeo.files.atomic import check_no_file

__all__ = ["StorageError", "blamed_on_storage", "storage_errors", "usable_folder"]

_FULL_OR_READ_ONLY = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_TOO_LITTLE = 2**24  # bytes; libraries report a full disk in words of their own, so what is left is looked at


class StorageError(OSError):
    """Results cannot be written. The message says where, why and what to do."""


def usable_folder(path: Path) -> Path:
    """Make the folder of the results, and find out that it can be written to before anything is computed.

    Returns:
        The folder, absolute.

    Raises:
        NotADirectoryError: when there is a file of this name.
        StorageError: when it cannot be.
    """
    folder = Path(expanduser(path)).absolute()
    check_no_file(folder)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    return folder


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Every OSError inside is one of the results' folder."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise _explained(folder, error.strerror or str(error)) from error


def blamed_on_storage(error: BaseException, folder: Path) -> StorageError | None:
    """The error of the results' folder behind the failure of a pair, if it is that.

    Args:
        error: what the pair failed with.
        folder: where its results were written.
    """
    link: BaseException | None = error
    while link is not None:
        code = link.errno if isinstance(link, OSError) else None
        if code in _FULL_OR_READ_ONLY:
            return _explained(folder, os.strerror(code))
        link = link.__cause__ or link.__context__
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
        if shutil.disk_usage(folder).free < _TOO_LITTLE:
            return _explained(folder, os.strerror(errno.ENOSPC))
    except OSError as problem:
        return _explained(folder, problem.strerror or str(problem))
    return None


def _explained(folder: Path, reason: str) -> StorageError:
    return StorageError(
        f"{folder} cannot be written to ({reason}); finished pairs are kept: make room or repair it, and run the same "
        "command again, or give another folder."
    )
